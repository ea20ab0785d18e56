# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs checks in parallel, each within a time limit; none can make this program fail or wait."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Check, Group, Outcome, Result, Verdict
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.next_step import Need, advise

TOTAL_SECONDS: Final = 25.0
"""Time limit of all checks together; unfinished checks are then unknown."""
WORKERS: Final = 6
AGAIN_SECONDS: Final = 0.4
LIVING: Final = frozenset({Group.LOCK, Group.ROUTES, Group.TUNNEL, Group.DNS})
"""Groups about things that the service may change during the run."""


@dataclass
class _Board:
    """The results of the workers."""

    results: dict[str, Result] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_check(check: Check, facts: Facts) -> Result:
    """Run one check to its end. Never raises."""
    begin = time.monotonic()
    try:
        outcome = check.run(facts)
    except Skip as skipped:
        outcome = Outcome(verdict=Verdict.SKIPPED, reason=str(skipped))
    except Unknowable as unknown:
        outcome = Outcome(verdict=Verdict.UNKNOWN, reason=str(unknown))
    except UserError as error:
        outcome = Outcome(verdict=Verdict.UNKNOWN, reason=error.why, next_step=error.next_step)
    except Exception as fault:  # noqa: BLE001  a defect of one check must not hide what the others say
        reason = _("fault in check ({name})").format(name=type(fault).__name__)
        outcome = Outcome(verdict=Verdict.UNKNOWN, reason=reason, next_step=_("Please report this."))
    return _conclude(check, outcome, time.monotonic() - begin)


def _conclude(check: Check, outcome: Outcome, seconds: float) -> Result:
    needs_help = outcome.verdict in {Verdict.FAILED, Verdict.WARNING, Verdict.UNKNOWN}
    default = _(check.next_step) if outcome.verdict is not Verdict.UNKNOWN else None
    return Result(
        check=check,
        verdict=outcome.verdict,
        reason=" ".join(outcome.reason.split()),
        next_step=(outcome.next_step or default) if needs_help else None,
        open=outcome.open,
        seconds=seconds,
    )


def run_once(checks: Sequence[Check], facts: Facts, *, seconds: float = TOTAL_SECONDS) -> tuple[Result, ...]:
    """Run checks on the same facts, in parallel.

    Args:
        checks: in the order of the results.
        facts: what they look at.
        seconds: after this time an unfinished check counts as unknown; its thread ends with the process.
    """
    board, waiting = _Board(), queue.SimpleQueue[Check | None]()
    # Checks of the same group need the same facts: spread over the groups, the workers wait less for each other.
    spread = sorted(range(len(checks)), key=lambda number: _place_in_group(checks, number))
    for number in spread:
        waiting.put(checks[number])
    deadline = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                check = waiting.get_nowait()
            except queue.Empty:
                return
            if check is None:
                return
            result = run_check(check, facts)
            with board.lock:
                board.results[check.id] = result

    workers = [threading.Thread(target=work, name="check", daemon=True) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    late = Outcome(verdict=Verdict.UNKNOWN, reason=_("no answer within {seconds:g} seconds").format(seconds=seconds))
    with board.lock:
        done = dict(board.results)
    return tuple(done.get(check.id) or _conclude(check, late, seconds) for check in checks)


def _place_in_group(checks: Sequence[Check], number: int) -> int:
    group = checks[number].group
    return sum(1 for check in checks[:number] if check.group is group)


def run_checks(
    checks: Sequence[Check],
    make_facts: Callable[[], Facts],
    *,
    seconds: float = TOTAL_SECONDS,
    pause: float = AGAIN_SECONDS,
) -> tuple[Result, ...]:
    """Run all checks; repeat failed ones about things that may just have been changing.

    Otherwise a service that changes its state during the run would be called broken. What was seen open stays open,
    whatever the second run says.

    Args:
        checks: in the order of the results.
        make_facts: fresh facts.
        seconds: for all together.
        pause: before the second run, in seconds.
    """
    deadline = time.monotonic() + seconds
    facts = make_facts()
    first = run_once(checks, facts, seconds=seconds)
    if (step := find_only_step(facts)) is not None:
        return tuple(replace(result, next_step=step) if result.next_step else result for result in first)
    doubtful = [result.check for result in first if result.wrong and result.check.group in LIVING and not result.open]
    if not doubtful or time.monotonic() + pause > deadline:
        return first
    time.sleep(pause)
    again = run_once(doubtful, make_facts(), seconds=max(0.1, deadline - time.monotonic()))
    second = {result.check.id: result for result in again}
    return tuple(second.get(result.check.id, result) for result in first)


def find_only_step(facts: Facts) -> str | None:
    """The step of a machine that nobody has set up: what the checks say helps only after it. None on every other.

    One with a service that answers is a laboratory's.
    """
    with contextlib.suppress(Unknowable):
        if not facts.set_up and isinstance(facts.service_or_reason, UserError):
            return advise(Need.SERVICE, facts.layout).step
    return None
