# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Restoring: when it is a fight, who did it, and what the kernel's announcements say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_lists import NoLists
from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop

from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.images import Images
from psiphon_vpn.linux.lock import Area, Restored
from psiphon_vpn.linux.monitor import NetworkChange, parse_changes
from psiphon_vpn.linux.netlink import HEADER, write_attribute
from psiphon_vpn.linux.nfnetlink import Generation
from psiphon_vpn.linux.nft import Nft, RulesetError
from psiphon_vpn.linux.rtbatch import encode_route, encode_rule
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.routing import RULE_PRIORITIES, build_routes, build_rules
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.service.culprit import UNKNOWN, describe_committer, describe_port
from psiphon_vpn.service.events import Intent
from psiphon_vpn.service.fight import AT_ONCE, CALM_SECONDS, MAX_PAUSE_SECONDS, SWEEP_SECONDS, WINDOW_SECONDS, Fight
from psiphon_vpn.service.healer import FOREIGN_SECONDS, Healer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.service.runner import Runner, Surroundings


def test_a_few_changes_are_put_back_at_once_and_more_of_them_are_a_fight() -> None:
    fight = Fight()
    reported = []
    for number in range(AT_ONCE + 1):
        reported.append(fight.strike(number * 0.1))
        assert fight.wait(number * 0.1) == 0
        fight.heal(number * 0.1)
    assert reported == [False] * AT_ONCE + [True]
    assert fight.wait(AT_ONCE * 0.1) > 0


def test_changes_with_time_between_them_are_never_a_fight() -> None:
    fight = Fight()
    apart = WINDOW_SECONDS / AT_ONCE + 0.01
    for number in range(500):
        assert not fight.strike(number * apart)
        fight.heal(number * apart)
    assert fight.wait(499 * apart) == 0


def test_one_sweep_that_takes_away_piece_by_piece_is_one_change() -> None:
    fight = Fight()
    for sweep in range(AT_ONCE):
        assert not any(fight.strike(sweep * 0.1 + piece * 0.001) for piece in range(15))


def test_a_fight_is_noticed_by_the_blows_also_where_nothing_was_put_back_between_them() -> None:
    fight = Fight()
    assert [fight.strike(number * 0.05) for number in range(AT_ONCE + 1)][-1]
    assert fight.wait(1.0) == 0, "nothing was restored yet"


def test_the_pauses_grow_up_to_their_limit_and_a_calm_ends_the_fight() -> None:
    fight = Fight()
    now, pauses = 0.0, []
    for _ in range(40):
        fight.strike(now)
        fight.heal(now)
        pauses.append(fight.pause)
        now += max(fight.pause, SWEEP_SECONDS) + 0.001
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE_SECONDS
    assert fight.settle(now) is None
    now += CALM_SECONDS
    over = fight.settle(now)
    assert over is not None
    assert over[0] == 40 - AT_ONCE
    assert fight.wait(now) == 0
    assert fight.strike(now) is False


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=300))
def test_whoever_is_ever_so_quick_is_answered_at_most_about_once_a_second(gaps: list[float]) -> None:
    fight, now, done = Fight(), 0.0, 0
    for gap in gaps:
        now += gap
        fought = fight.strike(now)
        if fight.wait(now) == 0:
            fight.heal(now)
            done += fought
    # One for each of the growing pauses, and one a second.
    assert done <= 8 + now / MAX_PAUSE_SECONDS


def test_a_fight_is_reported_with_the_name_of_who_does_it_and_a_next_step() -> None:
    reported = explain(Reason.FIGHT, "ufw (pid 7)")
    assert "ufw (pid 7)" in reported.sentence
    assert reported.next_step is not None
    assert "ufw (pid 7)" in reported.next_step
    assert "log of psiphon-vpn" in (explain(Reason.FIGHT).next_step or "")


