# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The second wall: rules and the private table are made, repaired and checked, and replies find their way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from tests.integration.kernel import Kernel
from tests.integration.testbed import open_testbed
from tests.policies import IDENTITY, PROBE

from psiphon_lab import addresses as plan
from psiphon_lab.namespace import Host
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.routes import apply_routes, apply_rules, check_routing
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tun import ensure_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import Route, build_routes, build_rules

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R9")]

RULES = build_rules(IDENTITY)
OPEN = build_routes(tun=True, open_ipv4=True, open_ipv6=True, ipv6_probe=PROBE)
CLOSED = build_routes(tun=True, open_ipv4=False, open_ipv6=False, ipv6_probe=PROBE)
NO_TUN = build_routes(tun=False, open_ipv4=False, open_ipv6=False)
TABLE = ("table", str(names.ROUTE_TABLE))
METRIC = str(names.ROUTE_METRIC)

Change = Callable[[Kernel], object]


def make_tun(kernel: Kernel) -> int:
    return kernel.with_routes(lambda socket: ensure_tun(socket, uid=IDENTITY.uid)).index


def apply(kernel: Kernel, routes: tuple[Route, ...], index: int | None) -> str | None:
    """Apply the routes; returns what the check says then."""

    async def work(socket: RouteSocket) -> str | None:
        await apply_rules(socket, RULES)
        await apply_routes(socket, routes, index)
        return await check_routing(RULES, routes, index)

    return kernel.with_routes(work)


def check(kernel: Kernel, routes: tuple[Route, ...], index: int | None) -> str | None:
    return kernel.with_routes(lambda _: check_routing(RULES, routes, index))


def show(kernel: Kernel) -> list[str]:
    """Everything that decides where a packet goes."""
    found = []
    for family in ("-4", "-6"):
        found += kernel.ip(family, "rule").splitlines()
        routes = json.loads(kernel.ip("-j", family, "route", "show", *TABLE) or "[]")
        found += sorted(json.dumps(route, sort_keys=True) for route in routes)
    return found


def add_other_wire(kernel: Kernel) -> None:
    kernel.ip("link", "add", "other0", "type", "veth", "peer", "name", "other1")
    kernel.ip("link", "set", "other1", "up")
    kernel.ip("addr", "add", "192.0.2.9/24", "dev", "other0")
    kernel.ip("link", "set", "other0", "up")


@pytest.mark.parametrize("routes", [OPEN, CLOSED], ids=["open", "closed"])
def test_rules_and_routes_are_made_so_and_making_them_again_changes_nothing(
    kernel: Kernel, routes: tuple[Route, ...]
) -> None:
    index = make_tun(kernel)
    assert check(kernel, routes, index) is not None
    assert apply(kernel, routes, index) is None
    before = show(kernel)
    assert apply(kernel, routes, index) is None
    assert show(kernel) == before
    assert len(before) > len(RULES) + len(routes)


@pytest.mark.defect(8)
@pytest.mark.requirement("R2")
def test_without_a_tun_the_private_table_says_unreachable(kernel: Kernel) -> None:
    assert apply(kernel, NO_TUN, None) is None
    for family, target in (("-4", "203.0.113.80"), ("-6", "2001:db8:ffff::80")):
        done = kernel.host.run(["ip", family, "route", "get", target], check=False)
        assert done.returncode != 0, done.stdout


def test_opening_and_closing_go_over_into_each_other(kernel: Kernel) -> None:
    index = make_tun(kernel)
    for routes in (CLOSED, OPEN, CLOSED, OPEN):
        assert apply(kernel, routes, index) is None
    assert names.TUN_NAME in kernel.ip("route", "get", "203.0.113.80")
    assert apply(kernel, CLOSED, index) is None
    assert kernel.host.run(["ip", "route", "get", "203.0.113.80"], check=False).returncode != 0


