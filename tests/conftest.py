# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and checks for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The speed at which examples are drawn depends on how busy the machine is, not on the program.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Figure = Callable[[str, float], None]
_FIGURE = "figure"


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """A function that takes a name and a number to report at the end of the run. A figure is never a verdict."""
    return lambda name, value: record_property(_FIGURE, (name, value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, []))
    properties = (entry for report in reports if report.when == "call" for entry in report.user_properties)
    reported = [value for name, value in properties if name == _FIGURE]
    if reported:
        terminalreporter.section("figures")
    for name, value in reported:
        terminalreporter.write_line(f"{name}: {value:.3g}")


class _FailuresAtOnce:
    """Shows why a test failed as soon as it has, so that a run that is cut off does not lose it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(report.longreprtext)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # side by side, only the process that collects the reports shows them
        config.pluginmanager.register(_FailuresAtOnce(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files of tests/golden anew; review the change with `git diff tests/golden`",
    )
    for option, program in (("--core", "psiphon-tunnel-core"), ("--server", "psiphond")):
        parser.addoption(
            option,
            type=Path,
            metavar="PATH",
            help=f"a real {program}, for the tests of the way to the first page; give --core and --server together",
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lab") and os.geteuid() != 0:
        pytest.skip("needs root")
