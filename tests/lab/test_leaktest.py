# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The leak test's own decisions: what a recording proves, how attempts are recognised, what the reports say."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels_page import DATA as KERNELS
from tests.kernels_page import PAGE as KERNELS_PAGE
from tests.kernels_page import add_up
from tests.kernels_page import render as render_kernels
from tests.lab.test_judge import INNOCENT, LEAKS
from tests.leaks_page import PAGE
from tests.leaks_page import render as render_leaks
from tests.ways_page import DATA as WAYS
from tests.ways_page import PAGE as WAYS_PAGE
from tests.ways_page import render as render_ways

from psiphon_lab import packet_builder
from psiphon_lab.attacks import load_attacks
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.frames import Frame
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.judge import judge_frame, world_evidence
from psiphon_lab.launch import clean_environment
from psiphon_lab.leaktest import worker
from psiphon_lab.leaktest.cell import Broken, Cell
from psiphon_lab.leaktest.command import choose_attacks, choose_modes
from psiphon_lab.leaktest.html_report import render_page
from psiphon_lab.leaktest.junit import render_junit
from psiphon_lab.leaktest.layer_counters import parse_counters, subtract
from psiphon_lab.leaktest.matrix import conclude_all, plan_tasks
from psiphon_lab.leaktest.model import EGRESS, MODES, OWNER, Mode, Trace
from psiphon_lab.leaktest.verdict import Conclusion, Judgement, Kind, Tried, conclude, judge_recording
from psiphon_lab.leaktest.worker import Task, Told
from psiphon_lab.namespace import PATIENCE, LabError
from psiphon_lab.pcapng import BadCapture, Recording, parse, render

CORPUS = [f"A{number:02}" for number in range(1, 26)]
WIRES = {"provider_a": 0, "provider_b": 0}
SHOT = Tried(name="shot", by="root", family=4, trace=Trace(token=b"lk00000001", source_port=12345))
SHOT6 = Tried(name="shot6", by="root", family=6, trace=Trace(token=b"lk00000002", source_port=12346))


def recorded(*frames: Frame, dropped: dict[str, int] | None = None) -> Recording:
    """Frames that went through a capture file."""
    return parse(render(frames, WIRES if dropped is None else dropped))


def decide(*frames: Frame, tried: tuple[Tried, ...] = (SHOT, SHOT6), **changes: Any) -> Conclusion:
    recording = recorded(*frames, dropped=changes.pop("dropped", None))
    evidence = changes.pop("evidence", world_evidence())
    facts: dict[str, Any] = {
        "complete": recording.complete, "state_lost": "", "error": "", "controlled": {"shot", "shot6"},
        "families": (4, 6),
    }  # fmt: skip
    return conclude(judge_recording(recording, tried, evidence), tried, **{**facts, **changes})


def test_every_known_attack_exists_and_describes_itself() -> None:
    attacks = load_attacks()
    assert {attack.id[:3] for attack in attacks if attack.id.startswith("A")} == set(CORPUS)
    for attack in attacks:
        for text in (attack.name, attack.reference, attack.summary, attack.recognised, attack.control):
            assert len(text) > 8, attack.id
        assert attack.actors
        assert all(len(reason) > 15 for reason in attack.not_applicable.values()), attack.id
        assert Mode.CONTROL not in attack.not_applicable
        assert set(attack.not_applicable) < set(MODES), attack.id


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_of_each_kind_makes_a_cell_red(name: str) -> None:
    innocent = [frame for _, frame in INNOCENT.values() if not judge_frame(frame, world_evidence()).is_leak]
    assert decide(*innocent).kind is Kind.HELD
    assert decide(*innocent, LEAKS[name], *innocent).kind is Kind.LEAK


def test_a_frame_of_an_attempt_is_a_leak_even_in_the_form_of_an_innocent_one() -> None:
    solicitation = packet_builder.solicitation("02:50:53:00:0a:10", "2001:db8:a::10", "2001:db8:a::1")
    frame = Frame(time=0.0, wire="provider_a", data=solicitation, from_client=True)
    assert not judge_frame(frame, world_evidence()).is_leak
    hidden = Tried(name="shot", by="root", family=6, trace=Trace(token=packet_builder.pack_address("2001:db8:a::1")))
    assert decide(frame, tried=(hidden,), families=(6,), controlled={"shot"}).kind is Kind.LEAK


