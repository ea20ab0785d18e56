"""Any user may take the port of the SOCKS proxy: that costs the proxy, not the tunnel; the stranger gets nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.stage import Stage, open_stage
from tests.integration.test_uplinks import status_of

from psiphon_lab import addresses as plan
from psiphon_lab.battery import NOBODY
from psiphon_lab.socks_client import fetch_by_socks
from psiphon_vpn.cli.view import render_text

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

PORT = 1081
LISTEN = (
    "import socket, sys\n"
    "s = socket.create_server((sys.argv[1], 1081))\n"
    "print('listening', flush=True)\n"
    "while True:\n"
    "    s.accept()\n"
    "    print('somebody came', flush=True)\n"
)


@contextmanager
def stranger(stage: Stage, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of an ordinary user that listens on the port."""
    argv = [sys.executable, "-I", "-c", LISTEN, address]
    child = stage.world.client.spawn(argv, stdout=subprocess.PIPE, uid=NOBODY, gid=NOBODY)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"listening\n"
        yield child
    finally:
        child.kill()
        child.wait()


def _connects(stage: Stage) -> bool:
    ask = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 2)"
    return stage.world.client.run([sys.executable, "-I", "-c", ask], check=False).returncode == 0


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_user_who_listens_on_the_port_keeps_nobody_offline_and_gets_nothing(address: str) -> None:
    with open_stage(start=False) as stage:
        with stranger(stage, address) as child:
            stage.machine.start_daemon()
            stage.machine.wait_state("OPEN")
            assert stage.page() == plan.SERVER4
            assert status_of(stage)["socks"] == {"port": PORT, "available": False}
            assert not _connects(stage), "what is meant for the proxy is not handed to a stranger"
            assert "SOCKS:" in render_text(status_of(stage), width=100)
            stage.probe()
        stage.machine.command("restart")
        stage.machine.wait_state("OPEN")
        assert status_of(stage)["socks"] == {"port": PORT, "available": True}
        assert fetch_by_socks(stage.world.client, "127.0.0.1", plan.INTERNET4) == plan.SERVER4
        assert child.stdout is not None
        assert child.stdout.read() == b"", "nobody came"