DAMAGES: dict[str, Change] = {
    "a rule is deleted": lambda kernel: kernel.ip("rule", "del", "priority", "5076"),
    "an IPv6 rule is deleted": lambda kernel: kernel.ip("-6", "rule", "del", "priority", "5075"),
    "all rules are flushed": lambda kernel: kernel.ip("rule", "flush"),
    "the private table is flushed": lambda kernel: kernel.ip("route", "flush", *TABLE),
    "the private IPv6 table is flushed": lambda kernel: kernel.ip("-6", "route", "flush", *TABLE),
    "the unreachable route is deleted": lambda kernel: kernel.ip(
        "route", "del", "unreachable", "default", *TABLE, "metric", str(names.UNREACHABLE_METRIC)
    ),
    "a route by another wire": lambda kernel: kernel.ip("route", "add", "default", "dev", "other0", *TABLE),
    "a route by another wire's gateway": lambda kernel: kernel.ip(
        "route", "add", "203.0.113.0/24", "via", "192.0.2.1", "dev", "other0", *TABLE
    ),
    "a route over several wires": lambda kernel: kernel.ip(
        "route", "add", "203.0.113.0/24", *TABLE, "nexthop", "via", "192.0.2.1", "nexthop", "via", "192.0.2.2"
    ),
    "a route by another wire in place of ours": lambda kernel: kernel.ip(
        "route", "replace", "default", "dev", "other0", *TABLE, "metric", METRIC
    ),
    "another source": lambda kernel: kernel.ip(
        "route", "replace", "default", "dev", names.TUN_NAME, *TABLE, "metric", METRIC, "src", "192.0.2.9"
    ),
    "the rule of the table local is deleted": lambda kernel: kernel.ip("rule", "del", "priority", "0"),
    "the IPv6 rule of the table local is deleted": lambda kernel: kernel.ip("-6", "rule", "del", "priority", "0"),
    "a rule of ours is replaced by one of fewer packets": lambda kernel: (
        kernel.ip("rule", "del", "priority", "5076"),
        kernel.ip("rule", "add", "priority", "5076", "from", "192.0.2.0/24", "table", str(names.ROUTE_TABLE)),
    ),
    "a rule of ours is replaced by a black hole": lambda kernel: (
        kernel.ip("rule", "del", "priority", "5076"),
        kernel.ip("rule", "add", "priority", "5076", "blackhole"),
    ),
    "a route of ours goes through a gateway behind the TUN": lambda kernel: kernel.ip(
        "route", "replace", "default", "via", "10.200.3.9", "dev", names.TUN_NAME, *TABLE, "metric", METRIC
    ),
    "a throw route, past our table": lambda kernel: kernel.ip("route", "add", "throw", "203.0.113.0/24", *TABLE),
    "a throw route for IPv6": lambda kernel: kernel.ip("-6", "route", "add", "throw", "2001:db8:ffff::/48", *TABLE),
    "a black hole": lambda kernel: kernel.ip("route", "add", "blackhole", "203.0.113.0/24", *TABLE),
    "a prohibited destination": lambda kernel: kernel.ip("-6", "route", "add", "prohibit", "2001:db8::/32", *TABLE),
}


@pytest.mark.requirement("B3")
@pytest.mark.parametrize("what", DAMAGES)
def test_it_is_noticed_and_put_right_when_there_is(kernel: Kernel, what: str) -> None:
    index = make_tun(kernel)
    add_other_wire(kernel)
    assert apply(kernel, OPEN, index) is None
    before = show(kernel)
    DAMAGES[what](kernel)
    assert show(kernel) != before
    assert check(kernel, OPEN, index) is not None
    assert apply(kernel, OPEN, index) is None
    # `ip rule flush` also removes the rules for main and default, which the service does not restore.
    assert [line for line in before if line not in show(kernel) and "32766" not in line and "32767" not in line] == []


