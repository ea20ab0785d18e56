# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The moves that several states make: beginning, connecting, locking, verifying, retrying later. Pure."""

from psiphon_vpn.network.choice import find_next, find_patience, pick_uplink
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.effects import ApplyPolicy, FindCause, ReplaceTun, SetDataAside, Verify
from psiphon_vpn.service.events import (
    CoreExited,
    CoreStartFailed,
    EnforcementFailed,
    Intent,
    PartFailed,
    RescueEnded,
    Timer,
    TunBroken,
)
from psiphon_vpn.service.model import (
    CALM_SECONDS,
    FAILURES_PER_UPLINK,
    LEGAL_MOVES,
    QUIET_SECONDS,
    RESCUE_SECONDS,
    SLOW_SECONDS,
    VERIFICATION_SECONDS,
    WAKE_SECONDS,
    Model,
    fight_delay,
    is_rescue_due,
    retry_delay,
    unrest_delay,
)
from psiphon_vpn.service.parts import VERIFIED_AGAIN
from psiphon_vpn.service.plan import Plan
from psiphon_vpn.service.reasons import Reason

_BROUGHT_NOTHING = frozenset(
    {
        Reason.CORE_EXITED,
        Reason.CORE_HANGS,
        Reason.NO_SERVER,
        Reason.LIST_HOST_NOT_FOUND,
        Reason.LIST_NOT_REACHED,
        Reason.TUNNEL_SILENT,
        Reason.UPLINK_PROGRAM,
    }
)
"""Reasons that may be the uplink's fault."""


# -- the uplink -------------------------------------------------------------------------------------------------------


def choose_uplink(plan: Plan) -> None:
    """Take the best uplink.

    One without a tunnel is considered again once the one that replaced it is lost.
    """
    model = plan.model
    lost = model.uplink is not None and all(choice.index != model.uplink.index for choice in model.choices)
    unsuccessful = frozenset() if lost else model.unsuccessful
    plan.update(
        unsuccessful=unsuccessful, uplink=pick_uplink(model.choices, named=model.named, unsuccessful=unsuccessful)
    )


def turn_to_another(plan: Plan) -> bool:
    """Take another uplink in place of one without a tunnel.

    Returns:
        Whether there is another.
    """
    model = plan.model
    found = (
        find_next(model.uplink, model.choices, named=model.named, unsuccessful=model.unsuccessful)
        if model.uplink
        else None
    )
    if found is None:
        return False
    uplink, unsuccessful = found
    plan.update(
        uplink=uplink, uplink_at_start=uplink, unsuccessful=unsuccessful, rounds=model.rounds + (not unsuccessful)
    )
    return True


def forget_troubles(plan: Plan) -> None:
    """Count all troubles from zero again, and try the best uplink first."""
    plan.update(failures=0, unrest=0, changes=0, fights=0, unsuccessful=frozenset(), rounds=0, barren_looks=0)


# -- moves ------------------------------------------------------------------------------------------------------------


def lock(plan: Plan, reason: Reason, detail: str = "", *, graceful: bool = False) -> None:
    """Lock, and end the core."""
    plan.move(State.LOCKED, reason, detail)
    plan.stop_core(graceful=graceful)


def fail(plan: Plan, reason: Reason, detail: str) -> None:
    """Lock until a person corrects the configuration."""
    plan.move(State.FAILED, reason, detail)
    plan.stop_core()


def begin(plan: Plan, reason: Reason, detail: str = "", *, anew: bool = False) -> None:
    """Begin from scratch: connect if that is wanted and possible, otherwise lock; with a new TUN if requested."""
    model = plan.model
    if not model.settings_good:
        fail(plan, Reason.BAD_CONFIG, model.detail)
    elif model.intent is Intent.STOPPED:
        lock(plan, Reason.STOPPED_BY_USER, graceful=True)
    elif model.asleep:
        lock(plan, Reason.SLEEPING)
        plan.arm(Timer.WAKE, WAKE_SECONDS)
    elif model.uplink is None:
        lock(plan, Reason.UPLINK_ABSENT if model.named else Reason.NO_UPLINK, model.named)
        plan.arm(Timer.CALM, CALM_SECONDS)
    else:
        connect(plan, reason, detail, anew=anew)


def connect(plan: Plan, reason: Reason, detail: str = "", *, proxy: bool = True, anew: bool = False) -> None:
    """Start a new core. The lease is closed and the old core has ended before the new one may use the wire."""
    plan.close()
    plan.stop_core()
    if anew:
        plan.do(ReplaceTun())
    if State.CONNECTING not in LEGAL_MOVES[plan.model.state]:
        plan.move(State.LOCKED, reason, detail)
    plan.move(State.CONNECTING, reason, detail)
    plan.start_core(proxy=proxy)
    await_tunnel(plan)


