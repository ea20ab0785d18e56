# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's statistics, comparisons and pages. Nothing here is timed."""

from __future__ import annotations

import json
import random
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import performance_page

from psiphon_lab.bench import foreign
from psiphon_lab.bench.carrier import write_packets
from psiphon_lab.bench.command import choose_families, read_old, show_left
from psiphon_lab.bench.compare import list_changes, list_only
from psiphon_lab.bench.families import FAMILIES
from psiphon_lab.bench.growth import Shape, describe_line, fit_growth
from psiphon_lab.bench.html_page import render_page
from psiphon_lab.bench.model import Goal, Growth, Report, ReportError, Title, read_report
from psiphon_lab.bench.paired import (
    Comparison,
    Interval,
    Verdict,
    compare_rounds,
    describe_spread,
    find_interval,
    is_below_noise,
    judge_goal,
)
from psiphon_lab.bench.runner import run_families
from psiphon_lab.bench.steps import Bench, Family, Settings, Step
from psiphon_lab.bench.summary import count_verdicts, list_grown
from psiphon_lab.bench.view import render_all, render_screen
from psiphon_lab.bench.words import show_number
from psiphon_lab.namespace import LabError
from psiphon_vpn.cli.develop import bench
from psiphon_vpn.errors import UserError

VALUES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30)
RATE = Title(
    family="throughput",
    name="TCP down: rate",
    unit="Mbit/s",
    more_is_better=True,
    goal=Goal(bound=0.98, at_least=True),
)
START = Title(family="times", name="start", unit="ms", comparison=Comparison.DIFFERENCE, goal=Goal(bound=100))
MEMORY = Title(family="idle", name="memory", unit="KiB", goal=Goal(bound=40960, absolute=True))


def make_report(*, factor: float = 1.0, slope: float = 0.0, rounds: int = 9) -> Report:
    """A run in which the product's rate is a multiple of the bare core's, and something grows."""
    report = Report(about={"programs": "stand-ins", "rounds": rounds, "seconds": 60, "load": {"median": 1.0}})
    for number in range(rounds):
        report.add(RATE, 100.0 + number, (100.0 + number) * factor * (1 + 0.001 * (number % 3)))
        report.add(START, 200.0 + number, 250.0 + 2 * number)
        report.add(MEMORY, None, 30000 + number)
    growth = Growth(family="growth", name="reopened, by routes", unit="ms", number_of="routes")
    for power in range(6):
        for number in range(5):
            report.add_growth(growth, 10**power, None, 300 + slope * 10**power + number)
    return report


# -- statistics -------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_the_interval_is_around_the_median_and_made_of_values(values: list[float]) -> None:
    found = find_interval(values)
    assert found.low <= statistics.median(values) <= found.high
    assert {found.low, found.high} <= set(values)
    assert 0 <= found.confidence <= 1


@pytest.mark.parametrize(
    ("count", "cut", "confidence"), [(5, 0, 0.9375), (6, 0, 0.96875), (9, 1, 0.9609375), (12, 2, 0.9614257812)]
)
def test_the_interval_is_that_of_the_sign_test(count: int, cut: int, confidence: float) -> None:
    found = find_interval([float(value) for value in range(count)])
    assert (found.low, found.high) == (cut, count - 1 - cut)
    assert found.confidence == pytest.approx(confidence)


@given(st.integers(6, 40))
def test_with_six_rounds_or_more_it_is_as_sure_as_wanted(count: int) -> None:
    assert find_interval([float(value) for value in range(count)]).confidence >= 0.95


@pytest.mark.parametrize("count", [6, 9, 15])
def test_the_interval_contains_the_true_median_as_often_as_it_says(count: int) -> None:
    draw = random.Random(count)
    hits = sum(find_interval([draw.expovariate(1.0) for _ in range(count)]).contains(0.6931) for _ in range(2000))
    assert hits / 2000 > 0.94


@given(VALUES)
def test_a_side_beside_itself_is_the_same_and_below_the_noise(values: list[float]) -> None:
    for comparison in Comparison:
        rounds = compare_rounds(values, values, comparison)
        assert set(rounds) == {comparison.same}
        assert is_below_noise(find_interval(rounds), comparison.same)


def test_few_rounds_are_never_told_from_noise() -> None:
    assert is_below_noise(find_interval([2.0, 2.0]), 1.0)
    assert not is_below_noise(find_interval([2.0] * 6), 1.0)