def test_a_frame_of_two_attempts_is_seen_for_both() -> None:
    """The kernel reports several groups in one frame: the control had not seen the second one's."""
    packet = packet_builder.udp_packet("192.0.2.10", "203.0.113.80", (1, 9), b"lk00000001 lk00000003")
    data = packet_builder.ip_frame("02:00:00:00:00:01", "02:00:00:00:00:02", packet)
    frame = Frame(time=1.0, wire="provider_a", data=data, from_client=True)
    other = replace(SHOT, name="other", trace=Trace(token=b"lk00000003"))
    judgement = judge_recording(recorded(frame), (SHOT, other), world_evidence())
    assert judgement.seen == {"shot": 1, "other": 1}
    assert [leak.attempt for leak in judgement.leaks] == ["shot"]


def test_a_leak_counts_for_the_family_that_it_belongs_to() -> None:
    made = packet_builder.udp_packet("2001:db8:a::10", "2001:db8:ffff::80", (12346, 9), b"x")
    data = packet_builder.ip_frame("02:00:00:00:00:01", "02:50:53:00:0a:10", made)
    conclusion = decide(Frame(time=1.5, wire="provider_a", data=data, from_client=True))
    assert conclusion.families == {4: Kind.HELD, 6: Kind.LEAK}


@pytest.mark.parametrize(
    "changes",
    [
        {"dropped": {"provider_a": 1, "provider_b": 0}},
        {"dropped": {"provider_a": 0, "provider_b": -1}},
        {"dropped": {}},
        {"state_lost": "it opened"},
        {"error": "the tool is not there"},
        {"controlled": {"shot"}},
        {"controlled": ()},
        {"tried": ()},
        {"tried": (SHOT,)},
        {"tried": (Tried(name="shot", by="root", family=4, trace=Trace(), error="no result"), SHOT6)},
    ],
    ids=str,
)
def test_what_is_not_proven_never_counts_as_held(changes: dict[str, Any]) -> None:
    conclusion = decide(**changes)
    assert conclusion.kind is Kind.INCONCLUSIVE
    assert conclusion.reason


RAW = replace(SHOT, needs=EGRESS)
OF_SHOT = Frame(
    time=0.0, wire="provider_a", data=b"\x02" * 12 + b"\x88\xb5" + SHOT.trace.token + bytes(46), from_client=True
)
BY_A_CHILD = Frame(
    time=0.0,
    wire="provider_a",
    data=packet_builder.ip_frame(
        "02:00:00:00:00:01", "02:50:53:00:0c:01", packet_builder.udp_packet("192.0.2.78", "192.0.2.1", (9, 9), b"x")
    ),
    from_client=True,
)


def test_what_a_kernel_cannot_stop_is_weaker_and_never_held() -> None:
    assert decide(OF_SHOT, tried=(RAW, SHOT6), missing=[EGRESS]).kind is Kind.WEAKER
    assert decide(OF_SHOT, missing=[OWNER], needs=[OWNER]).kind is Kind.WEAKER
    assert decide(BY_A_CHILD, missing=[EGRESS]).kind is Kind.WEAKER
    # The same machine without a leak holds: nothing is excused that did not happen.
    assert decide(tried=(RAW, SHOT6), missing=[EGRESS], needs=[OWNER]).kind is Kind.HELD


def test_a_mechanism_excuses_only_what_it_would_have_stopped() -> None:
    assert decide(OF_SHOT, tried=(RAW, SHOT6)).kind is Kind.LEAK
    assert decide(OF_SHOT, tried=(RAW, SHOT6), missing=[OWNER]).kind is Kind.LEAK
    assert decide(OF_SHOT, missing=[EGRESS], needs=[OWNER]).kind is Kind.LEAK
    assert decide(BY_A_CHILD, missing=[OWNER]).kind is Kind.LEAK
    own = replace(BY_A_CHILD, data=BY_A_CHILD.data[:6] + bytes.fromhex("025053000a10") + BY_A_CHILD.data[12:])
    assert decide(own, missing=[EGRESS]).kind is Kind.LEAK
    assert decide(OF_SHOT, BY_A_CHILD, own, tried=(RAW, SHOT6), missing=[EGRESS]).kind is Kind.LEAK


def test_a_leak_is_a_leak_even_if_part_of_the_proof_is_missing() -> None:
    assert decide(LEAKS["DNS to the router"], error="broken", state_lost="lost").kind is Kind.LEAK


def test_a_recording_comes_back_from_its_file_as_it_was() -> None:
    frames = [frame for _, frame in INNOCENT.values()] + list(LEAKS.values())
    other = Frame(time=1700000000.123456, wire="provider_b", data=b"\x01" * 61, from_client=False)
    back = recorded(*frames, other)
    assert [(frame.wire, frame.data, frame.from_client) for frame in back.frames] == [
        (frame.wire, frame.data, frame.from_client) for frame in [*frames, other]
    ]
    assert abs(back.frames[-1].time - other.time) < 1e-5
    assert back.complete


