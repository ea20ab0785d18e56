# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Interfaces with hostile names, and more of them than a chain takes, on a real kernel with the real service."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from tests import hostile
from tests.integration.nft_without_parts import put_limited_nft
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_vpn.linux.traffic import remove_filters
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import decode_name, show_name

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

TOKEN = b"FROM-A-CONTAINER"
SEND = f"""
import socket
for family, target in ((socket.AF_INET, {plan.INTERNET4!r}), (socket.AF_INET6, {plan.INTERNET6!r})):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(5):
            try:
                sock.sendto({TOKEN!r}, (target, 9))
            except OSError:
                pass
"""


def add_wire(testbed: Testbed, name: bytes) -> None:
    """Add one as NetworkManager does for any desktop user."""
    testbed.world.client.run(["ip", "link", "add", "link", "eth0", "name", os.fsdecode(name), "type", "macvlan"])


def send_from_container(testbed: Testbed) -> int:
    """The number of the container's frames that came out. Another program's rule sends them straight to the card."""
    mark = testbed.world.mark()
    testbed.world.container.run([sys.executable, "-I", "-c", SEND])
    return sum(TOKEN in frame.data for frame in testbed.world.frames_since(mark))


def read_rules(testbed: Testbed) -> str:
    return testbed.world.client.run(["nft", "list", "ruleset"]).stdout


def send_containers_to_the_card(testbed: Testbed) -> None:
    for version in ("-4", "-6"):
        testbed.world.client.run(["ip", version, "rule", "add", "iif", "ctr0", "pref", "100", "lookup", "main"])


@pytest.fixture
def closed() -> Iterator[Testbed]:
    """Locked as at boot, without a daemon."""
    with open_testbed(start=False) as testbed:
        yield testbed


@pytest.mark.requirement("R1", "R4", "R7", "R19")
@pytest.mark.parametrize("guarded", [True, False], ids=["every layer", "no wire guard"])
def test_names_that_are_pieces_of_rules_change_no_rule_and_let_nothing_out(closed: Testbed, guarded: bool) -> None:
    if not guarded:
        closed.machine.release_guard()
    for name in hostile.KNOWN:
        add_wire(closed, name)
    closed.machine.start_daemon()
    closed.machine.wait_state("OPEN")
    send_containers_to_the_card(closed)
    closed.machine.wait_state("OPEN")
    assert send_from_container(closed) == 0
    rules = read_rules(closed)
    for chain in ("forward", "postrouting"):
        assert f"chain {chain} {{" in rules
    named = rules.replace('"lo"', "").replace(f'"{names.TUN_NAME}"', "")
    for name in hostile.KNOWN:
        assert f'"{name.decode(errors="backslashreplace")}"' not in named
    status = closed.read_status()
    assert (status["locked"], status["reason_code"]) == (True, "verified")
    reported = status["layers"]["egress_guard"]
    assert reported["state"] == "incomplete"
    assert "more" in reported["detail"]
    assert reported["detail"].isprintable()
    # The control: without the lock the very same packets are seen.
    closed.machine.kill_daemon()
    closed.machine.release_guard()
    closed.world.client.run(["nft", "flush", "ruleset"])
    closed.world.client.call(remove_filters)
    assert send_from_container(closed) > 0


@pytest.mark.requirement("B4", "R6")
def test_a_card_that_comes_beside_a_hostile_one_gets_its_guard_and_the_daemon_lives(closed: Testbed) -> None:
    closed.machine.start_daemon()
    closed.machine.wait_state("OPEN")
    pid = closed.machine.daemon_pid
    for name in (b"a\xffb", b'c*"}accept#'):
        add_wire(closed, name)
        shown = show_name(decode_name(name))
        closed.machine.wait_for(lambda: shown in closed.read_status()["layers"]["egress_guard"]["detail"], shown)  # noqa: B023
    add_wire(closed, b"card7")
    closed.machine.wait_for(lambda: 'egress device "card7"' in read_rules(closed), "its guard")
    closed.machine.wait_state("OPEN")
    assert closed.machine.daemon_pid == pid
    assert "card7" not in closed.read_status()["layers"]["egress_guard"]["detail"]
    closed.world.client.run(["ip", "link", "del", os.fsdecode(b"a\xffb")])
    closed.world.client.run(["ip", "link", "del", 'c*"}accept#'])
    closed.machine.wait_for(lambda: closed.read_status()["layers"]["egress_guard"]["state"] == "ok", "all guarded")