@given(VALUES)
def test_quartiles_are_in_order(values: list[float]) -> None:
    found = describe_spread(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_nothing_is_compared_with_zero_or_with_another_number_of_rounds() -> None:
    with pytest.raises(ValueError, match="multiple of 0"):
        compare_rounds([0.0], [1.0], Comparison.RATIO)
    with pytest.raises(ValueError, match="number of rounds"):
        compare_rounds([1.0, 2.0], [1.0], Comparison.DIFFERENCE)
    with pytest.raises(ValueError, match="no values"):
        find_interval([])
    with pytest.raises(ValueError, match="no values"):
        describe_spread([])


@pytest.mark.parametrize(
    ("low", "high", "at_least", "verdict"),
    [
        (0.99, 1.2, True, Verdict.MET),
        (0.9, 0.97, True, Verdict.MISSED),
        (0.9, 1.1, True, Verdict.OPEN),
        (0.9, 0.97, False, Verdict.MET),
        (0.99, 1.2, False, Verdict.MISSED),
        (0.9, 1.1, False, Verdict.OPEN),
    ],
)
def test_a_goal_is_decided_only_by_the_whole_interval(
    low: float, high: float, at_least: bool, verdict: Verdict
) -> None:
    interval = Interval(low=low, high=high, confidence=0.96)
    assert judge_goal(interval, 0.98, at_least=at_least) is verdict


def test_too_few_rounds_decide_no_goal() -> None:
    assert judge_goal(Interval(low=2.0, high=3.0, confidence=0.5), 0.98, at_least=True) is Verdict.OPEN


# -- growth -----------------------------------------------------------------------------------------------------------

NUMBERS = [1, 10, 100, 1000, 10000]


@settings(max_examples=20, deadline=None)
@given(st.floats(1, 1e4), st.integers(0, 1000))
def test_noise_around_a_constant_is_flat(base: float, seed: int) -> None:
    draw = random.Random(seed)
    points = {number: [base * draw.uniform(0.98, 1.02) for _ in range(5)] for number in NUMBERS}
    assert fit_growth(points).shape is Shape.FLAT


@settings(max_examples=20, deadline=None)
@given(st.floats(1, 1e3), st.floats(0.5, 50), st.integers(0, 1000))
def test_a_line_is_found_with_its_slope(base: float, share: float, seed: int) -> None:
    draw = random.Random(seed)
    slope = share * base / NUMBERS[-1]
    points = {number: [(base + slope * number) * draw.uniform(0.99, 1.01) for _ in range(5)] for number in NUMBERS}
    found = fit_growth(points)
    assert found.shape is Shape.LINEAR
    assert found.slope == pytest.approx(slope, rel=0.2)
    assert found.low <= found.slope <= found.high


def test_a_square_is_steeper_than_a_line() -> None:
    points = {number: [100 + number * number / 1e3] * 5 for number in NUMBERS}
    assert fit_growth(points).shape is Shape.STEEPER


def test_what_grows_and_then_no_longer_levels_off() -> None:
    found = fit_growth({1: [1.3, 1.2], 10: [9.0, 9.8], 100: [16.0, 15.0], 1000: [15.9, 16.1]})
    assert found.shape is Shape.LEVELS


def test_growth_beside_the_bare_core_is_that_of_the_ratio() -> None:
    growth = Growth(family="growth", name="round trip, by flows", unit="ms", number_of="flows")
    report = Report()
    for number in NUMBERS:
        for turn in range(3):
            report.add_growth(growth, number, number + turn, 1.5 * (number + turn))
    assert growth.fit.shape is Shape.FLAT
    report.add_growth(growth, 100_000, 1.0, 90.0)
    assert growth.fit.shape is not Shape.FLAT


def test_one_bad_round_makes_no_growth() -> None:
    points = {number: [10.0, 10.1, 9.9, 10.0, 10.0] for number in NUMBERS}
    points[1000][2] = 900.0
    assert fit_growth(points).shape is Shape.FLAT


def test_what_gets_cheaper_is_flat() -> None:
    assert fit_growth({number: [1000.0 - number / 20] * 5 for number in NUMBERS}).shape is Shape.FLAT


def test_two_points_say_nothing() -> None:
    found = fit_growth({1: [1.0], 10: [100.0]})
    assert found.shape is Shape.UNKNOWN
    assert describe_line(found, [1, 10]) == []


# -- the report -------------------------------------------------------------------------------------------------------


def test_a_report_survives_its_json() -> None:
    report = make_report(factor=0.9, slope=0.01)
    report.failures["times: start"] = "LabError: no page"
    text = json.dumps(report.describe())
    again = read_report(json.loads(text))
    assert json.dumps(again.describe()) == text


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"format": 99},
        {"format": 1, "about": {}, "failures": {}, "figures": [{}], "growths": []},
        {"format": 1, "about": {}, "failures": {}, "figures": [], "growths": [{"product": {"x": [1]}}]},
        {"format": 1, "about": 7, "failures": {}, "figures": [], "growths": []},
    ],
)
def test_what_is_no_report_is_refused(data: object) -> None:
    with pytest.raises(ReportError):
        read_report(data)