@given(st.data())
def test_a_file_that_breaks_off_is_never_complete(data: st.DataObject) -> None:
    whole = render([LEAKS["DNS to the router"]], WIRES)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with contextlib.suppress(BadCapture):
        assert not parse(cut).complete


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_complete_capture_by_chance(data: bytes) -> None:
    with contextlib.suppress(BadCapture):
        assert not parse(data).complete


def test_an_attempt_is_recognised_by_any_one_of_its_marks() -> None:
    mac = "02:00:00:00:00:01"
    packet = packet_builder.udp_packet("192.0.2.99", "203.0.113.80", (12345, 9), b"other")
    assert SHOT.trace.matches(Frame(time=0, wire="w", data=packet_builder.ip_frame(mac, mac, packet), from_client=True))
    tagged = packet_builder.frame(mac, mac, 0x88B5, b"..lk00000001..")
    assert SHOT.trace.matches(Frame(time=0, wire="w", data=tagged, from_client=True))
    assert not SHOT6.trace.matches(Frame(time=0, wire="w", data=tagged, from_client=True))
    asked = packet_builder.arp_request(mac, "10.200.3.1", "192.0.2.1")
    speaks = Trace(arp_sender=packet_builder.pack_address("10.200.3.1"))
    assert speaks.matches(Frame(time=0, wire="w", data=asked, from_client=True))
    assert not Trace().matches(
        Frame(time=0, wire="w", data=packet_builder.ip_frame(mac, mac, packet), from_client=True)
    )


def test_a_call_of_the_core_is_innocent_only_from_its_ports_to_the_servers_own() -> None:
    evidence = world_evidence(core_ports=range(61000, 61500))

    def leaks(source_port: int, target: str, port: int) -> bool:
        source = "2001:db8:a::10" if ":" in target else "192.0.2.10"
        packet = packet_builder.tcp_packet(source, target, (source_port, port), packet_builder.SYN)
        data = packet_builder.ip_frame("02:00:00:00:00:01", "02:50:53:00:0a:10", packet)
        return judge_frame(Frame(time=0, wire="provider_a", data=data, from_client=True), evidence).is_leak

    assert not leaks(61000, "198.51.100.10", 4443)
    assert not leaks(61000, "2001:db8:5::10", 4443)
    assert leaks(61000, "2001:db8:ffff::80", 4443)
    assert leaks(60999, "198.51.100.10", 4443)
    assert leaks(61500, "198.51.100.10", 4443)
    assert leaks(61000, "198.51.100.10", 80)
    assert leaks(61000, "203.0.113.80", 4443)


LISTING = """table inet psiphon_filter {
\tchain refused {
\t\tmeta l4proto tcp counter packets 7 bytes 420 reject with tcp reset comment "x"
\t\tcounter packets 2 bytes 90 reject with icmpx admin-prohibited
\t}
\tchain to_tunnel {
\t\tmeta skuid 64190 counter packets 5 bytes 300 goto refused
\t}
}
table inet other {
\tchain output {
\t\tcounter packets 99 bytes 99 drop
\t}
}
table netdev psiphon_egress {
\tchain egress {
\t\tcounter packets 3 bytes 300 drop comment "no other frame"
\t}
}
"""


def test_each_layers_own_counters_say_what_it_stopped() -> None:
    before = parse_counters(LISTING)
    assert before == {"base table: output": 9, "egress guard": 3}
    after = {"base table: output": 4, "egress guard": 10}
    assert subtract(before, after) == {"base table: output": 4, "egress guard": 7}


def make_cell(attack: str, mode: Mode, *, seen: bool = False, error: str = "") -> Cell:
    tried = (SHOT, SHOT6)
    frames = [LEAKS["TCP to a page"]] if seen and mode is not Mode.CONTROL else []
    judgement = judge_recording(recorded(*frames), tried, world_evidence())
    if mode is Mode.CONTROL:
        judgement = Judgement(frames=2, kinds={}, leaks=(), seen={"shot": 1, "shot6": 1})
    return Cell(
        attack=attack, mode=mode, seconds=0.1, tried=tried, judgement=judgement, complete=True, error=error,
        actions=("nft <flush> & \"quote\"",),
    )  # fmt: skip