@pytest.mark.requirement("R9")
def test_an_interface_that_is_called_like_the_index_of_the_tun_takes_nothing_over(closed: Testbed) -> None:
    closed.machine.start_daemon()
    closed.machine.wait_state("OPEN")
    link = closed.world.client.run(["cat", f"/sys/class/net/{names.TUN_NAME}/ifindex"]).stdout.strip()
    add_wire(closed, link.encode())
    closed.machine.wait_for(lambda: f'egress device "{link}"' in read_rules(closed), "its guard")
    closed.machine.wait_state("OPEN")
    closed.machine.command("restart")
    closed.machine.wait_state("OPEN")
    rules = closed.world.client.run(["nft", "list", "chain", "inet", names.BASE_TABLE, "output"]).stdout
    assert f'oif "{names.TUN_NAME}"' in rules
    assert f'oif "{link}"' not in rules


@pytest.mark.requirement("R9")
def test_an_interface_with_a_hostile_name_is_no_uplink(closed: Testbed) -> None:
    client = closed.world.client
    client.run(["ip", "link", "set", "eth0", "down"])
    client.run(["ip", "link", "set", "eth0", "name", "*"])
    client.run(["ip", "link", "set", "*", "up"])
    client.run(["ip", "route", "replace", "default", "via", LAN_A.router4, "dev", "*"])
    closed.machine.start_daemon()
    closed.machine.wait_for(lambda: closed.read_status()["reason_code"] == "odd_uplink", "the reason")
    assert closed.read_status()["locked"]
    client.run(["ip", "link", "set", "*", "down"])
    client.run(["ip", "link", "set", "*", "name", "eth0"])
    client.run(["ip", "link", "set", "eth0", "up"])
    client.run(["ip", "route", "replace", "default", "via", LAN_A.router4, "dev", "eth0"])
    closed.machine.wait_state("OPEN")


@pytest.mark.requirement("B4", "R1", "R7")
def test_a_thousand_wires_are_guarded_all_of_them(closed: Testbed) -> None:
    """A netdev chain takes 256 devices; above that the guard loaded for none, and the state stayed open."""
    client, container = closed.world.client, closed.world.container
    closed.machine.release_guard()  # the card was plugged in after the frame guard was loaded
    lines = "".join(f"link add link eth0 name m{number} type macvlan mode bridge\n" for number in range(1000))
    client.run(["ip", "-batch", "-"], input=lines, timeout=60)
    closed.machine.start_daemon()
    closed.machine.wait_state("OPEN", seconds=60)
    assert read_rules(closed).count("hook egress") > 1000
    assert closed.read_status()["layers"]["egress_guard"]["state"] == "ok"
    client.run(["ip", "link", "add", "mv0", "link", "eth0", "type", "macvlan", "mode", "bridge"])
    client.run(["ip", "link", "set", "mv0", "netns", str(container.pid)])
    # Add the router as a neighbour: the lock stops the container's ARP too, so nothing would leave in any case.
    router = closed.world.provider_a.run(["cat", "/sys/class/net/lan/address"]).stdout.strip()
    for words in (["link", "set", "mv0", "up"], ["addr", "add", "192.0.2.77/25", "dev", "mv0"],
                  ["route", "replace", "default", "via", LAN_A.router4, "dev", "mv0"],
                  ["neigh", "replace", LAN_A.router4, "lladdr", router, "dev", "mv0"]):  # fmt: skip
        container.run(["ip", *words])
    closed.machine.wait_state("OPEN", seconds=60)
    assert send_from_container(closed) == 0
    closed.machine.kill_daemon()
    client.run(["nft", "flush", "ruleset"])
    assert send_from_container(closed) == 0, "the filters of traffic control alone"
    client.call(remove_filters)
    assert send_from_container(closed) > 0, "the control"


