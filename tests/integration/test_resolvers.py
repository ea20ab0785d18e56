# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Names through the resolvers that distributions put between programs and the tunnel, and `diagnose`'s own query."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.integration.testbed import Testbed

from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.waiting import wait_until
from psiphon_vpn.diagnose.checks.dns import ASK_AS_PROGRAMS_DO
from psiphon_vpn.policy import names

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]


@contextmanager
def dnsmasq(testbed: Testbed, server: str) -> Iterator[None]:
    """The local resolver of `dns=dnsmasq`, given its server as NetworkManager does."""
    client, log = testbed.world.client, testbed.world.directory / "resolver.log"
    argv = [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
        "--listen-address=127.0.0.1", "--cache-size=0", "--pid-file=", "--user=root", f"--log-facility={log}",
        f"--server={server}",
    ]  # fmt: skip
    log.unlink(missing_ok=True)
    child = client.spawn(argv, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: log.exists() and b"started" in log.read_bytes(), "dnsmasq")
        yield
    finally:
        child.kill()
        child.wait()


def ask(testbed: Testbed, uid: int) -> int:
    """What a program gets that asks 127.0.0.1 for a name: 0 for an answer, 3 for none."""
    conf = testbed.world.directory / "resolv-local.conf"
    conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    conf.chmod(0o644)
    mount = 'mount --bind "$1" /etc/resolv.conf && exec setpriv --reuid="$2" --clear-groups "$3" -I -c "$4"'
    argv = ["unshare", "--mount", "sh", "-c", mount, "sh", str(conf), str(uid), sys.executable, ASK_AS_PROGRAMS_DO]
    return testbed.world.client.run(argv, check=False).returncode


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "user"])
@pytest.mark.parametrize(
    ("server", "reported"),
    [
        (names.RESOLVER_IPV4, 0),  # as NetworkManager passes on servers of [global-dns-domain-*]
        ("192.0.2.1", 0),
        ("192.0.2.1@eth0", 3),  # as it passes on a connection's: bound to the card
    ],
)
def test_a_local_resolver_resolves_unless_it_is_bound_to_a_card_and_a_program_that_asks_sees_it(
    reopened_testbed: Testbed, server: str, reported: int, uid: int
) -> None:
    testbed = reopened_testbed
    mark = testbed.world.mark()
    with dnsmasq(testbed, server):
        assert ask(testbed, uid) == reported
    testbed.assert_no_leak(mark)
