"""Options and checks for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are drawn says how busy the machine is, not whether the program is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Figure = Callable[[str, float], None]
_FIGURE = "figure"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Takes a name and a number that is told at the end of the run. What took how long is a figure, never a verdict."""
    return lambda name, value: record_property(_FIGURE, (name, value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, []))
    properties = (entry for report in reports if report.when == "call" for entry in report.user_properties)
    told = [value for name, value in properties if name == _FIGURE]
    if told:
        terminalreporter.section("figures")
    for name, value in told:
        terminalreporter.write_line(f"{name}: {value:.3g}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files of tests/golden anew; review the change with `git diff tests/golden`",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lab") and os.geteuid() != 0:
        pytest.skip("needs root")
