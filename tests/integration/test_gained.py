# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A network that gains something makes no transition; of several networks, one that leads nowhere gives way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.mobile import NAME, open_mobile_link
from tests.integration.test_uplinks import HASTY, ip, ipv6_alone, wait_uplink
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.tun_device import attach_tun

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

PREFIXES = 8
PREFIXES_ALL = "2001:db8:a0::/44"


class Router:
    """A real radvd at provider A that advertises another prefix on each request."""

    def __init__(self, testbed: Testbed) -> None:
        self._config: Path = testbed.world.directory / "radvd.conf"
        self._testbed = testbed
        self._number = 0
        testbed.claimed = (PREFIXES_ALL,)
        # The route back to all prefixes.
        testbed.world.provider_a.run(["ip", "-6", "route", "replace", PREFIXES_ALL, "dev", "lan"])
        for host in (testbed.world.backbone, testbed.world.internet):
            host.run(["ip", "-6", "route", "replace", PREFIXES_ALL, "via", plan.BACKBONE_A6])
        self._write()
        self._radvd = testbed.world.provider_a.spawn(
            ["radvd", "-n", "-C", str(self._config), "-p", str(testbed.world.directory / "radvd.pid"), "-m", "none"]
        )

    def _write(self) -> None:
        self._number += 1
        self.prefix = f"2001:db8:a{self._number:x}:"
        # Deprecated after three seconds, gone after five.
        self._config.write_text(
            "interface lan { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; MinDelayBetweenRAs 3;\n"
            f"AdvDefaultLifetime 0; prefix {self.prefix}:/64 {{ AdvValidLifetime 5; AdvPreferredLifetime 3; }}; }};\n"
        )
        self._config.chmod(0o644)

    def advertise_another(self) -> None:
        """Configure another prefix, which radvd advertises at once."""
        self._write()
        self._radvd.send_signal(signal.SIGHUP)

    def end(self) -> None:
        """Stop advertising."""
        self._radvd.terminate()
        self._radvd.wait(timeout=60)


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with open_testbed(start=False) as made:
        made.machine.program = [str(HASTY), "FIRST_PATIENCE_SECONDS=2"]
        made.machine.start_daemon()
        made.machine.wait_state("OPEN")
        yield made


def _addresses(testbed: Testbed) -> str:
    return testbed.world.client.run(["ip", "-6", "address", "show", "dev", "eth0", "scope", "global"]).stdout


def _advertise_for_long(testbed: Testbed, router: Router) -> None:
    """Advertise one more prefix every two seconds, until the first ones are gone again."""
    first = router.prefix
    for _ in range(PREFIXES):
        router.advertise_another()
        testbed.machine.wait_for(lambda: router.prefix in _addresses(testbed), "an address of the new prefix")
    testbed.machine.wait_for(lambda: "deprecated" in _addresses(testbed), "a deprecated address")
    testbed.machine.wait_for(lambda: first not in _addresses(testbed), "the end of the first prefix")


