"""OPEN: applications go through the tunnel, while the lease runs. Every move out of it closes the lease first."""

from typing import assert_never

from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason


def answer(plan: Plan, event: ev.Event) -> None:
    """Answer an event."""
    match event:
        case ev.UserStart():
            any_state.go_on(plan)
        case ev.UserStop():
            any_state.stop(plan)
        case ev.UserRestart():
            any_state.restart(plan)
        case ev.SettingsGood():
            any_state.take_settings(plan, event)
        case ev.SettingsBad():
            any_state.refuse_settings(plan, event)
        case ev.NetworkSeen():
            any_state.see_network(plan, event, moves.verify_rules)
        case ev.UplinkLost():
            any_state.lose_uplink(plan, moves.verify_rules)
        case ev.AmendmentRefused():
            moves.verify_rules(plan)
        case ev.LockBroken(detail):
            moves.verify_rules(plan, detail)
        case ev.LockFought(culprit):
            moves.fight(plan, culprit)
        case ev.EnforcementFailed():
            moves.lose_enforcement(plan, event)
        case ev.TunBroken():
            moves.lose_tun(plan, event)
        case ev.PartFailed():
            moves.lose_part(plan, event)
        case ev.SleepComing():
            moves.fall_asleep(plan)
        case ev.Woke():
            moves.wake(plan)
        case ev.TimerFired(timer):
            _answer_timer(plan, timer)
        case ev.CoreStartFailed():
            moves.miss_core(plan, event)
        case ev.CoreExited():
            moves.lose_core(plan, event)
        case ev.CoreFault(_, fault):
            plan.update(fault=fault)
        case ev.CoreRegion(_, region):
            plan.update(region=region)
        case ev.CoreTunnels(_, count):
            plan.update(tunnels=count)
            if count < 1:
                moves.lose_tunnel(plan)
        case ev.TunnelSilent(detail):
            moves.verify(plan, Reason.TUNNEL_SILENT, detail)
        case ev.LeaseLost(expired):
            moves.lose_lease(plan, expired=expired)
        case ev.Verified() | ev.VerificationFailed():
            pass  # already open
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    match timer:
        case Timer.RENEWAL:
            moves.lose_lease(plan, expired=True)
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case (
            Timer.RETRY | Timer.ESTABLISH | Timer.SLOW | Timer.QUIET | Timer.GIVE_WAY | Timer.VERIFICATION | Timer.WAKE
        ):
            pass
        case _ as never:
            assert_never(never)