def test_a_committer_is_named_as_the_kernel_names_it() -> None:
    assert describe_committer("firewalld", 12) == "firewalld (pid 12)"
    assert describe_committer("", 12) == "a program (pid 12)"


@pytest.mark.requirement("R24")
def test_a_program_cannot_write_lines_into_the_journal_or_onto_a_terminal_by_its_name() -> None:
    assert describe_committer("a\nERROR \x1b[2J", 12) == "a?ERROR ?[2J (pid 12)"


def test_a_port_id_is_a_living_process_a_hidden_one_or_only_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        # Popen learns of the exec from a pipe that the kernel closes just before it changes the name (begin_new_exec).
        wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "the program's name")
        assert describe_port(child.pid) == f"sleep (pid {child.pid})"
        child.kill()
    assert describe_port(child.pid) == f"a program that is gone (netlink port id {child.pid})"
    # The second socket of a process gets a number that no process has (af_netlink.c, netlink_autobind).
    assert describe_port(4_294_963_201) == "a program that is gone (netlink port id 4294963201)"
    assert describe_port(0) == UNKNOWN

    def deny(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", deny)
    assert describe_port(child.pid) == f"a program (pid {child.pid})"


def announce(kind: int, body: bytes, port: int) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, 0, 1, port) + body + b"\0" * (-len(body) % 4)


def test_a_rule_or_route_that_goes_is_distinguished_from_a_strangers_and_with_its_sender() -> None:
    rules = build_rules(Identity(uid=64190, gid=64190))
    for rule in rules:
        kind, body = encode_rule(rule)
        assert parse_changes(announce(kind + 1, body, 77)) == (NetworkChange("rule", ours=True, removed=True, port=77),)
        assert parse_changes(announce(kind, body, 0)) == (NetworkChange("rule", ours=True),)
    for route in build_routes(tun=True, open_ipv4=True, open_ipv6=True, ipv6_probe=("2001:db8::1",)):
        kind, body = encode_route(route, 5)
        assert parse_changes(announce(kind + 1, body, 77))[0].ours
    stranger = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 0, 0, 1, 0)
    for priority in (RULE_PRIORITIES[0] - 1, RULE_PRIORITIES[-1] + 1):
        body = stranger + write_attribute(6, struct.pack("=I", priority))
        assert parse_changes(announce(33, body, 77)) == (NetworkChange("rule", removed=True, port=77),)
    body = stranger + write_attribute(15, struct.pack("=I", 254))
    assert not parse_changes(announce(25, body, 77))[0].ours


def test_a_link_that_is_down_says_its_name_and_one_without_carrier_is_only_lost() -> None:
    def link(kind: int, flags: int) -> NetworkChange:
        body = struct.pack("=BxHiII", 0, 0, 9, flags, 0) + write_attribute(3, names.TUN_NAME.encode() + b"\0")
        (change,) = parse_changes(announce(kind, body, 0))
        return change

    assert link(16, 0x10001) == NetworkChange("link", 9, name=names.TUN_NAME)
    assert link(16, 0x1) == NetworkChange("link", 9, lost=True, name=names.TUN_NAME)
    assert link(16, 0x0) == NetworkChange("link", 9, lost=True, down=True, name=names.TUN_NAME)
    assert link(17, 0x10001) == NetworkChange("link", 9, lost=True, down=True, gone=True, name=names.TUN_NAME)


@given(st.binary(max_size=200))
def test_no_bytes_of_any_kind_make_the_reading_of_announcements_fail(data: bytes) -> None:
    parse_changes(data)
    for kind in (16, 17, 20, 24, 25, 32, 33):
        parse_changes(announce(kind, data, 1))


class _Counting(FakeLock):
    """Records the areas that it is asked to check."""

    def __init__(self, looks: set[str]) -> None:
        super().__init__()
        self.tun = Tun(9)
        self.looks = looks

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        self.looks.add("filters, changed" if area is Area.FILTERS and changed else str(area.value))
        return Restored()


