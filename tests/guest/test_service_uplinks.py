# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole service on Debian's kernels: uplinks that are no plain card, and a bridge that root allowed.

One guest for all of it: an emulated processor takes half a minute to start a service.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.bridge_of_guests import ALLOWED, BRIDGE, FROM_HOST, REFUSED
from tests.guest.access import (
    CALL,
    FLOW,
    LINE4,
    NO_PPPOE,
    NO_VLAN,
    OUT,
    PLUMBING,
    PPPOE,
    VLAN,
    Bench,
    check_evidence,
    judge,
    open_bench,
    open_sessions,
    untag,
    uplink,
)
from tests.guest.bridged import (
    GUESTS,
    JOIN,
    LEAVE,
    SHOUTS,
    look,
    make_bridge,
    read_shouts,
    shout,
)
from tests.guest.service import IDENTITY

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.probe_runner import unseen_probes
from psiphon_vpn.policy.guards import build_bridge_guard, build_wire_guard
from psiphon_vpn.policy.values import parse_names

PPPOE_HERE = shutil.which("pppoe-server") is not None


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Locked, without the daemon and without an uplink, after the positive controls."""
    with open_bench(kernel, tmp_path_factory.mktemp("guest")) as made:
        check_control(made)
        make_bridge(made)
        check_bridge_control(made)
        made.service.lock()
        yield made


def check_control(bench: Bench) -> None:
    """Without the lock every probe is seen outside, by each uplink."""
    with uplink(bench, VLAN, NO_VLAN):
        mark = bench.wire.mark()
        specs, answers = bench.probe(salt=1, interface="u0")
        assert set(answers.values()) & {LAN_A.client4, LAN_A.client6} == {LAN_A.client4, LAN_A.client6}
        assert not unseen_probes(specs, untag(bench.wire.frames_since(mark, settle=0.3))[0])
    if PPPOE_HERE:
        with uplink(bench, PPPOE, NO_PPPOE):
            mark = bench.wire.mark()
            specs, answers = bench.probe(salt=2, interface="ppp7")
            assert LINE4 in answers.values()
            frames = open_sessions(bench.wire.frames_since(mark, settle=0.3))[0]
            assert not [spec for spec in unseen_probes(specs, frames) if spec.family == 4]


@pytest.mark.requirement("R2", "R5", "R7")
def test_locked_nothing_of_programs_comes_out_by_a_vlan(bench: Bench) -> None:
    with uplink(bench, VLAN, NO_VLAN):
        mark = bench.wire.mark()
        specs, _answers = bench.probe(salt=3, interface="u0")
        inside, others = untag(bench.wire.frames_since(mark, settle=0.3))
        assert len(unseen_probes(specs, [*inside, *others])) == len(specs)
        assert set(judge([*inside, *others], bench.evidence())) <= PLUMBING
        check_evidence(bench.wire)


@pytest.fixture(scope="module")
def started(bench: Bench) -> Bench:
    """The daemon runs; there is no uplink."""
    bench.service.start()
    return bench


def check_open(status: dict[str, Any], *, interface: str) -> None:
    assert status["uplink"]["interface"] == interface
    assert {name: layer["state"] for name, layer in status["layers"].items() if layer["state"] != "ok"} == {}


@pytest.mark.requirement("R5", "R7", "R9", "R19")
def test_by_a_vlan_it_opens_and_only_the_cores_flow_comes_out_with_the_tag(started: Bench) -> None:
    bench = started
    mark = bench.wire.mark()
    with uplink(bench, VLAN, NO_VLAN):
        bench.service.wait_open()
        check_open(bench.service.wait_status("status['ipv6']"), interface="u0")
        specs, answers = bench.probe(salt=4, interface="u0")
        for label in ("root", "user"):
            assert answers[f"{label}-tcp-ipv4-internet-plain"] == plan.SERVER4
            assert answers[f"{label}-tcp-ipv6-internet-plain"] == plan.SERVER6
    inside, others = untag(bench.wire.frames_since(mark, settle=0.3))
    assert len(unseen_probes(specs, [*inside, *others])) == len(specs)
    tagged = judge(inside, bench.evidence())
    assert tagged[FLOW]
    assert set(tagged) <= {FLOW, CALL, *PLUMBING}
    assert set(judge(others, bench.evidence())) <= PLUMBING, "nothing of the core's leaves without the tag"
    check_evidence(bench.wire)


@pytest.mark.requirement("R5", "R6", "R9", "R19")
@pytest.mark.skipif(not PPPOE_HERE, reason="pppoe-server is not installed")
def test_by_a_pppoe_line_it_opens_and_only_the_cores_flow_comes_out_in_the_session(started: Bench) -> None:
    """The line comes up although the machine is locked."""
    bench = started
    mark = bench.wire.mark()
    with uplink(bench, PPPOE, NO_PPPOE):
        check_open(bench.service.wait_open(), interface="ppp7")
        specs, answers = bench.probe(salt=5, interface="ppp7")
        for label in ("root", "user"):
            assert answers[f"{label}-tcp-ipv4-internet-plain"] == plan.SERVER4
    inside, others, line = open_sessions(bench.wire.frames_since(mark, settle=0.3))
    assert len(unseen_probes(specs, [*inside, *others])) == len(specs)
    assert line["line"]
    carried = judge(inside, bench.evidence())
    assert carried[FLOW]
    assert set(carried) <= {FLOW, CALL}
    assert set(judge(others, bench.evidence())) <= PLUMBING, "nothing of the core's leaves outside of the session"
    check_evidence(bench.wire)


def check_bridge_control(bench: Bench) -> None:
    """By a card that joins, all comes out under the wire guard that knows the bridge; the bridge guard stops it."""
    assert look(bench) == {**ALLOWED, REFUSED: True}
    bridges = parse_names(BRIDGE)
    seen = []
    bench.guest.run(JOIN)
    for table in (build_wire_guard(IDENTITY, bridges=bridges), build_bridge_guard(IDENTITY)):
        (bench.guest.exchange / "alone.nft").write_text(table.render(flags=""))
        mark = bench.out.mark()
        bench.guest.run(f"nft -f /exchange/alone.nft; {shout(times=20)}")
        seen.append(read_shouts(bench.out.frames_since(mark, settle=0.3)))
    assert seen == [SHOUTS, set()], "the bridge guard alone"
    assert look(bench)[FROM_HOST[0]], "a guest's port is one"
    bench.guest.run(f"nft flush ruleset; {LEAVE}")


@pytest.mark.requirement("R19")
def test_on_an_allowed_bridge_host_and_guest_reach_each_other_until_a_port_that_leads_out_joins(started: Bench) -> None:
    """There is no uplink: a bridge needs none."""
    bench, guest = started, started.guest
    standing = "any(bridge['state'] == '{}' for bridge in status['bridges'])"
    evidence = replace(bench.evidence(), on_link={OUT: GUESTS})
    mark, wire_mark = bench.out.mark(), bench.wire.mark()
    bench.service.wait_status("status['state'] == 'LOCKED'")
    assert look(bench) == dict.fromkeys(ALLOWED, False)
    bench.service.allow_bridges(*parse_names(BRIDGE))
    bench.service.wait_status(standing.format("in_force"))
    assert look(bench) == ALLOWED
    shouting = guest.start(shout(times=1_000_000))
    guest.run(JOIN)
    bench.service.wait_status(standing.format("leads_out"))
    assert look(bench) == dict.fromkeys(ALLOWED, False)
    guest.run("touch /run/hush")
    assert all(int(line) for line in guest.finish(shouting).output.splitlines())
    frames = bench.out.frames_since(mark, settle=0.3)
    assert read_shouts(frames) == set()
    assert set(judge(frames, evidence)) <= PLUMBING
    assert set(judge(bench.wire.frames_since(wire_mark), bench.evidence())) <= PLUMBING
    for capture in (bench.wire, bench.out):
        check_evidence(capture)