def await_tunnel(plan: Plan) -> None:
    """Arm the timers of a core that has no tunnel yet."""
    plan.arm(Timer.SLOW, SLOW_SECONDS)
    plan.arm(Timer.QUIET, QUIET_SECONDS)
    plan.arm(Timer.RESCUE, RESCUE_SECONDS)
    plan.arm(Timer.GIVE_WAY, find_patience(plan.model.rounds))
    if seconds := plan.model.settings.establish_timeout:
        plan.arm(Timer.ESTABLISH, float(seconds))


def look_for_cause(plan: Plan) -> None:
    """Find out why there is no tunnel, now and again later: what is wrong may change."""
    plan.do(FindCause(plan.model.core))
    plan.arm(Timer.SLOW, SLOW_SECONDS)


def verify(plan: Plan, reason: Reason, detail: str = "") -> None:
    """Check everything, and ask through the tunnel, before opening."""
    # CONNECTING has the same rules by construction: may_connect and may_open of policy.wire.
    plan.move(State.VERIFYING, reason, detail, load=plan.model.state is not State.CONNECTING)
    number = plan.model.verification + 1
    plan.arm(Timer.VERIFICATION, VERIFICATION_SECONDS)
    plan.do(Verify(number))
    plan.update(verification=number, proxy_trouble=None)


# -- the rescue -------------------------------------------------------------------------------------------------------


_SERVERS_FAIL = frozenset(
    {
        None,
        Reason.SLOW,
        Reason.NO_SERVER,
        Reason.NO_IPV4,
        Reason.NO_LIST,
        Reason.NO_SERVER_LIST,
        Reason.LIST_LOOKUP_OFF,
        Reason.LIST_HOST_NOT_FOUND,
        Reason.LIST_NOT_REACHED,
        Reason.LIST_NOT_VERIFIED,
        Reason.LIST_NOT_USED,
        # The core says it of a proxy that reaches no known server too, and asking costs one connection to the proxy.
        Reason.UPSTREAM_PROXY,
    }
)
"""What is known of the core's attempts if a newer list may help. With anything else it would not."""


def consider_rescue(plan: Plan) -> None:
    """No server has answered for a while: ask for a newer list of servers, if that may help and is due."""
    plan.update(barren_looks=plan.model.barren_looks + 1)
    model = plan.model
    plan.arm(Timer.RESCUE, RESCUE_SECONDS)
    wanted = model.settings.list_rescue and "TargetServerEntry" not in model.settings.core_advanced
    if wanted and is_rescue_due(model.barren_looks) and model.fault in _SERVERS_FAIL:
        plan.end_rescue()  # one that never came to its end
        plan.start_rescue()


def end_rescue(plan: Plan, event: RescueEnded) -> None:
    """A rescue is over. The next core gets what it brought."""
    proxy = plan.model.settings.upstream_proxy
    met = (proxy, event.proxy_trouble) if proxy and event.proxy_trouble else None
    plan.update(rescuing=False, proxy_trouble=met)
    if event.found:
        connect(plan, Reason.NEW_LIST, proxy=plan.model.proxy)
    elif met is not None or plan.model.reason is Reason.UPSTREAM_PROXY:
        show_fault(plan, plan.model.fault, "")


def show_fault(plan: Plan, fault: Reason | None, detail: str) -> None:
    """Report what is wrong with the core's attempts while it lasts, not only at the end.

    A core that knows no server uses no proxy, and says nothing of one that does nothing: a rescue may know.
    """
    model = plan.model
    plan.update(fault=fault)
    proxy, trouble = model.proxy_trouble or (None, "")
    if trouble and proxy == model.settings.upstream_proxy and fault in _SERVERS_FAIL:
        plan.update(reason=Reason.UPSTREAM_PROXY, detail=trouble)
    elif fault is not None:
        plan.update(reason=fault, detail=detail)
    elif model.reason is Reason.UPSTREAM_PROXY or (model.fault is not None and model.reason is model.fault):
        plan.update(reason=Reason.CONNECTING, detail="")


# -- after trouble ----------------------------------------------------------------------------------------------------


def pause(plan: Plan, reason: Reason, detail: str, delay: float) -> None:
    """Lock for so many seconds."""
    lock(plan, reason, detail)
    plan.arm(Timer.RETRY, delay)


def retry_later(plan: Plan, reason: Reason, detail: str = "") -> None:
    """Replace a useless core: at once if it had been open, otherwise after a pause, locked."""
    model = plan.model
    wanted = model.intent is Intent.CONNECTED and model.uplink is not None and model.settings_good
    if wanted and model.state is State.OPEN:
        plan.update(failures=0, unrest=model.unrest + 1)
        if delay := unrest_delay(plan.model.unrest):
            pause(plan, reason, detail, delay)
        else:
            connect(plan, reason, detail)
        return
    if wanted and reason in _BROUGHT_NOTHING and model.failures + 1 >= FAILURES_PER_UPLINK:
        turn_to_another(plan)
    lock(plan, reason, detail)
    if reason is Reason.TUNNEL_SILENT:
        plan.do(ReplaceTun())
    if wanted:
        _count_failure(plan, retry_delay(model.failures))