def test_a_figure_says_what_it_found() -> None:
    report = make_report(factor=0.8)
    rate, memory = report.figures[RATE.key], report.figures[MEMORY.key]
    assert rate.verdict is Verdict.MISSED
    assert not rate.is_noise
    assert memory.verdict is Verdict.MET
    assert memory.compared is None
    assert make_report().figures[RATE.key].verdict is Verdict.MET
    assert count_verdicts(report) == {Verdict.MISSED: 1, Verdict.MET: 2}


# -- two runs ---------------------------------------------------------------------------------------------------------


def test_two_runs_of_the_same_have_no_change() -> None:
    assert list(list_changes(make_report(), make_report())) == []


@pytest.mark.parametrize(("before", "after", "better"), [(0.8, 1.0, True), (1.0, 0.8, False)])
def test_a_change_beyond_noise_is_reported_with_its_direction(before: float, after: float, better: bool) -> None:
    (change,) = list_changes(make_report(factor=before), make_report(factor=after))
    assert (change.key, change.better) == (RATE.key, better)


def test_a_change_of_few_rounds_is_not_reported() -> None:
    assert list(list_changes(make_report(factor=0.8, rounds=2), make_report(rounds=2))) == []


def test_a_growth_that_became_flat_is_reported() -> None:
    (change,) = list_changes(make_report(slope=0.05), make_report())
    assert change.better is True
    assert change.after.startswith("flat")
    (change,) = list_changes(make_report(), make_report(slope=0.05))
    assert change.better is False


def test_what_only_one_run_measured_is_listed_and_not_compared() -> None:
    old, new = make_report(), make_report()
    del new.figures[RATE.key]
    assert list(list_changes(old, new)) == []
    assert list_only(old, new) == ([RATE.key], [])
    new.failures["throughput: TCP down"] = "LabError: x"
    (change,) = list_changes(old, new)
    assert change.better is None


