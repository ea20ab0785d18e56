# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge that root allowed: this machine and its guests reach each other, and nobody else gets a frame of theirs."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_guests import (
    BRIDGE,
    CALL,
    FROM_GUEST,
    FROM_HOST,
    GUEST_ADDRESS,
    HOST_ADDRESS,
    QUESTION,
    SHOUT,
    TOKEN,
    Guests,
    ask,
)
from tests.integration.testbed import open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_B
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.machine import LAB_UID
from psiphon_lab.waiting import wait_until
from psiphon_vpn.policy import names
from psiphon_vpn.policy.guards import build_bridge_guard, build_wire_guard
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")
HOST6, GUEST6 = "fd00:122::1", "fd00:122::77"
ALL = {"host to guest": True, "names of the host": True, "address of the host": True}
NOTHING = dict.fromkeys(ALL, False)
PAGE6 = """
import http.server, socket
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6
Server(('{address}', 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def standing(guests: Guests) -> str:
    status = guests.testbed.machine.read_status()
    bridges: list[dict[str, Any]] = (status or {}).get("bridges", [])
    return str(bridges[0]["state"]) if bridges else ""


def await_standing(guests: Guests, wanted: str) -> None:
    guests.testbed.machine.wait_for(lambda: standing(guests) == wanted, f"the bridge as {wanted}")
    guests.testbed.machine.wait_state("OPEN")
    guests.testbed.machine.wait_for(guests.testbed.machine.lease_remains, "the lease")


@pytest.fixture(scope="module")
def guests() -> Iterator[Guests]:
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        made = Guests(testbed)
        page = None
        try:
            assert made.look() == ALL, "the positive control"
            raise_card(made)
            heard = shout_beside(made, lambda: join_macvlan(made), lambda: leave_macvlan(made))
            assert heard == {FROM_HOST, FROM_GUEST}, "the positive control"
            for host, address, device in ((made.client, HOST6, BRIDGE), (made.guest, GUEST6, "eth0")):
                host.run(["ip", "addr", "add", f"{address}/64", "dev", device, "nodad"])
            page = made.guest.spawn([sys.executable, "-I", "-c", PAGE6.format(address=GUEST6)])
            wait_until(lambda: ask(made.guest, CALL, address=GUEST6, port=8000) == "connected", "the guest's page")
            testbed.machine.boot_lock()
            testbed.machine.allow_bridges(*parse_names(BRIDGE))
            testbed.machine.hold_guard()
            testbed.machine.start_daemon()
            await_standing(made, "in_force")
            yield made
        finally:
            if page is not None:
                page.kill()
                page.wait()
            made.close()


def raise_card(guests: Guests) -> None:
    guests.client.run(["ip", "link", "set", LAN_B.interface, "up"])
    guests.testbed.world.set_carrier(LAN_B, up=True)


def join_macvlan(guests: Guests) -> None:
    """A macvlan counts as hardware by its kind: it leads to the second provider's LAN."""
    guests.client.run(["ip", "link", "add", "mv0", "link", LAN_B.interface, "type", "macvlan", "mode", "bridge"])
    guests.client.run(["ip", "link", "set", "mv0", "master", BRIDGE, "up"])


def leave_macvlan(guests: Guests) -> None:
    guests.client.run(["ip", "link", "del", "mv0"])


def shout_beside(guests: Guests, join: Callable[[], None], leave: Callable[[], None]) -> set[bytes]:
    """Have a port join and leave while both sides send all the time; returns what came out anywhere."""
    client, nobody = guests.client, "192.168.122.200"
    mark = guests.testbed.world.mark()
    loop = SHOUT.format(address=nobody, token=FROM_HOST)
    loop = loop.replace("range(20)", "range(100_000_000)").replace("4000 + number", "4000 + number % 20")
    # No faster than a capture can follow.
    loop = loop.replace("import socket", "import socket, time").replace("    try:", "    time.sleep(0.002)\n    try:")
    loops = [
        client.spawn([sys.executable, "-I", "-c", loop]),
        guests.guest.spawn([sys.executable, "-I", "-c", loop.replace(repr(FROM_HOST), repr(FROM_GUEST))]),
    ]
    try:
        for _ in range(5):
            join()
            for host, device in ((client, BRIDGE), (guests.guest, "eth0")):
                host.run(["ip", "neigh", "replace", nobody, "lladdr", "02:50:53:00:0c:99", "dev", device])
            time.sleep(0.3)
            leave()
    finally:
        for child in loops:
            child.kill()
            child.wait()
    frames = guests.testbed.world.frames_since(mark)
    leaks = [
        verdict.frame.data
        for verdict in judge_frames(frames, world_evidence(guests.testbed.server.read_flows()))
        if not verdict.innocent and TOKEN in verdict.frame.data
    ]
    return {token for token in (FROM_HOST, FROM_GUEST) if any(token in data for data in leaks)}


