# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run found on a whole: which goals are met, and what grows. Pure."""

from __future__ import annotations

from collections import Counter

from psiphon_lab.bench.growth import Shape
from psiphon_lab.bench.model import Figure, Growth, Report
from psiphon_lab.bench.paired import Verdict


def count_verdicts(report: Report) -> Counter[Verdict]:
    """How many goals are met, missed, and not decided."""
    return Counter(figure.verdict for figure in report.figures.values() if figure.verdict is not None)


def list_judged(report: Report, verdict: Verdict) -> list[Figure]:
    """The figures with that verdict."""
    return [figure for figure in report.figures.values() if figure.verdict is verdict]


def list_grown(report: Report) -> list[Growth]:
    """What is not flat."""
    return [growth for growth in report.growths.values() if growth.fit.shape in {Shape.LINEAR, Shape.STEEPER}]
