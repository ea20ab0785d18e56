"""VERIFYING: the core has a tunnel; rules, routes, TUN and the tunnel itself are being checked."""

from typing import assert_never

from psiphon_vpn.policy.model import State
from psiphon_vpn.service import any_state, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.effects import OpenTunnel
from psiphon_vpn.service.events import PartFailed, Timer
from psiphon_vpn.service.model import CALM_SECONDS, RENEWAL_SECONDS, VERIFICATIONS_PER_CORE
from psiphon_vpn.service.parts import Part
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
        case ev.Verified(number):
            _open(plan, number)
        case ev.VerificationFailed(_, detail):
            _doubt(plan, detail)
        case ev.TunnelSilent():
            pass  # the verification asks it
        case ev.LeaseLost():
            pass  # the lease is closed, and the verification checks everything
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    match timer:
        case Timer.VERIFICATION:
            moves.lose_part(plan, PartFailed(Part.VERIFICATION, "no outcome"))
        case Timer.CALM:
            any_state.count_from_zero(plan)
        case Timer.RETRY | Timer.ESTABLISH | Timer.SLOW | Timer.QUIET | Timer.GIVE_WAY | Timer.RENEWAL | Timer.WAKE:
            pass
        case _ as never:
            assert_never(never)


def _open(plan: Plan, number: int) -> None:
    """Everything is right. The opening comes last, and checks once more."""
    if plan.model.tunnels < 1:
        return
    plan.move(State.OPEN, Reason.VERIFIED)
    plan.arm(Timer.CALM, CALM_SECONDS)
    plan.arm(Timer.RENEWAL, RENEWAL_SECONDS)
    plan.update(failures=0, doubts=0, rounds=0, data_set_aside=False)
    plan.do(OpenTunnel(number))


def _doubt(plan: Plan, detail: str) -> None:
    """Something was not right: verify again a few times, with the same core."""
    doubts = plan.model.doubts + 1
    if doubts < VERIFICATIONS_PER_CORE:
        plan.update(doubts=doubts)
        moves.verify(plan, Reason.TUNNEL_SILENT, detail)
    else:
        moves.retry_later(plan, Reason.TUNNEL_SILENT, detail)