def make_result(*, leak: bool = False, missing: bool = False) -> Any:
    attacks = choose_attacks(["A02", "A23"])
    cells = [make_cell(attack.id, Mode.CONTROL) for attack in attacks]
    for attack in attacks:
        for mode in (Mode.OPEN, Mode.BOOT):
            if mode in attack.not_applicable or (missing and attack.id == "A02" and mode is Mode.BOOT):
                continue
            cells.append(make_cell(attack.id, mode, seen=leak and attack.id == "A02" and mode is Mode.OPEN))
    return conclude_all(attacks, (Mode.BOOT, Mode.OPEN), cells, seconds=1.0)


def test_a_pair_that_was_never_played_is_not_green() -> None:
    assert make_result().held
    result = make_result(missing=True)
    assert not result.held
    assert result.count()[Kind.INCONCLUSIVE] == 1


def test_a_run_without_a_single_cell_is_not_green() -> None:
    assert not conclude_all((), (), [], seconds=0.0).held


def test_the_page_is_self_contained_and_shows_every_cell() -> None:
    page = render_page(make_result(leak=True))
    assert page.count("<details") == 4
    assert not re.search(r"(src|href|url|@import)\s*[=(]", page)
    assert "default-src 'none'" in page
    assert "1 of 4 leaked" in page
    assert "&lt;flush&gt;" in page
    assert "there is no core in this state" in page


def test_a_result_that_held_shows_what_is_out_of_reach() -> None:
    attacks = choose_attacks(["A02", "B01"])
    cells = [
        make_cell(attack.id, mode, seen=attack.id == "B01") for attack in attacks for mode in (Mode.CONTROL, Mode.OPEN)
    ]
    result = conclude_all(attacks, (Mode.OPEN,), cells, seconds=1.0)
    assert result.held
    assert result.count() == {"held": 1, "out-of-reach": 1}
    assert "Nothing leaked" not in render_page(result)


def test_junit_and_json_say_the_same_as_the_page() -> None:
    result = make_result(leak=True)
    root = ET.fromstring(render_junit(result))  # noqa: S314 - our own text
    assert len(root.findall(".//failure")) == 1
    assert len(root.findall(".//skipped")) == 1
    assert len(root.findall(".//testcase")) == 4
    described = json.loads(json.dumps(result.describe()))
    assert described["held"] is False
    assert described["counts"] == {"held": 2, "leak": 1, "not-applicable": 1}
    red = next(cell for cell in described["cells"] if cell["verdict"] == "leak")
    assert "203.0.113.80" in red["leaks"][0]["text"]


def test_every_pair_that_makes_sense_is_planned_once_and_every_control_too(tmp_path: Path) -> None:
    attacks = load_attacks()
    planned = [pair for task in plan_tasks(attacks, MODES, tmp_path) for pair in task.pairs]
    wanted = [(a.id, mode) for a in attacks for mode in (Mode.CONTROL, *MODES) if mode not in a.not_applicable]
    assert sorted(planned) == sorted(wanted)


def test_a_virtual_machine_plays_every_pair_the_control_first(tmp_path: Path) -> None:
    attacks = load_attacks()
    kernel = Kernel(version="6.1", image=tmp_path, modules={}, loader=tmp_path)
    everything = sorted(pair for task in plan_tasks(attacks, MODES, tmp_path) for pair in task.pairs)
    for machines in (1, 3):
        tasks = plan_tasks(attacks, MODES, tmp_path, kernel=kernel, machines=machines)
        assert sorted(pair for task in tasks for pair in task.pairs) == everything
        assert len(tasks) == machines
        assert {task.states[0][0] for task in tasks} == {Mode.CONTROL}


def test_another_virtual_machine_plays_what_one_left_that_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(version="6.1", image=tmp_path, modules={}, loader=tmp_path)
    states = ((Mode.CONTROL, ("A01", "A02")), (Mode.BOOT, ("A01",)))
    task = Task(states=states, recordings=str(tmp_path), kernel=kernel)
    opened: list[int] = []

    @contextlib.contextmanager
    def open_one(*_: Any) -> Iterator[tuple[None, None]]:
        opened.append(0)
        if len(opened) == 4:
            raise LabError("no more machines")
        yield None, None

    def play(_outside: Any, _player: Any, names: Sequence[str], mode: Mode, *, tell: Any, **_: Any) -> None:
        tell(Cell(attack=names[0], mode=mode, seconds=1.0))
        raise LabError("it broke\nconsole")

    monkeypatch.setattr(worker, "open_player", open_one)
    monkeypatch.setattr(worker, "play_state", play)
    told: list[Any] = []
    worker.run_task(task, ForkServer(), told.append)
    assert [one.text for one in told if isinstance(one, Broken)] == ["it broke\nconsole"] * 3
    assert [(cell.attack, cell.mode, cell.error) for cell in told if isinstance(cell, Cell)] == [
        ("A01", Mode.CONTROL, ""),
        ("A02", Mode.CONTROL, ""),
        ("A01", Mode.BOOT, ""),
    ]
    told.clear()
    worker.run_task(task, ForkServer(), told.append)
    assert {cell.error for cell in told if isinstance(cell, Cell)} == {"no more machines"}