# -- what people see --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags and whether they are closed."""

    VOID = frozenset({"meta", "line", "circle", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.svg_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in {"src", "href", "onclick", "onload"}, (tag, name)
            if name in {"x1", "x2", "y1", "y2", "cx", "cy"}:
                float(value or "nothing")


@pytest.mark.parametrize("report", [Report(), make_report(), make_report(factor=0.5, slope=3.0), make_report(rounds=1)])
def test_the_page_needs_nothing_from_elsewhere(report: Report) -> None:
    text = render_page(report, list(list_changes(make_report(), report)))
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "").replace("Http-Equiv", "")
    assert page.tags.count("svg") == len(report.growths) + sum(bool(figure.base) for figure in report.figures.values())
    assert not re.search(r"\b(nan|inf)\b", text)


def test_names_are_escaped_in_the_page() -> None:
    report = Report(about={"processor": "<b>x</b>"})
    report.add(Title(family="<i>", name="<u>", unit="&"), 1.0, 1.0)
    report.failures["<s>"] = "<q>"
    text = render_page(report)
    assert not re.search(r"<(i|u|s|q)>", text)
    assert "<b>x" not in text


@settings(max_examples=10, deadline=None)
@given(st.floats(0.1, 3), st.floats(0, 10), st.integers(1, 12))
def test_a_screenful_fits_the_smallest_terminal(factor: float, slope: float, rounds: int) -> None:
    report = make_report(factor=factor, slope=slope, rounds=rounds)
    for number in range(8):
        title = Title(
            family="throughput", name=f"a very long name of a figure that goes on, {number}: rate", unit="Mbit/s",
            goal=Goal(bound=0.5),
        )  # fmt: skip
        report.add(title, 1.0, 2.0)
        report.add(Title(family=f"family {number % 2}", name="x", unit="ms"), 1.0, 1.0)
        name = f"a very long name of a growth that goes on, {number}, by routes"
        for power in range(4):
            growth = Growth(family="growth", name=name, unit="s/100 MB", number_of="routes")
            report.add_growth(growth, 10**power, None, 1.0 + 10**power)
    for changes in (None, list(list_changes(make_report(), report)) * 4):
        lines = list(render_screen(report, changes, apart=3))
        assert len(lines) <= 23
        assert max(map(len, lines)) <= 80
    assert len(list(render_all(report))) == len(report.figures) + len(report.growths)


def test_the_screenful_names_what_misses_its_goal_and_what_grows() -> None:
    text = "\n".join(render_screen(make_report(factor=0.8, slope=0.05), None))
    assert "TCP down: rate" in text
    assert "by routes" in text
    assert list_grown(make_report()) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.00"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert show_number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7200, "120:00")])
def test_the_time_that_is_left_is_shown_in_minutes(seconds: float, text: str) -> None:
    assert show_left(seconds) == text


# -- the command ------------------------------------------------------------------------------------------------------


def test_families_are_chosen_by_name() -> None:
    assert choose_families([]) == FAMILIES
    assert [family.name for family in choose_families(["idle", "throughput"])] == ["throughput", "idle"]
    with pytest.raises(UserError, match="no family speed"):
        choose_families(["speed"])


def test_every_family_plans_steps_with_a_time_and_quick_is_quicker() -> None:
    for family in FAMILIES:
        slow, quick = family.plan(Settings()), family.plan(Settings(rounds=2, quick=True))
        assert all(step.seconds > 0 for step in (*slow, *quick))
        assert 0 < sum(step.seconds for step in quick) < sum(step.seconds for step in slow)
        assert len({step.name for step in slow}) == len(slow), family.name


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', "{"])
def test_an_older_run_that_is_malformed_is_refused_with_a_next_step(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_old(path)
    assert "--json" in caught.value.next_step


@pytest.mark.parametrize("option", ["--core", "--server"])
def test_a_real_core_needs_a_real_server(option: str) -> None:
    result = CliRunner().invoke(bench, [option, __file__])
    assert isinstance(result.exception, UserError)
    assert "Give --core and --server together." in result.exception.next_step


def test_a_step_that_fails_is_noted_and_the_next_one_runs() -> None:
    done = []

    def fail(_bench: Bench) -> None:
        raise LabError("no page\nand a long log")

    family = Family(
        name="x",
        summary="",
        plan=lambda _settings: [
            Step(name="one", seconds=1, run=fail),
            Step(name="two", seconds=1, run=lambda _bench: done.append(True)),
        ],
    )
    told: list[tuple[str, float]] = []
    report = run_families([family], Settings(), tell=lambda name, _so_far, left: told.append((name, left)))
    assert report.failures == {"x: one": "LabError: no page ... and a long log"}
    assert done == [True]
    assert [name for name, _left in told] == ["x: one", "x: two"]
    assert told[0][1] > told[1][1] > 0


def test_an_interrupt_ends_the_run_and_keeps_what_was_measured() -> None:
    def interrupt(_bench: Bench) -> None:
        raise KeyboardInterrupt

    steps = [
        Step(name="one", seconds=1, run=lambda bench: bench.report.add(RATE, 1.0, 1.0)),
        Step(name="two", seconds=1, run=interrupt),
        Step(name="three", seconds=1, run=lambda bench: bench.report.add(START, 1.0, 1.0)),
    ]
    families = [Family(name=name, summary="", plan=lambda _settings: steps) for name in ("x", "y")]
    report = run_families(families, Settings(), tell=lambda _name, _so_far, _left: None)
    assert [*report.figures] == [RATE.key]
    assert report.about["families"] == ["x"]


# -- the load ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(0, 60))
def test_the_carrier_writes_whole_packets_and_keeps_the_rest(packets: list[bytes], cut: int) -> None:
    import os
    import socket

    stream = b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        rest = write_packets(here.fileno(), stream[:cut])
        rest = write_packets(here.fileno(), rest + stream[cut:])
        here.shutdown(socket.SHUT_WR)
        assert rest == b""
        assert [os.read(there.fileno(), 100) for _ in packets] == packets


def test_a_foreign_commit_is_one_transaction() -> None:
    data = foreign.build_commit(foreign.NEWTABLE)
    kinds, at = [], 0
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 6], "little")
        kinds.append(kind)
        at += length
    assert at == len(data)
    assert kinds == [foreign.BATCH_BEGIN, foreign.NEWTABLE, foreign.BATCH_END]


# -- the document -----------------------------------------------------------------------------------------------------


def test_the_page_of_the_document_says_what_the_runs_found() -> None:
    first, second = make_report(factor=0.5, slope=0.05), make_report()
    for report in (first, second):
        report.about |= {"families": ["throughput", "times", "idle", "growth"], "programs": "stand-ins"}
        report.about |= dict.fromkeys(("kernel", "processor", "processors", "when", "commit"), "x")
        report.about["load"] = {"least": 0.0, "median": 1.0, "most": 2.0}
    runs: dict[str, Any] = {}
    performance_page.merge(runs, first)
    text = performance_page.render(runs)
    assert "| **missed** |" in text
    assert "**linear" in text
    assert "added up" not in text
    second.about |= {"families": ["throughput"], "commit": "y"}
    performance_page.merge(runs, second)
    text = performance_page.render(runs)
    assert "Results of 2 states of the project are added up here: commits" in text
    assert "| **missed** |" not in text
    assert "**linear" in text, "the other families stay"


def test_the_document_is_what_the_generator_makes_of_its_runs() -> None:
    text = performance_page.PAGE.read_text(encoding="utf-8")
    assert text == performance_page.render(performance_page.read_known())