@pytest.mark.requirement("R6", "R7")
@pytest.mark.skipif(shutil.which("radvd") is None, reason="radvd is not installed")
@pytest.mark.parametrize("family", [4, 6])
def test_prefixes_that_come_and_go_do_not_disturb_and_the_loss_of_what_is_in_use_closes(
    testbed: Testbed, family: int
) -> None:
    machine, client = testbed.machine, testbed.world.client
    mark = testbed.world.mark()
    own = f"{LAN_A.client4}/{LAN_A.prefix4}" if family == 4 else f"{LAN_A.client6}/{LAN_A.prefix6}"
    client.set_sysctls({"ipv6/conf/eth0/accept_ra": 2, "ipv6/conf/eth0/autoconf": 1})
    machine.command("restart")
    machine.wait_state("OPEN")
    router, alone = Router(testbed), contextlib.ExitStack()
    try:
        testbed.machine.wait_for(lambda: router.prefix in _addresses(testbed), "the first prefix")
        if family == 6:
            alone.enter_context(ipv6_alone(testbed))
            machine.write_config(entry=testbed.server.entry6)
            machine.command("reload")
            machine.wait_for(lambda: not (testbed.read_status()["uplink"] or {"ipv4": True})["ipv4"], "IPv6 alone")
        machine.wait_state("OPEN")
        machine.wait_for(machine.lease_remains, "the lease")
        before, ends = testbed.read_status(), testbed.watch_ends()
        _advertise_for_long(testbed, router)
        assert (ends(), testbed.read_status()["core_pid"]) == ([], before["core_pid"])
        machine.wait_for(machine.lease_remains, "the lease")
        # The source address in use goes: the service closes and starts another core.
        ip(testbed, "addr", "del", own, "dev", "eth0")
        machine.wait_for(lambda: testbed.read_status()["core_pid"] != before["core_pid"], "a transition")
        testbed.probe()
    finally:
        router.end()
        if family == 6:
            ip(testbed, "-6", "addr", "replace", own, "dev", "eth0", "nodad")
            alone.close()
            machine.write_config()
            machine.command("reload")
        else:
            ip(testbed, "addr", "replace", own, "dev", "eth0")
        for version, router_address in (("-4", LAN_A.router4), ("-6", LAN_A.router6)):
            ip(testbed, version, "route", "replace", "default", "via", router_address, "dev", "eth0", "metric", "100")
        client.set_sysctls({"ipv6/conf/eth0/accept_ra": 0})
    wait_uplink(testbed, "eth0")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R6")
def test_another_vpn_with_the_better_route_is_not_taken_for_the_uplink(testbed: Testbed) -> None:
    before = testbed.read_status()
    other_vpn = testbed.world.client.call(lambda: attach_tun("tun0"))
    try:
        ip(testbed, "addr", "add", "10.8.0.2/24", "dev", "tun0")
        ip(testbed, "link", "set", "tun0", "up")
        ip(testbed, "route", "add", "default", "via", "10.8.0.1", "dev", "tun0", "metric", "5")
        testbed.machine.wait_for(
            lambda: (testbed.read_status()["uplink"] or {}).get("others") == ["tun0"], "both uplinks"
        )
        after = testbed.read_status()
        assert (after["uplink"]["interface"], after["uplink"]["chosen"]) == ("eth0", "best")
        testbed.machine.wait_state("OPEN")
        assert testbed.read_status()["core_pid"] == before["core_pid"], "no transition"
        assert testbed.page() == plan.SERVER4
    finally:
        os.close(other_vpn)
    wait_uplink(testbed, "eth0")


@pytest.mark.requirement("R6")
def test_a_network_that_brings_no_tunnel_gives_way_to_one_that_does_and_does_not_come_back_until_that_is_lost(
    testbed: Testbed,
) -> None:
    mark, world = testbed.world.mark(), testbed.world
    world.provider_a.run(
        ["nft", "add table ip deaf { chain f { type filter hook forward priority 0; policy drop; }; }"]
    )
    try:
        with open_mobile_link(world, metric=700):
            testbed.machine.command("restart")
            status = wait_uplink(testbed, NAME)
            assert (status["uplink"]["chosen"], status["uplink"]["others"]) == ("gave_way", ["eth0"])
            assert testbed.page() == plan.SERVER4
            # Whatever the first network gains is no reason to go back.
            ip(testbed, "addr", "add", "2001:db8:a:1::7/64", "dev", "eth0", "nodad")
            testbed.probe()
            after = testbed.read_status()
            assert (after["uplink"]["interface"], after["core_pid"]) == (NAME, status["core_pid"])
            ip(testbed, "addr", "del", "2001:db8:a:1::7/64", "dev", "eth0")
            world.provider_a.run(["nft", "delete", "table", "ip", "deaf"])
        wait_uplink(testbed, "eth0")
    finally:
        world.provider_a.run(["nft", "delete", "table", "ip", "deaf"], check=False)
    testbed.assert_no_leak(mark)
