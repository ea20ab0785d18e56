# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Any user may take the port of the SOCKS proxy. That costs the proxy, not the tunnel; the stranger gets nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.socks_client import fetch_by_socks
from psiphon_vpn.cli.view import render_text

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

PORT = 1081
LISTEN = (
    "import socket, sys, time\n"
    "six = ':' in sys.argv[1]\n"
    "kind = {'family': socket.AF_INET6 if six else socket.AF_INET, 'dualstack_ipv6': six}\n"
    "while True:\n"
    "    try:\n"
    "        s = socket.create_server((sys.argv[1], 1081), **kind)\n"
    "        break\n"
    "    except OSError:\n"
    "        time.sleep(0.0005)\n"  # waiting for the moment when the port is free
    "print('listening', flush=True)\n"
    "while True:\n"
    "    s.accept()\n"
    "    print('somebody came', flush=True)\n"
)


@contextmanager
def stranger(
    testbed: Testbed, address: str, take: Callable[[], object] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of an ordinary user that listens on the port as soon as it is free.

    Args:
        testbed: the world.
        address: where it listens.
        take: frees the port.
    """
    argv = [sys.executable, "-I", "-c", LISTEN, address]
    child = testbed.world.client.spawn(argv, stdout=subprocess.PIPE, uid=NOBODY, gid=NOBODY)
    assert child.stdout is not None
    try:
        if take is not None:
            take()
        assert child.stdout.readline() == b"listening\n"
        yield child
    finally:
        child.kill()
        child.wait()


def _connects(testbed: Testbed) -> bool:
    ask = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 2)"
    return testbed.world.client.run([sys.executable, "-I", "-c", ask], check=False).returncode == 0


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_user_who_listens_on_the_port_keeps_nobody_offline_and_gets_nothing(address: str) -> None:
    with open_testbed(start=False) as testbed:
        with stranger(testbed, address) as child:
            testbed.machine.start_daemon()
            testbed.machine.wait_state("OPEN")
            assert testbed.page() == plan.SERVER4
            assert testbed.read_status()["socks"] == {"port": PORT, "available": False}
            assert not _connects(testbed), "what is meant for the proxy is not handed to a stranger"
            assert "SOCKS:" in render_text(testbed.read_status(), width=100)
            testbed.probe()
        testbed.machine.command("restart")
        testbed.machine.wait_state("OPEN")
        assert testbed.read_status()["socks"] == {"port": PORT, "available": True}
        assert fetch_by_socks(testbed.world.client, "127.0.0.1", plan.INTERNET4) == plan.SERVER4
        assert child.stdout is not None
        assert child.stdout.read() == b"", "nobody came"


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("how", ["restart", "the core is killed"])
def test_a_user_who_takes_the_port_between_two_cores_keeps_nobody_offline_and_gets_nothing(how: str) -> None:
    with open_testbed() as testbed:
        assert testbed.read_status()["socks"] == {"port": PORT, "available": True}

        def end_core() -> None:
            if how == "restart":
                testbed.machine.command("restart")
            else:
                os.kill(testbed.read_status()["core_pid"], signal.SIGKILL)

        with stranger(testbed, "127.0.0.1", end_core) as child:

            def opened_without() -> bool:
                status = testbed.read_status()
                return (status["state"], status["socks"]) == ("OPEN", {"port": PORT, "available": False})

            testbed.machine.wait_for(opened_without, "the tunnel without the proxy")
            assert testbed.page() == plan.SERVER4
            assert not _connects(testbed), "what is meant for the proxy is not handed to a stranger"
            testbed.probe()
            # The next core tries again, and again does without the proxy.
            testbed.machine.command("restart")
            testbed.machine.wait_for(opened_without, "the tunnel without the proxy, once more")
        assert child.stdout is not None
        assert child.stdout.read() == b"", "nobody came"