def test_this_machine_and_its_guests_reach_each_other_in_both_families(guests: Guests) -> None:
    assert guests.look() == ALL
    assert ask(guests.client, CALL, address=GUEST6, port=8000) == "connected"
    assert guests.testbed.machine.read_status()["locked"] is True  # type: ignore[index]


def test_a_guest_still_reaches_the_internet_by_the_tunnel_and_nothing_else_of_this_machine(guests: Guests) -> None:
    assert ask(guests.guest, CALL, address=plan.INTERNET4, port=7) == "connected"
    assert ask(guests.guest, QUESTION, address="203.0.113.53") == "answered"
    listener = guests.client.spawn([sys.executable, "-m", "http.server", "8000", "--bind", HOST_ADDRESS])
    try:
        wait_until(lambda: ask(guests.client, CALL, address=HOST_ADDRESS, port=8000) == "connected", "a listener")
        assert ask(guests.guest, CALL, address=HOST_ADDRESS, port=8000) != "connected"
    finally:
        listener.kill()
        listener.wait()


def test_a_card_that_joins_gets_no_frame_at_any_moment_and_the_bridge_is_withdrawn(guests: Guests) -> None:
    """The card led out before, so the service knows it as one: the kernel calls the laboratory's cards veth pairs."""
    client, card = guests.client, LAN_B.interface
    raise_card(guests)
    client.run(["ip", "route", "add", "default", "via", LAN_B.router4, "dev", card, "onlink", "metric", "900"])
    wait_until(lambda: card in client.run(["nft", "list", "table", "netdev", names.EGRESS_TABLE]).stdout, "its guard")

    def join() -> None:
        client.run(["ip", "link", "set", card, "master", BRIDGE])

    def leave() -> None:
        client.run(["ip", "link", "set", card, "nomaster"])

    assert shout_beside(guests, join, leave) == set()
    join()
    try:
        await_standing(guests, "leads_out")
        assert guests.look() == NOTHING
    finally:
        leave()
    await_standing(guests, "in_force")
    assert guests.look() == ALL


@pytest.mark.parametrize("egress", [True, False])
def test_a_port_that_stands_on_a_card_gets_no_frame_either(guests: Guests, egress: bool) -> None:
    """A macvlan on a card, created as a port in one step; also without the egress guard, as in its first moments."""
    raise_card(guests)

    def join() -> None:
        join_macvlan(guests)
        if not egress:
            guests.client.run(["nft", "delete", "table", "netdev", names.EGRESS_TABLE], check=False)

    assert shout_beside(guests, join, lambda: leave_macvlan(guests)) == set()
    await_standing(guests, "in_force")


def test_a_pair_whose_other_end_is_on_a_bridge_with_a_card_lets_nothing_out(guests: Guests) -> None:
    client, card = guests.client, LAN_B.interface
    raise_card(guests)

    def join() -> None:
        for line in (
            "link add br9 type bridge forward_delay 0", f"link set {card} master br9", "link set br9 up",
            "link add out0 type veth peer name out1", "link set out1 master br9 up",
            f"link set out0 master {BRIDGE} up",
        ):  # fmt: skip
            client.run(["ip", *line.split()])

    def leave() -> None:
        for line in ("link del out0", f"link set {card} nomaster", "link del br9"):
            client.run(["ip", *line.split()])

    assert shout_beside(guests, join, leave) == set()
    join()
    try:
        await_standing(guests, "leads_out")
    finally:
        leave()
    await_standing(guests, "in_force")