@pytest.mark.requirement("B3")
def test_a_strangers_rule_among_ours_is_noticed_and_removed(kernel: Kernel) -> None:
    index = make_tun(kernel)
    assert apply(kernel, OPEN, index) is None
    before = show(kernel)
    kernel.ip("rule", "add", "priority", str(names.RULE_PRIORITY + 1), "to", "203.0.113.0/24", "table", "main")
    assert check(kernel, OPEN, index) is not None
    assert apply(kernel, OPEN, index) is None
    assert show(kernel) == before


def test_other_programs_rules_and_tables_are_left_alone(kernel: Kernel) -> None:
    index = make_tun(kernel)
    add_other_wire(kernel)
    kernel.ip("rule", "add", "priority", "5210", "fwmark", "0x80000/0xff0000", "table", "main")
    kernel.ip("route", "add", "203.0.113.0/24", "dev", "other0", "table", "52")
    assert apply(kernel, OPEN, index) is None
    assert apply(kernel, CLOSED, index) is None
    assert "5210:" in kernel.ip("rule")
    assert "other0" in kernel.ip("route", "show", "table", "52")


@pytest.mark.defect(8)
def test_a_tun_made_again_takes_the_routes_with_it(kernel: Kernel) -> None:
    assert apply(kernel, OPEN, make_tun(kernel)) is None
    kernel.ip("link", "del", names.TUN_NAME)
    index = make_tun(kernel)
    assert check(kernel, OPEN, index) is not None
    assert apply(kernel, OPEN, index) is None


# -- the real service, with each reverse-path check -------------------------------------------------------------------


@pytest.mark.requirement("R9", "R19", "R7")
@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_it_connects_and_pages_come_through_whatever_the_reverse_path_check(rp_filter: int) -> None:
    with open_testbed(start=False) as testbed:
        client = testbed.world.client
        client.set_sysctls({f"ipv4/conf/{name}/rp_filter": rp_filter for name in ("all", "default", "eth0", "ctr0")})
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        assert client.get_sysctl("ipv4/conf/all/rp_filter") == str(rp_filter), "it is not ours to change"
        mark = testbed.world.mark()
        assert testbed.page(4) == plan.SERVER4
        for host in (client, testbed.world.container):
            done = host.run(["curl", "-s", "-m", "5", f"http://{plan.INTERNET4}/"])
            assert plan.SERVER4 in done.stdout, host.name
        testbed.machine.wait_for(lambda: bool((testbed.machine.read_status() or {}).get("ipv6")), "IPv6")
        assert testbed.page(6) == plan.SERVER6
        done = testbed.world.container.run(["curl", "-s", "-m", "5", f"http://[{plan.INTERNET6}]/"])
        assert plan.SERVER6 in done.stdout
        testbed.assert_no_leak(mark)


def is_resolved(host: Host, target: str, device: str) -> bool:
    """Whether a host that has forgotten its neighbour's address learns it again with ARP."""
    host.run(["ip", "neigh", "flush", "dev", device])
    ask = "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9))"
    host.run([sys.executable, "-c", ask, target])

    def settled() -> bool:
        return bool({"REACHABLE", "FAILED"} & set(host.run(["ip", "neigh", "show", target]).stdout.split()))

    wait_until(settled, "ARP's answer")
    return "REACHABLE" in host.run(["ip", "neigh", "show", target]).stdout


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("rp_filter", [1, 2])
def test_the_gateway_and_containers_are_answered_by_arp_while_open_and_while_locked(rp_filter: int) -> None:
    """The kernel answers ARP after a reverse-path check. Without an answer the gateway soon loses this machine."""
    with open_testbed(start=False) as testbed:
        testbed.world.client.set_sysctls({f"ipv4/conf/{name}/rp_filter": rp_filter for name in ("all", "eth0", "ctr0")})
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        for state in ("OPEN", "LOCKED"):
            testbed.machine.wait_state(state)
            assert is_resolved(testbed.world.provider_a, plan.LAN_A.client4, "lan"), state
            assert is_resolved(testbed.world.container, plan.CONTAINER_GATEWAY4, "eth0"), state
            testbed.machine.command("stop")