@pytest.mark.lab
def test_a_worker_ends_at_once_with_who_gave_it_a_task(tmp_path: Path) -> None:
    """A virtual machine plays for hours: it went on after its run had been killed."""
    task = Task(states=((Mode.CONTROL, tuple(attack.id for attack in load_attacks())),), recordings=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", worker.__name__],
        input=worker.encode(vars(task)),
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (worker.EXIT_LEFT, b"")


def test_what_was_played_before_is_not_planned_again(tmp_path: Path) -> None:
    attacks = load_attacks()
    done = {("A01", Mode.CONTROL), ("A01", Mode.OPEN), ("A04", Mode.BOOT)}
    tasks = plan_tasks(attacks, MODES, tmp_path, done=done)
    planned = {pair for task in tasks for pair in task.pairs}
    whole = {pair for task in plan_tasks(attacks, MODES, tmp_path) for pair in task.pairs}
    assert planned == whole - done


def test_the_page_about_kernels_is_current() -> None:
    assert KERNELS_PAGE.read_text(encoding="utf-8") == render_kernels(json.loads(KERNELS.read_text(encoding="utf-8")))


def _summary(commit: str, pairs: Mapping[str, tuple[str, int]], *, kernel: str = "6.1.0") -> dict[str, Any]:
    """A machine's summary. pairs: verdict and number of frames of each attack and state."""
    cells: dict[str, dict[str, str]] = {}
    for pair, (verdict, _) in pairs.items():
        attack, state = pair.split()
        cells.setdefault(attack, {})[state] = verdict
    return {
        "machine": "vm:debian-12", "kernel": kernel, "version": "0.1.0", "commits": [commit], "missing": [],
        "cells": cells,
        "frames": {pair: frames for pair, (_, frames) in pairs.items() if frames},
        "stopped": {pair: "base table" for pair, (verdict, _) in pairs.items() if verdict == "held"},
        "reasons": {pair: commit for pair, (verdict, _) in pairs.items() if verdict == "leak"},
    }  # fmt: skip


PAIRS = st.dictionaries(
    st.sampled_from([f"{attack} {state}" for attack in ("A01", "A02", "A03") for state in ("boot", "open")]),
    st.tuples(st.sampled_from(["held", "leak"]), st.integers(0, 9)),
    min_size=1,
)


@given(PAIRS, PAIRS)
def test_results_of_a_kernel_add_up_cell_by_cell_and_the_newer_one_counts(
    old: dict[str, tuple[str, int]], new: dict[str, tuple[str, int]]
) -> None:
    found = add_up(_summary("old", old), _summary("new", new))
    wanted = _summary("new", {**old, **new})
    for name in ("cells", "frames", "stopped"):
        assert found[name] == wanted[name]
    assert found["commits"] == (["new"] if set(old) <= set(new) else ["old", "new"])
    assert found["reasons"] == {
        pair: "new" if pair in new else "old" for pair, (verdict, _) in {**old, **new}.items() if verdict == "leak"
    }
    incomplete = add_up({**_summary("old", old), "incomplete": True}, _summary("new", new))
    assert incomplete.get("incomplete", False) is not (set(old) <= set(new)), "said as long as an old cell counts"
    assert add_up(_summary("old", old, kernel="6.1.1"), _summary("new", new)) == _summary("new", new)


def test_the_page_about_ways_out_is_current() -> None:
    assert WAYS_PAGE.read_text(encoding="utf-8") == render_ways(json.loads(WAYS.read_text(encoding="utf-8")))


def test_what_a_worker_tells_is_not_of_its_own_module() -> None:
    """It runs as a program, so the classes of its module have another name for the reader."""
    assert {kind.__module__ for kind in get_args(Told)} == {"psiphon_lab.leaktest.cell"}


def test_an_attack_or_state_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(Exception, match=r"A99.*A01"):
        choose_attacks(["A99"])
    with pytest.raises(Exception, match=r"opened.*daemon-killed"):
        choose_modes(["opened"])
    assert [attack.id for attack in choose_attacks(["a09"])] == ["A09", "A09b", "A09c", "A09d"]
    assert [attack.id for attack in choose_attacks(["A09b"])] == ["A09b"]


def test_the_page_about_known_leaks_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_leaks(), "run: python -m tests.leaks_page"