def _count_failure(plan: Plan, delay: float) -> None:
    plan.arm(Timer.RETRY, delay)
    plan.update(failures=plan.model.failures + 1)


def miss_core(plan: Plan, event: CoreStartFailed) -> None:
    """The core did not start."""
    plan.update(core_running=False)
    retry_later(plan, event.reason, event.detail)


def lose_core(plan: Plan, event: CoreExited) -> None:
    """The core ended by itself: for the reason in its last notice, if any."""
    known = find_known_fault(plan.model)
    shown = plan.model.detail if plan.model.reason is known else ""
    plan.update(core_running=False)
    if known is None:
        retry_later(plan, Reason.CORE_EXITED, event.detail)
    else:
        retry_later(plan, known, shown)
    if known is Reason.DATASTORE_BROKEN and not (plan.model.core_running or plan.model.data_set_aside):
        # Once: if the fault returns with an empty store, the stored data did not cause it.
        plan.update(data_set_aside=True)
        plan.do(SetDataAside())


def find_known_fault(model: Model) -> Reason | None:
    """What is wrong with the core's attempts, if that is known."""
    return model.fault if model.fault is not Reason.SLOW else None


def lose_tun(plan: Plan, event: TunBroken) -> None:
    """Replace a core whose TUN is gone: it is useless."""
    retry_later(plan, Reason.TUN_TAKEN if event.taken else Reason.TUN_FAILED, event.detail)


def lose_tunnel(plan: Plan) -> None:
    """The core lost its tunnel, and makes another."""
    plan.update(unrest=plan.model.unrest + 1)
    if delay := unrest_delay(plan.model.unrest):
        pause(plan, Reason.TUNNEL_LOST, "", delay)
        return
    plan.move(State.CONNECTING, Reason.TUNNEL_LOST)
    await_tunnel(plan)
    plan.update(fault=None)


def load_again(plan: Plan) -> None:
    """Load the rules of this state once more."""
    plan.do(ApplyPolicy(plan.model.state))


def lose_enforcement(plan: Plan, event: EnforcementFailed) -> None:
    """Lock without loading rules: those that failed are not tried again at once, and the present ones hold."""
    # A failed opening follows a successful verification, and would otherwise be repeated endlessly without a pause.
    plan.update(unrest=plan.model.unrest + (plan.model.state is State.OPEN))
    reason = Reason.LED_AROUND if event.led_around else Reason.LOCK_FAILED
    plan.move(State.LOCKED, reason, event.detail, load=False)
    plan.stop_core()
    _count_failure(plan, max(retry_delay(plan.model.failures), unrest_delay(plan.model.unrest)))


def lose_part(plan: Plan, event: PartFailed) -> None:
    """A part of the service failed: verify again if that may be enough, otherwise lock and retry after a pause.

    As with other troubles that may follow each opening, the pauses grow until an opening has held.
    """
    plan.update(unrest=plan.model.unrest + 1)
    delay = unrest_delay(plan.model.unrest)
    if not delay and event.part in VERIFIED_AGAIN and plan.model.state in {State.OPEN, State.VERIFYING}:
        verify(plan, Reason.PART_FAILED, event.description)
    else:
        lock(plan, Reason.PART_FAILED, event.description)
        retry_after(plan, delay)


def verify_rules(plan: Plan, detail: str = "") -> None:
    """Rules that an opening depends on changed: load them, and check everything."""
    verify(plan, Reason.RULES_CHANGED, detail)


def lose_lease(plan: Plan, *, expired: bool) -> None:
    """The lease ended, and nothing else is known to be wrong: check everything."""
    plan.update(unrest=plan.model.unrest + 1)
    verify(plan, Reason.LEASE_EXPIRED if expired else Reason.LEASE_LOST)


def retry_after(plan: Plan, delay: float) -> None:
    """Retry after a pause that grows."""
    _count_failure(plan, max(delay, retry_delay(plan.model.failures)))


def fight(plan: Plan, culprit: str) -> None:
    """Lock until no program has changed the lock for a while; longer after each fight."""
    plan.update(fights=plan.model.fights + 1)
    pause(plan, Reason.FIGHT, culprit, fight_delay(plan.model.fights))


# -- sleep ------------------------------------------------------------------------------------------------------------


def fall_asleep(plan: Plan) -> None:
    """Lock until the end of the sleep is reported."""
    plan.update(asleep=True)
    begin(plan, Reason.SLEEPING)


def wake(plan: Plan) -> None:
    """Begin from scratch: connections do not outlive a sleep, and a core takes minutes to notice."""
    forget_sleep(plan)
    begin(plan, Reason.WOKE)


def forget_sleep(plan: Plan) -> None:
    """The machine runs again."""
    forget_troubles(plan)
    plan.update(asleep=False)
    choose_uplink(plan)