def make_runner(lock: FakeLock) -> Runner:
    """The runner of a service that its user has stopped."""
    around = Surroundings(identity=IDENTITY, core=None, state_dir=Path("/nowhere"), lists=NoLists())  # type: ignore[arg-type]
    return Runner(surroundings=around, lock=lock, model=Model(intent=Intent.STOPPED), on_change=lambda: None)


def hear(change: NetworkChange | None) -> set[str]:
    """The areas that are checked after a change. The skipping clock lets enough time pass for everything that waits."""
    looks: set[str] = set()

    async def look_at_links() -> None:
        looks.add("links")

    async def scenario() -> None:
        lock = _Counting(looks)
        runner = make_runner(lock)
        healer = Healer(runner=runner, lock=lock, own=OWN, look_at_links=look_at_links)
        runner.tasks.start("events", runner.run())
        for watch in (healer.watch_network, healer.watch_routes, healer.watch_filters):
            runner.tasks.start(watch.__name__, watch())
        healer.on_network(change)
        await asyncio.sleep(60)
        await runner.tasks.close()

    with contextlib.closing(SkippingLoop()) as loop:
        loop.run_until_complete(scenario())
    return looks


@pytest.mark.requirement("R1", "R9")
@pytest.mark.parametrize(
    ("change", "looked_at"),
    [
        (None, True),
        (NetworkChange("link", 9, name=names.TUN_NAME), False),  # a core took the TUN
        (NetworkChange("link", 9, lost=True, name=names.TUN_NAME), False),  # or released it
        (NetworkChange("link", 9, name=names.TUN_NAME, misfit=True), True),  # no packet may wait in it any more
        (NetworkChange("link", 9, name="other"), True),  # renamed while it is up
        (NetworkChange("link", 9, lost=True, down=True, name=names.TUN_NAME), True),
        (NetworkChange("link", 9, lost=True, down=True, gone=True, name=names.TUN_NAME), True),
        (NetworkChange("address", 9), True),
        (NetworkChange("route", ours=True, port=77), False),
        (NetworkChange("rule", ours=True, removed=True, port=77), False),
        (NetworkChange("route", ours=True, port=78), True),
        (NetworkChange("route", ours=True, removed=True, port=0), True),  # the kernel itself
        (NetworkChange("rule", port=0), True),
        (NetworkChange("link", 2, name="eth0"), False),
    ],
)
def test_rules_routes_and_tun_are_looked_at_for_all_but_our_own_doing_and_the_cores(
    change: NetworkChange | None, looked_at: bool
) -> None:
    assert ("network" in hear(change)) is looked_at


@pytest.mark.requirement("R1", "B4")
@pytest.mark.parametrize(
    ("change", "looked_at"),
    [
        (None, True),
        (NetworkChange("traffic", 3, port=78), True),
        (NetworkChange("traffic", 3), True),  # the kernel itself
        (NetworkChange("traffic", 3, port=77), False),
        (NetworkChange("traffic", 4, port=78), False),  # an interface without one of our filters
        (NetworkChange("link", 3, name="eth0"), False),
    ],
)
def test_filters_are_looked_at_after_a_change_of_others_at_a_card_that_has_one(
    change: NetworkChange | None, looked_at: bool
) -> None:
    found = hear(change)
    # A check of the links, which may find another card of the same name, is followed by one of the filters.
    assert ("links" in found) == (change is None or change.kind != "traffic")
    assert any(look.startswith("filters") for look in found) == (looked_at or "links" in found)
    assert ("filters, changed" in found) == looked_at


FOREIGN = Generation(number=7, pid=5, process="dockerd", tables=frozenset({"filter"}), port=5, harmful=True)
NEAR = {
    "a table of the service": replace(FOREIGN, tables=frozenset({names.BASE_TABLE}), ours=True),
    "a table that is not known": replace(FOREIGN, ours=True),
    "no table that was named": replace(FOREIGN, tables=frozenset()),
    "commits were missed": None,
    "its first part": replace(FOREIGN, number=0, ours=True),
}


