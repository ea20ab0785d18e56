# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""FAILED: the configuration is not usable. Locked until a person corrects it."""

from typing import assert_never

from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.plan import Plan


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    rest = any_state.answer(plan, event, under_way=False)
    match rest:
        case ev.AmendmentRefused() | ev.LockBroken():
            moves.load_again(plan)
        case ev.EnforcementFailed():
            moves.lose_enforcement(plan, rest)
        case ev.PartFailed():
            moves.lose_part(plan, rest)
        case ev.SleepComing():
            plan.update(asleep=True)
        case ev.Woke():
            moves.forget_sleep(plan)
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.LockFought() | ev.TunBroken():
            pass  # the healer puts changes back; nothing else is tried
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
    match timer:
        case Timer.WAKE:
            if plan.model.asleep:
                moves.forget_sleep(plan)
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case (
            Timer.RETRY
            | Timer.ESTABLISH
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
