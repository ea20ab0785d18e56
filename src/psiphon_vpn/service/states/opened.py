"""OPEN: applications go through the tunnel, while the lease runs. Every move out of it closes the lease first."""

from typing import assert_never

from psiphon_vpn.service import anywhere, moves
from psiphon_vpn.service import events as ev
from psiphon_vpn.service.events import Timer
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason


def answer(plan: Plan, event: ev.Event) -> None:
    """What an event leads to."""
    match event:
        case ev.UserStart():
            anywhere.go_on(plan)
        case ev.UserStop():
            anywhere.stop(plan)
        case ev.UserRestart():
            anywhere.restart(plan)
        case ev.SettingsGood():
            anywhere.take_settings(plan, event)
        case ev.SettingsBad():
            anywhere.refuse_settings(plan, event)
        case ev.NetworkSeen():
            anywhere.see_network(plan, event, moves.verify_rules)
        case ev.UplinkLost():
            anywhere.lose_uplink(plan, moves.verify_rules)
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
            pass  # answered already: it is open
        case _ as never:
            assert_never(never)


def _answer_timer(plan: Plan, timer: Timer) -> None:
    match timer:
        case Timer.RENEWAL:
            moves.lose_lease(plan, expired=True)
        case Timer.CALM:
            anywhere.be_calm(plan)
        case (
            Timer.RETRY | Timer.ESTABLISH | Timer.SLOW | Timer.QUIET | Timer.GIVE_WAY | Timer.VERIFICATION | Timer.WAKE
        ):
            pass
        case _ as never:
            assert_never(never)