def read_after(commits: list[tuple[float, Generation | None]]) -> list[float]:
    """When the rules are read, in seconds, after commits at these seconds."""
    read: list[float] = []
    began = 0.0

    class Reading(FakeLock):
        async def restore(self, area: Area, *, changed: bool = False) -> Restored:
            if area is Area.RULES:
                read.append(asyncio.get_running_loop().time() - began)
            return Restored()

    async def scenario() -> None:
        nonlocal began
        lock = Reading()
        runner = make_runner(lock)
        healer = Healer(runner=runner, lock=lock, own=OWN, look_at_links=lambda: asyncio.sleep(0))
        runner.tasks.start("events", runner.run())
        runner.tasks.start("rules", healer.watch_rules())
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at, commit in commits:
            await asyncio.sleep(began + at - loop.time())
            healer.on_commit(commit)
        await asyncio.sleep(60)
        await runner.tasks.close()

    with contextlib.closing(SkippingLoop()) as loop:
        loop.run_until_complete(scenario())
    return read


def test_many_commits_of_others_are_read_together_and_the_first_and_the_last_of_them_always() -> None:
    commits: list[tuple[float, Generation | None]] = [(number / 1000, FOREIGN) for number in range(1001)]
    read = read_after(commits)
    assert read[0] == pytest.approx(0)
    assert len(read) <= 1 / FOREIGN_SECONDS + 2
    assert 1 <= read[-1] <= 1 + FOREIGN_SECONDS


@pytest.mark.requirement("R1", "R9")
@pytest.mark.parametrize("near", NEAR)
def test_a_commit_that_may_touch_the_lock_is_read_at_once_however_many_others_there_are(near: str) -> None:
    commits: list[tuple[float, Generation | None]] = [(number / 100, FOREIGN) for number in range(101)]
    commits.insert(55, (0.545, NEAR[near]))
    # A commit in several parts is over with its last one.
    over = 0.55 if near == "its first part" else 0.545
    assert any(at == pytest.approx(over) for at in read_after(commits))
    # The positive control: without it there is no reading then.
    del commits[55]
    assert not any(0.54 < at < 0.56 for at in read_after(commits))


@pytest.mark.requirement("R1", "R9")
@given(st.lists(st.tuples(st.floats(0, 0.3), st.sampled_from([FOREIGN, *NEAR.values()])), min_size=1, max_size=30))
@settings(max_examples=30)
def test_after_every_commit_there_is_a_reading(gaps: list[tuple[float, Generation | None]]) -> None:
    at, commits = 0.0, []
    for gap, commit in gaps:
        at += gap
        commits.append((at, commit))
    whole = [(at, commit) for at, commit in commits if commit is None or commit.number]
    read = read_after(commits)
    for at, _commit in whole:
        assert any(at - 1e-6 <= begun <= at + 1.0 + FOREIGN_SECONDS for begun in read), (
            "a fight's pause, or the others'"
        )


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "rest",
    [
        write_attribute(3, struct.pack(">I", 1)),  # an anonymous set without a name
        write_attribute(3, b"\0\1"),  # flags of another size
        write_attribute(4, write_attribute(1, write_attribute(1, b"exthdr\0"))),  # an expression without its data
    ],
)
def test_a_listing_that_makes_no_sense_is_no_reading(rest: bytes) -> None:
    class Netlink:
        def dump(self, kind: int, family: int, body: bytes = b"") -> list[bytes]:
            return [write_attribute(1, b"t\0") + rest]

        def read_generation(self) -> int:
            return 7

    netlink = cast(Any, Netlink())
    images = Images(netlink)
    table = Table(family="inet", name="t", chains=())
    images.keep(table, ())
    with pytest.raises(RulesetError):
        asyncio.run(Nft(netlink, images=images).verify([table]))
