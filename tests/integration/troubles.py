"""What the tests of lasting trouble look at."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.stage import Stage

from psiphon_lab.namespace import PATIENCE


def status_of(stage: Stage) -> dict[str, Any]:
    status = stage.machine.read_status()
    assert status is not None
    return status


def wait_reason(stage: Stage, reason: str, *, seconds: float = PATIENCE) -> dict[str, Any]:
    stage.machine.wait_for(lambda: status_of(stage)["reason_code"] == reason, f"the reason {reason}", seconds=seconds)
    return status_of(stage)


def watch_states(stage: Stage, until: Callable[[], bool], what: str) -> list[str]:
    """The states that the status shows until something happens."""
    seen: list[str] = []

    def look() -> bool:
        status = status_of(stage)
        assert status["locked"] is True
        seen.append(status["state"])
        return until()

    stage.machine.wait_for(look, what)
    return seen


def count_tries(stage: Stage, before: int) -> int:
    """How often the log, from a place in it on, says that it begins to connect, not that it knows more meanwhile."""
    return len(re.findall(r"runner: (?!CONNECTING)[A-Z]+ -> CONNECTING", stage.machine.read_log()[before:]))


def moves_in(log: str) -> int:
    return len(re.findall(r"runner: [A-Z]+ -> [A-Z]+", log))


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
