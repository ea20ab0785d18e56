# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers for tests of lasting trouble."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.testbed import Testbed

from psiphon_lab.namespace import PATIENCE


def wait_reason(testbed: Testbed, reason: str, *, seconds: float = PATIENCE) -> dict[str, Any]:
    testbed.machine.wait_for(
        lambda: testbed.read_status()["reason_code"] == reason, f"the reason {reason}", seconds=seconds
    )
    return testbed.read_status()


def watch_states(testbed: Testbed, until: Callable[[], bool], what: str) -> list[str]:
    """The states that the status shows until something happens."""
    seen: list[str] = []

    def look() -> bool:
        status = testbed.read_status()
        assert status["locked"] is True
        seen.append(status["state"])
        return until()

    testbed.machine.wait_for(look, what)
    return seen


def count_tries(testbed: Testbed, before: int) -> int:
    """How often the log, from a given place on, says that the service begins to connect, without news while it does."""
    return len(re.findall(r"runner: (?!CONNECTING)[A-Z]+ -> CONNECTING", testbed.machine.read_log()[before:]))


def moves_in(log: str) -> int:
    return len(re.findall(r"runner: [A-Z]+ -> [A-Z]+", log))


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
