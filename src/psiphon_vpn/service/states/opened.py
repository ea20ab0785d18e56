# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""OPEN: applications go through the tunnel, while the lease runs. Every move out of it closes the lease first."""

from typing import assert_never

from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.states import with_core


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    match with_core.answer_with_tunnel(plan, event):
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.TunnelSilent(detail):
            # Packets and a question went unanswered for seconds. The core would notice much later that its server is
            # blocked; a new one turns to the others at once.
            moves.retry_later(plan, Reason.TUNNEL_SILENT, detail)
        case ev.LeaseLost(expired):
            moves.lose_lease(plan, expired=expired)
        case ev.Verified() | ev.VerificationFailed():
            pass  # already open
        case None:
            pass  # answered above
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    match timer:
        case Timer.RENEWAL:
            moves.lose_lease(plan, expired=True)
        case Timer.HELD:
            any_state.hold(plan)
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
            | Timer.WAKE
        ):
            pass
        case _ as never:
            assert_never(never)