def test_after_a_flush_and_without_the_daemon_no_frame_leaves_by_a_card_that_joins(guests: Guests) -> None:
    """Base table and egress guard are gone for good; wire guard and bridge guard belong to the holder."""
    guests.testbed.machine.kill_daemon()
    try:
        assert guests.look() == ALL, "what was loaded stands"
        assert shout_beside(guests, lambda: join_macvlan(guests), lambda: leave_macvlan(guests)) == set()
        guests.client.run(["nft", "flush", "ruleset"])
        assert shout_beside(guests, lambda: join_macvlan(guests), lambda: leave_macvlan(guests)) == set()
    finally:
        guests.testbed.machine.boot_lock()
        guests.testbed.machine.start_daemon()
        await_standing(guests, "in_force")


def test_without_the_bridge_guard_the_bridge_is_withdrawn(guests: Guests) -> None:
    guests.testbed.machine.release_guard()
    try:
        await_standing(guests, "unguarded")
        assert guests.look() == NOTHING
    finally:
        guests.testbed.machine.hold_guard()
        await_standing(guests, "in_force")


def test_the_end_of_the_guards_holder_withdraws_the_bridge_without_waiting_for_the_next_look(guests: Guests) -> None:
    """The next look is an hour away."""
    machine = guests.testbed.machine
    usual, machine.program = machine.program, [str(HASTY), "BRIDGE_GUARD_SECONDS=3600"]
    try:
        machine.kill_daemon()
        machine.start_daemon()
        await_standing(guests, "in_force")
        machine.release_guard()
        await_standing(guests, "unguarded")
        assert guests.look() == NOTHING
    finally:
        machine.kill_daemon()
        machine.program = usual
        machine.hold_guard()
        machine.start_daemon()
        await_standing(guests, "in_force")


def test_a_bridge_that_is_taken_back_is_as_if_it_had_never_been_allowed(guests: Guests) -> None:
    machine = guests.testbed.machine
    machine.allow_bridges()
    try:
        machine.reload_guard()
        machine.command("reload")
        machine.wait_state("OPEN")
        assert guests.look() == NOTHING
        assert HOST_ADDRESS not in guests.client.run(["nft", "list", "ruleset"]).stdout
        assert "192.168.122.0" not in guests.client.run(["ip", "rule"]).stdout
        assert GUEST_ADDRESS not in guests.client.run(["ip", "rule"]).stdout
    finally:
        machine.allow_bridges(*parse_names(BRIDGE))
        machine.reload_guard()
        machine.command("reload")
        await_standing(guests, "in_force")
    assert guests.look() == ALL


def test_a_list_that_is_read_at_a_signal_counts_too(guests: Guests) -> None:
    """As at `systemctl reload`. A list that does not belong to root allows nothing."""
    machine = guests.testbed.machine
    path = machine.config_path.with_name("bridges")
    os.chown(path, LAB_UID, LAB_UID)
    try:
        machine.signal_daemon(signal.SIGHUP)
        await_standing(guests, "")
        assert guests.look() == NOTHING
    finally:
        os.chown(path, 0, 0)
        machine.signal_daemon(signal.SIGHUP)
        await_standing(guests, "in_force")


def test_the_bridge_guard_alone_stops_what_the_wire_guard_lets_by_to_an_allowed_bridge() -> None:
    """Without base table, frame guards and daemon: nothing else could stop it."""
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        made = Guests(testbed)
        try:
            raise_card(made)
            identity = testbed.machine.identity

            def beat() -> set[bytes]:
                return shout_beside(made, lambda: join_macvlan(made), lambda: leave_macvlan(made))

            def load(table: Table) -> None:
                made.client.run(["nft", "-f", "-"], input=table.render(flags=""))

            load(build_wire_guard(identity))
            assert beat() == {FROM_GUEST}, "the wire guard that knows no bridge"
            made.client.run(["nft", "flush", "ruleset"])
            load(build_wire_guard(identity, bridges=parse_names(BRIDGE)))
            assert beat() == {FROM_HOST, FROM_GUEST}, "the positive control"
            load(build_bridge_guard(identity))
            assert beat() == set()
            assert made.look()["host to guest"], "a guest's port is one"
        finally:
            made.close()
