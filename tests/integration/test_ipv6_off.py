# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""IPv6 turned off, or missing in the kernel, is normal: IPv4 opens, IPv6 stays closed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.integration.kernel import Kernel
from tests.integration.testbed import Testbed, open_testbed
from tests.policies import IDENTITY

from psiphon_lab import addresses as plan
from psiphon_vpn.linux import rtnetlink, sysctl
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.routes import apply_routes, apply_rules, check_routing
from psiphon_vpn.linux.rtlist import knows_ipv6
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tun import check_tun, ensure_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import build_routes, build_rules

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R7")]


def turn_ipv6(testbed: Testbed, *interfaces: str, on: bool) -> None:
    testbed.world.client.set_sysctls({f"ipv6/conf/{name}/disable_ipv6": int(not on) for name in interfaces})


def wait_for_ipv6(testbed: Testbed, *, off: str | None) -> None:
    def reported() -> bool:
        status = testbed.machine.read_status() or {}
        return status.get("state") == "OPEN" and status.get("ipv6_off", "?") == off

    testbed.machine.wait_for(reported, f"IPv6: {off}")


def show_status(testbed: Testbed) -> str:
    argv = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), "status"]
    return testbed.world.client.run(argv).stdout


def assert_ipv4_alone(testbed: Testbed) -> None:
    """IPv4 goes through the tunnel. IPv6 goes nowhere, tried by root and a user in every way, and nothing leaks."""
    assert testbed.page(4) == plan.SERVER4
    assert testbed.page(6) != plan.SERVER6
    testbed.probe()


@pytest.mark.parametrize("interfaces", [("all", "default"), (names.TUN_NAME,)], ids=["everywhere", "for the TUN alone"])
def test_it_is_turned_off_while_open_and_on_again(interfaces: tuple[str, ...]) -> None:
    with open_testbed() as testbed:
        wait_for_ipv6(testbed, off=None)
        testbed.machine.wait_for(lambda: bool((testbed.machine.read_status() or {}).get("ipv6")), "IPv6")
        turn_ipv6(testbed, *interfaces, on=False)
        wait_for_ipv6(testbed, off="off")
        assert_ipv4_alone(testbed)
        assert "IPv6:" in show_status(testbed)
        turn_ipv6(testbed, *interfaces, on=True)
        wait_for_ipv6(testbed, off=None)
        testbed.machine.wait_for(lambda: bool((testbed.machine.read_status() or {}).get("ipv6")), "IPv6 again")


def test_it_is_off_before_the_start() -> None:
    with open_testbed(start=False) as testbed:
        turn_ipv6(testbed, "all", "default", on=False)
        testbed.machine.start_daemon()
        wait_for_ipv6(testbed, off="off")
        assert_ipv4_alone(testbed)
        # It does not close and open again and again either.
        since = testbed.machine.wait_state("OPEN")["since"]
        testbed.let_it_renew(3)  # each renewal found a "change" in what it looked at
        assert testbed.machine.wait_state("OPEN")["since"] == since


def test_a_kernel_that_has_no_settings_for_it() -> None:
    with open_testbed(start=False) as testbed:
        testbed.world.client.run(["mount", "-t", "tmpfs", "-o", "mode=0555", "none", "/proc/sys/net/ipv6"])
        testbed.machine.start_daemon()
        wait_for_ipv6(testbed, off="absent")
        assert_ipv4_alone(testbed)
        rules = testbed.world.client.run(["ip", "-6", "rule"]).stdout
        assert str(names.ROUTE_TABLE) in rules, "this kernel has IPv6 after all: the routing wall stands for it"


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_whose_netlink_does_not_know_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    """As after `ipv6.disable=1`: the kernel's answer to every request about the family."""
    real_list, real_send = rtnetlink.list_once, RouteSocket.change_all
    refused: list[int] = []

    async def listing(kind: int, body: bytes, decode: Callable[[int, bytes], object | None]) -> tuple[object, ...]:
        if body[0] == 10:
            raise OSError(code, os.strerror(code))
        return await real_list(kind, body, decode)

    def send(self: RouteSocket, asked: Iterable[tuple[int, int, bytes]]) -> list[int]:
        requests = list(asked)
        answers = real_send(self, [item for item in requests if item[2][0] != 10])
        refused.extend(item[0] for item in requests if item[2][0] == 10)
        return [code if item[2][0] == 10 else answers.pop(0) for item in requests]

    monkeypatch.setattr(rtnetlink, "list_once", listing)
    monkeypatch.setattr(RouteSocket, "change_all", send)
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)

    async def work(socket: RouteSocket) -> None:
        rules = build_rules(IDENTITY)
        assert not await knows_ipv6()
        tun = await ensure_tun(socket, uid=IDENTITY.uid)
        assert await check_tun(tun, uid=IDENTITY.uid) is None
        routes = build_routes(tun=True, open_ipv4=True, open_ipv6=False, ipv6=False)
        for _ in range(2):
            await apply_rules(socket, rules)
            await apply_routes(socket, routes, tun.index)
            assert await check_routing(rules, routes, tun.index) is None
        assert len((await read_snapshot()).interfaces) == 2
        kernel.ip("rule", "del", "priority", "5075")
        assert await check_routing(rules, routes, tun.index) is not None, "the IPv4 listings are requested"

    kernel.with_routes(work)
    assert not refused, "nothing is asked for that cannot be"
