# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""LOCKED: no core runs, and nothing but the plumbing of the link passes."""

from typing import assert_never

from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.model import fight_delay, unrest_delay
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason

_NO_REASON_TO_CONNECT = frozenset({Reason.UNSTABLE, Reason.SLEEPING, Reason.FIGHT})
"""Reasons for not connecting, which no longer apply once it connects."""


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    in_fight = plan.model.reason is Reason.FIGHT
    rest = any_state.answer(plan, event, under_way=False)
    match rest:
        case ev.AmendmentRefused():
            moves.load_again(plan)
        case ev.LockFought() | ev.EnforcementFailed() | ev.TunBroken() if in_fight:
            # The last two may tell that the effects of locking failed, before the timer was armed.
            plan.arm(Timer.RETRY, fight_delay(plan.model.fights))
        case ev.LockBroken() if in_fight:
            pass  # in a fight, loading whole policies would never end: the healer puts changes back
        case ev.LockFought(culprit):
            moves.fight(plan, culprit)
        case ev.EnforcementFailed():
            moves.lose_enforcement(plan, rest)
        case ev.LockBroken():
            moves.load_again(plan)
        case ev.TunBroken():
            moves.lose_tun(plan, rest)
        case ev.PartFailed() if in_fight or plan.model.reason is Reason.PART_FAILED:
            _go_on_waiting(plan)
        case ev.PartFailed():
            moves.lose_part(plan, rest)
        case ev.SleepComing():
            moves.fall_asleep(plan)
        case ev.Woke():
            moves.wake(plan)
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.CoreStartFailed() | ev.CoreExited() | ev.CoreFault() | ev.CoreRegion() | ev.CoreTunnels():
            pass  # no core runs
        case ev.RescueEnded():
            pass  # none runs: the move to this state ended it
        case ev.Verified() | ev.VerificationFailed() | ev.TunnelSilent() | ev.LeaseLost():
            pass  # nothing is being verified, and nothing is open
        case None:
            pass  # answered above
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    model = plan.model
    match timer:
        case Timer.RETRY:
            moves.begin(
                plan, Reason.CONNECTING if model.reason in _NO_REASON_TO_CONNECT else model.reason, model.detail
            )
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case Timer.WAKE:
            if model.asleep:
                moves.wake(plan)
        case (
            Timer.ESTABLISH
            | Timer.SLOW
            | Timer.QUIET
            | Timer.RESCUE
            | Timer.GIVE_WAY
            | Timer.VERIFICATION
            | Timer.RENEWAL
            | Timer.HELD
        ):
            pass
        case _ as never:
            assert_never(never)


def _go_on_waiting(plan: Plan) -> None:
    """Locking itself failed, or must not be repeated in a fight: wait before the next attempt."""
    plan.update(unrest=plan.model.unrest + 1)
    delay = unrest_delay(plan.model.unrest)
    if plan.model.reason is Reason.FIGHT:
        delay = max(delay, fight_delay(plan.model.fights))
    moves.retry_after(plan, delay)