@pytest.mark.requirement("B4", "R1")
def test_a_wire_that_cannot_be_guarded_costs_only_itself_and_the_uplink_the_opening(closed: Testbed) -> None:
    add_wire(closed, b"bad0")
    add_wire(closed, b"good0")
    put_limited_nft(closed.world, 'devices = . "bad0"')
    closed.machine.start_daemon()
    closed.machine.wait_state("OPEN")
    rules = read_rules(closed)
    assert 'egress device "good0"' in rules
    assert 'egress device "eth0"' in rules
    reported = closed.read_status()["layers"]["egress_guard"]
    assert reported["state"] == "incomplete"
    assert "bad0" in reported["detail"]
    # This daemon would not load again what is already there.
    closed.machine.kill_daemon()
    put_limited_nft(closed.world, 'devices = . "eth0"')
    closed.machine.start_daemon()
    closed.machine.wait_for(lambda: "no egress guard on eth0" in closed.machine.read_log(), "the reason")
    for _ in range(20):
        assert closed.read_status()["state"] != "OPEN"


CROWD = 1024
"""So many chains a hook of a device takes (MAX_HOOK_COUNT, net/netfilter/core.c)."""


def crowd(testbed: Testbed, name: str) -> None:
    """Have another program take every place at a device's egress hook."""
    chains = "".join(
        f'chain c{number} {{ type filter hook egress device "{name}" priority {number}; policy accept; }}\n'
        for number in range(CROWD)
    )
    testbed.world.client.run(["nft", "-f", "-"], input=f"table netdev crowd {{\n{chains}}}\n", timeout=60)


def is_guarded(testbed: Testbed, name: str) -> bool:
    return f'device "{name}"' in testbed.world.client.run(["nft", "list", "table", "netdev", names.EGRESS_TABLE]).stdout


@pytest.mark.requirement("B4", "R6")
def test_a_wire_that_was_refused_closes_nothing_when_links_change_and_gets_its_guard_when_it_can(
    closed: Testbed,
) -> None:
    """Each gained prefix made the service load all rules again, with the tunnel closed."""
    client, machine = closed.world.client, closed.machine
    add_wire(closed, b"full0")
    crowd(closed, "full0")
    machine.start_daemon()
    machine.wait_state("OPEN")
    ends = closed.watch_ends()
    for number in range(3):
        client.run(["ip", "addr", "add", f"172.29.{number}.1/24", "dev", LAN_A.interface])
        reported = f"172.29.{number}.1"
        machine.wait_for(lambda reported=reported: reported in read_rules(closed), "the address in the rules")  # type: ignore[misc]
    closed.let_it_renew()
    assert ends() == [], "nothing was closed"
    assert "full0" in closed.read_status()["layers"]["egress_guard"]["detail"]
    assert not is_guarded(closed, "full0")
    client.run(["nft", "delete", "table", "netdev", "crowd"])
    machine.wait_for(lambda: is_guarded(closed, "full0"), "its guard", seconds=90)
    machine.wait_for(lambda: closed.read_status()["layers"]["egress_guard"]["state"] == "ok", "its word")
    closed.let_it_renew()
    assert ends() == [], "nothing was closed for it"
    assert is_guarded(closed, LAN_A.interface)


@pytest.mark.requirement("B4")
def test_another_device_under_the_name_of_one_that_was_refused_is_guarded_at_once(closed: Testbed) -> None:
    client, machine = closed.world.client, closed.machine
    add_wire(closed, b"full0")
    crowd(closed, "full0")
    machine.start_daemon()
    machine.wait_state("OPEN")
    assert not is_guarded(closed, "full0")
    client.run(["ip", "link", "del", "full0"])
    client.run(["nft", "delete", "table", "netdev", "crowd"])
    add_wire(closed, b"full0")
    machine.wait_for(lambda: is_guarded(closed, "full0"), "its guard")


@pytest.mark.requirement("B4", "R1")
def test_a_guard_that_loads_for_no_device_for_a_while_costs_none_of_them_its_guard(closed: Testbed) -> None:
    """That is no wire's fault: if the next load left them all out, it would remove their guards."""
    machine = closed.machine
    add_wire(closed, b"good0")
    machine.start_daemon()
    machine.wait_state("OPEN")
    assert is_guarded(closed, "good0")
    put_limited_nft(closed.world, "egress device")
    add_wire(closed, b"good1")
    machine.wait_for(lambda: "no egress guard on eth0" in machine.read_log(), "the trouble")
    assert is_guarded(closed, "good0"), "what stands stays"
    put_limited_nft(closed.world, "nothing is refused any more")
    machine.wait_state("OPEN")
    for name in ("eth0", "good0", "good1"):
        assert is_guarded(closed, name), name
