# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""VERIFYING: the core has a tunnel; rules, routes, TUN and the tunnel itself are being checked."""

from typing import assert_never

from psiphon_vpn.policy.model import State
from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import OpenTunnel
from psiphon_vpn.service.events import PartFailed, Timer
from psiphon_vpn.service.model import CALM_SECONDS, HELD_SECONDS, RENEWAL_SECONDS, VERIFICATIONS_PER_CORE
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.states import with_core


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    match with_core.answer_with_tunnel(plan, event):
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.Verified(number):
            _open(plan, number)
        case ev.VerificationFailed(_, detail):
            _doubt(plan, detail)
        case ev.TunnelSilent():
            pass  # the verification asks it
        case ev.LeaseLost():
            pass  # the lease is closed, and the verification checks everything
        case None:
            pass  # answered above
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    match timer:
        case Timer.VERIFICATION:
            moves.lose_part(plan, PartFailed(Part.VERIFICATION, "no outcome"))
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case (
            Timer.RETRY
            | Timer.ESTABLISH
            | Timer.SLOW
            | Timer.QUIET
            | Timer.RESCUE
            | Timer.GIVE_WAY
            | Timer.RENEWAL
            | Timer.HELD
            | Timer.WAKE
        ):
            pass
        case _ as never:
            assert_never(never)


def _open(plan: Plan, number: int) -> None:
    """Everything is right. The opening comes last, and checks once more."""
    if plan.model.tunnels < 1:
        return
    plan.move(State.OPEN, Reason.VERIFIED)
    plan.arm(Timer.HELD, HELD_SECONDS)
    plan.arm(Timer.CALM, CALM_SECONDS)
    plan.arm(Timer.RENEWAL, RENEWAL_SECONDS)
    plan.update(failures=0, doubts=0, rounds=0, data_set_aside=False, barren_looks=0)
    plan.do(OpenTunnel(number))


def _doubt(plan: Plan, detail: str) -> None:
    """Something was not right: verify again a few times, with the same core."""
    doubts = plan.model.doubts + 1
    if doubts < VERIFICATIONS_PER_CORE:
        plan.update(doubts=doubts)
        moves.verify(plan, Reason.TUNNEL_SILENT, detail)
    else:
        moves.retry_later(plan, Reason.TUNNEL_SILENT, detail)
