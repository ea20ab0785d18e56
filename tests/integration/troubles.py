"""What the tests of lasting trouble look at."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from tests.integration.stage import Stage

SAMPLE_SECONDS = 0.02


def status_of(stage: Stage) -> dict[str, Any]:
    status = stage.machine.read_status()
    assert status is not None
    return status


def wait_reason(stage: Stage, reason: str, *, seconds: float = 10) -> dict[str, Any]:
    stage.machine.wait_for(lambda: status_of(stage)["reason_code"] == reason, f"the reason {reason}", seconds=seconds)
    return status_of(stage)


def watch_states(stage: Stage, seconds: float) -> list[str]:
    """The states that the status shows over a time."""
    seen: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = status_of(stage)
        assert status["locked"] is True
        seen.append(status["state"])
        time.sleep(SAMPLE_SECONDS)
    return seen


def moves_in(log: str) -> int:
    return len(re.findall(r"runner: [A-Z]+ -> [A-Z]+", log))


def read_cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
