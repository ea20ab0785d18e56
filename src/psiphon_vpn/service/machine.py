"""The state machine. Pure: a model and an event give a new model and effects, which others carry out in order.

What holds by construction, and is tested with random sequences of events:

* every move out of OPEN begins with `CloseLease`;
* `OpenTunnel` is only ever the answer to `Verified` with the number of the verification under way;
* an event of a core that is no longer the current one changes nothing;
* whatever fails leads to a state that is locked.
"""

from dataclasses import replace

from psiphon_vpn.network.choice import Use, carries_on, find_next, find_patience, pick_uplink
from psiphon_vpn.network.observed import Observed
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.effects import (
    AmendPolicy,
    ApplyPolicy,
    ArmTimer,
    CancelTimers,
    CloseLease,
    DoubtTun,
    Effect,
    FindCause,
    OpenTunnel,
    SetDataAside,
    StartCore,
    StopCore,
    StoreIntent,
    Verify,
)
from psiphon_vpn.service.events import (
    AmendmentRefused,
    CoreExited,
    CoreFault,
    CoreRegion,
    CoreStartFailed,
    CoreTunnels,
    EnforcementFailed,
    Event,
    Intent,
    LockBroken,
    LockFought,
    NetworkSeen,
    PartFailed,
    SettingsBad,
    SettingsGood,
    SleepComing,
    Timer,
    TimerFired,
    TunBroken,
    TunnelSilent,
    UplinkLost,
    UserRestart,
    UserStart,
    UserStop,
    VerificationFailed,
    Verified,
    Woke,
)
from psiphon_vpn.service.model import (
    CALM_SECONDS,
    FAILURES_PER_UPLINK,
    LEGAL_MOVES,
    QUIET_SECONDS,
    RENEWAL_SECONDS,
    SLOW_SECONDS,
    VERIFICATION_SECONDS,
    VERIFICATIONS_PER_CORE,
    WAKE_SECONDS,
    Model,
    calm_delay,
    fight_delay,
    retry_delay,
)
from psiphon_vpn.service.parts import VERIFIED_AGAIN, Part
from psiphon_vpn.service.reasons import Reason

Step = tuple[Model, tuple[Effect, ...]]

_NO_REASON_TO_CONNECT = frozenset({Reason.UNSTABLE, Reason.SLEEPING, Reason.FIGHT})
"""Why nothing was tried, which is no longer so when something is."""
_BROUGHT_NOTHING = frozenset({Reason.CORE_EXITED, Reason.CORE_HANGS, Reason.NO_SERVER, Reason.TUNNEL_SILENT})
"""What may be the uplink's fault."""


class IllegalMove(Exception):
    """A defect of this program: a move that the table does not allow."""


def _move(model: Model, state: State, reason: Reason, detail: str = "") -> tuple[Model, list[Effect]]:
    if state not in LEGAL_MOVES[model.state]:
        raise IllegalMove(f"{model.state} -> {state}")
    effects: list[Effect] = []
    if model.state is State.OPEN:
        effects.append(CloseLease())
    effects += [CancelTimers(), ApplyPolicy(state)]
    return replace(model, state=state, reason=reason, detail=detail), effects


def _stop_core(model: Model, effects: list[Effect], *, graceful: bool = False) -> Model:
    if model.core_running:
        effects.append(StopCore(graceful=graceful))
    return replace(model, core_running=False, tunnels=0, doubts=0, region=None, fault=None)


def _start_core(model: Model, effects: list[Effect], *, proxy: bool) -> Model:
    number = model.core + 1
    effects.append(StartCore(number, proxy))
    _await_tunnel(model, effects)
    fresh = replace(model, core=number, core_running=True, tunnels=0, doubts=0, region=None, fault=None)
    return replace(fresh, footing=model.uplink, proxy=proxy)


def _await_tunnel(model: Model, effects: list[Effect]) -> None:
    effects += [ArmTimer(Timer.SLOW, SLOW_SECONDS), ArmTimer(Timer.QUIET, QUIET_SECONDS)]
    effects.append(ArmTimer(Timer.GIVE_WAY, find_patience(model.rounds)))
    if model.settings.establish_timeout:
        effects.append(ArmTimer(Timer.ESTABLISH, float(model.settings.establish_timeout)))


def _lock(model: Model, reason: Reason, detail: str = "", *, graceful: bool = False) -> tuple[Model, list[Effect]]:
    model, effects = _move(model, State.LOCKED, reason, detail)
    return _stop_core(model, effects, graceful=graceful), effects


def _begin(model: Model, reason: Reason, detail: str = "", *, anew: bool = False) -> Step:
    """From scratch: connecting where that is wanted and possible, locked where not; with a new TUN where asked for."""
    if not model.settings_good:
        return _fail(model, Reason.BAD_CONFIG, model.detail)
    if model.intent is Intent.STOPPED:
        model, effects = _lock(model, Reason.STOPPED_BY_USER, graceful=True)
        return model, tuple(effects)
    if model.asleep:
        model, effects = _lock(model, Reason.SLEEPING)
        return model, (*effects, ArmTimer(Timer.WAKE, WAKE_SECONDS))
    if model.uplink is None:
        named = model.named and Reason.UPLINK_ABSENT
        model, effects = _lock(model, named or Reason.NO_UPLINK, model.named)
        return model, (*effects, ArmTimer(Timer.CALM, CALM_SECONDS))
    return _connect(model, reason, detail, anew=anew)


def _connect(model: Model, reason: Reason, detail: str = "", *, proxy: bool = True, anew: bool = False) -> Step:
    """A new core. The lease is closed and the old core is gone before the new one may use the wire."""
    effects: list[Effect] = [CloseLease()]
    model = _stop_core(model, effects)
    if anew:
        effects.append(DoubtTun())
    if State.CONNECTING not in LEGAL_MOVES[model.state]:
        model, more = _move(model, State.LOCKED, reason, detail)
        effects += more
    model, more = _move(model, State.CONNECTING, reason, detail)
    effects += more
    model = _start_core(model, effects, proxy=proxy)
    return model, tuple(effects)


def _fail(model: Model, reason: Reason, detail: str) -> Step:
    model, effects = _move(model, State.FAILED, reason, detail)
    model = _stop_core(model, effects)
    return model, tuple(effects)


def _retry_later(model: Model, reason: Reason, detail: str = "") -> Step:
    """The core is of no use: at once a new one if it had been of use, else locked until a timer says otherwise."""
    wanted = model.intent is Intent.CONNECTED and model.uplink is not None and model.settings_good
    if wanted and model.state is State.OPEN:
        model = replace(model, failures=0, unrest=model.unrest + 1)
        if not (delay := calm_delay(model.unrest)):
            return _connect(model, reason, detail)
        return _pause(model, reason, detail, delay)
    if wanted and reason in _BROUGHT_NOTHING and model.failures + 1 >= FAILURES_PER_UPLINK:
        model = _turn_to_another(model) or model
    model, effects = _lock(model, reason, detail)
    if reason is Reason.TUNNEL_SILENT:
        effects.append(DoubtTun())
    if not wanted:
        return model, tuple(effects)
    delay = retry_delay(model.failures)
    effects.append(ArmTimer(Timer.RETRY, delay))
    return replace(model, failures=model.failures + 1), tuple(effects)


def _pause(model: Model, reason: Reason, detail: str, delay: float) -> Step:
    model, effects = _lock(model, reason, detail)
    return model, (*effects, ArmTimer(Timer.RETRY, delay))


def _verify(model: Model, reason: Reason, detail: str = "") -> Step:
    same_policy = model.state is State.CONNECTING  # by construction: may_connect and may_open of policy.wire
    model, effects = _move(model, State.VERIFYING, reason, detail)
    if same_policy:
        effects = [effect for effect in effects if not isinstance(effect, ApplyPolicy)]
    number = model.verification + 1
    effects += [ArmTimer(Timer.VERIFICATION, VERIFICATION_SECONDS), Verify(number)]
    return replace(model, verification=number), tuple(effects)


def _begin_anew_after(model: Model, part: str, kind: str) -> Step:
    """A part of the service failed: verified again where that can be enough, else locked, and begun anew after a pause.

    As with other troubles that may come right after each opening, the pauses grow until it was calm for a while.
    """
    detail = f"{part}: {kind}"
    model = replace(model, unrest=model.unrest + 1)
    delay = calm_delay(model.unrest)
    if not delay and part in VERIFIED_AGAIN and model.state in {State.OPEN, State.VERIFYING}:
        return _verify(model, Reason.PART_FAILED, detail)
    known = model.state is State.LOCKED and model.reason in {Reason.PART_FAILED, Reason.FIGHT}
    if known:
        # Locking was what failed, or is not to be done in a fight. It is not tried again at once.
        effects: list[Effect] = []
        model = _stop_core(model, effects)
    else:
        model, effects = _lock(model, Reason.PART_FAILED, detail)
    pause = max(delay, retry_delay(model.failures))
    if model.reason is Reason.FIGHT:
        pause = max(pause, fight_delay(model.fights))
    effects.append(ArmTimer(Timer.RETRY, pause))
    return replace(model, failures=model.failures + 1), tuple(effects)


def _remember(intent: Intent, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """Store what the user asked for before anything that may fail, but after the lease is closed."""
    first = 1 if effects and isinstance(effects[0], CloseLease) else 0
    return (*effects[:first], StoreIntent(intent), *effects[first:])


def step(model: Model, event: Event) -> Step:
    """What an event leads to. An event that does not concern the present leads to nothing."""
    match event:
        case UserStart():
            if model.intent is Intent.CONNECTED and model.state in {State.CONNECTING, State.VERIFYING, State.OPEN}:
                return replace(model, failures=0, unrest=0, fights=0), ()
            stored = _choose(replace(_forget_troubles(model), intent=Intent.CONNECTED))
            after, effects = _begin(stored, Reason.CONNECTING)
            return after, _remember(Intent.CONNECTED, effects)
        case UserStop():
            after, effects = _begin(replace(model, intent=Intent.STOPPED), Reason.STOPPED_BY_USER)
            return after, _remember(Intent.STOPPED, effects)
        case UserRestart():
            fresh = _choose(replace(_forget_troubles(model), intent=Intent.CONNECTED))
            after, effects = _begin(fresh, Reason.RESTARTING, anew=True)
            return after, _remember(Intent.CONNECTED, effects)
        case SettingsBad(detail):
            return _fail(replace(model, settings_good=False, detail=detail), Reason.BAD_CONFIG, detail)
        case SettingsGood(settings):
            good = replace(model, settings_good=True, settings=settings, failures=0)
            return _begin(_choose(replace(good, barren=frozenset(), rounds=0)), Reason.CONNECTING)
        case NetworkSeen(seen, uses):
            return _see_network(model, seen, uses)
        case UplinkLost():
            return _see_network(model, replace(model.seen, uplinks=()), None)
        case AmendmentRefused():
            return _load_anew(model)
        case EnforcementFailed() if model.reason is Reason.FIGHT:
            return model, (ArmTimer(Timer.RETRY, fight_delay(model.fights)),)
        case EnforcementFailed(detail, led_around):
            # An opening that fails follows a verification that succeeded, and would be tried again for ever at once.
            unrest = model.unrest + (model.state is State.OPEN)
            reason = Reason.LED_AROUND if led_around else Reason.LOCK_FAILED
            model, effects_list = _move(replace(model, unrest=unrest), State.LOCKED, reason, detail)
            # The rules that failed are not tried again at once: what stands now drops everything.
            effects_list = [effect for effect in effects_list if not isinstance(effect, ApplyPolicy)]
            model = _stop_core(model, effects_list)
            delay = max(retry_delay(model.failures), calm_delay(model.unrest))
            effects_list.append(ArmTimer(Timer.RETRY, delay))
            return replace(model, failures=model.failures + 1), tuple(effects_list)
        case PartFailed(part, kind):
            return _begin_anew_after(model, part, kind)
        case TimerFired(Timer.VERIFICATION) if model.state is State.VERIFYING:
            return _begin_anew_after(model, Part.VERIFICATION, "no outcome")
        case TimerFired(Timer.RENEWAL) if model.state is State.OPEN:
            return _verify(replace(model, unrest=model.unrest + 1), Reason.LEASE_LOST)
        case LockFought(culprit) if model.state is not State.FAILED:
            return _fight(model, culprit)
        case TunBroken() | LockBroken() if model.reason is Reason.FIGHT:
            # Loading whole policies would never end in a fight. What is changed is put back, only not by this.
            return model, ()
        case TunBroken(detail, taken) if model.state is not State.FAILED:
            return _retry_later(model, Reason.TUN_TAKEN if taken else Reason.TUN_FAILED, detail)
        case LockBroken(detail) if model.state in {State.OPEN, State.VERIFYING}:
            return _verify(model, Reason.RULES_CHANGED, detail)
        case LockBroken():
            return model, (ApplyPolicy(model.state),)
        case TimerFired(Timer.RETRY) if model.state in {State.LOCKED, State.CONNECTING}:
            why = Reason.CONNECTING if model.reason in _NO_REASON_TO_CONNECT else model.reason
            return _begin(model, why, model.detail)
        case TimerFired(Timer.ESTABLISH) if model.state is State.CONNECTING:
            known = model.fault if model.fault is not Reason.SLOW else None
            return _retry_later(model, known or Reason.NO_SERVER)
        case TimerFired(Timer.QUIET) if model.state is State.CONNECTING:
            return _retry_later(model, Reason.CORE_HANGS)
        case TimerFired(Timer.SLOW) if model.state is State.CONNECTING and model.fault is None:
            return model, (FindCause(model.core),)
        case TimerFired(Timer.GIVE_WAY) if model.state is State.CONNECTING:
            if (other := _turn_to_another(model)) is None:
                return model, (ArmTimer(Timer.GIVE_WAY, find_patience(model.rounds)),)
            return _begin(other, Reason.UPLINK_BARREN)
        case TimerFired(Timer.CALM):
            return replace(model, unrest=0, fights=0), ()
        case SleepComing():
            asleep = replace(model, asleep=True)
            return (asleep, ()) if model.state is State.FAILED else _begin(asleep, Reason.SLEEPING)
        case Woke():
            return _wake(model)
        case TimerFired(Timer.WAKE) if model.asleep:
            return _wake(model)
        case _:
            return _step_core(model, event)


def _fight(model: Model, culprit: str) -> Step:
    """Locked until nobody has changed the lock for a while; longer each time that it begins again."""
    if model.state is State.LOCKED and model.reason is Reason.FIGHT:
        return model, (ArmTimer(Timer.RETRY, fight_delay(model.fights)),)
    model, effects = _lock(replace(model, fights=model.fights + 1), Reason.FIGHT, culprit)
    return model, (*effects, ArmTimer(Timer.RETRY, fight_delay(model.fights)))


def _load_anew(model: Model) -> Step:
    """Rules changed that an opening rests on."""
    if model.state is State.OPEN or model.state is State.VERIFYING:
        return _verify(model, Reason.RULES_CHANGED)
    return model, (ApplyPolicy(model.state),)


def _see_network(before: Model, seen: Observed, uses: frozenset[Use] | None) -> Step:
    """A transition, or what the rules name of the network is put into them."""
    after, effects = _see_uplinks(before, replace(before, seen=seen), uses)
    if effects:
        return after, effects  # each transition applies a policy, and so the network of now
    was, now = before.seen.network, after.seen.network
    if (was, before.way) == (now, after.way):
        return after, ()
    if (replace(was, on_link=now.on_link), before.way) == (now, after.way):
        return after, (AmendPolicy(after.state),)
    return _load_anew(after)


def _see_uplinks(before: Model, model: Model, uses: frozenset[Use] | None) -> Step:
    model = _choose(model)
    uplink = model.uplink
    if uplink == before.uplink == before.footing:
        return model, ()
    if uplink is not None and before.footing is not None and carries_on(before.footing, uplink, uses):
        return model, ()  # what was gained beside it is no transition
    if uplink is None and before.footing is None:
        return model, ()
    model = replace(model, footing=uplink)
    changed = replace(model, unrest=model.unrest + (uplink is not None))
    if model.state is State.FAILED or model.intent is Intent.STOPPED:
        return changed, (ApplyPolicy(model.state),)
    changed = replace(changed, failures=0)
    delay = calm_delay(changed.unrest)
    if delay and uplink is not None and not model.asleep and model.settings_good:
        return _pause(changed, Reason.UNSTABLE, "", delay)
    return _begin(changed, Reason.CONNECTING if before.uplink is None else Reason.UPLINK_CHANGED)


def _choose(model: Model) -> Model:
    """Take the best of the uplinks that there are.

    One that brought no tunnel counts again once the one that was taken in its place is lost.
    """
    lost = model.uplink is not None and all(choice.index != model.uplink.index for choice in model.choices)
    barren = frozenset() if lost else model.barren
    return replace(model, barren=barren, uplink=pick_uplink(model.choices, named=model.named, barren=barren))


def _turn_to_another(model: Model) -> Model | None:
    """From an uplink that brought no tunnel; None where there is no other."""
    found = find_next(model.uplink, model.choices, named=model.named, barren=model.barren) if model.uplink else None
    if found is None:
        return None
    uplink, barren = found
    return replace(model, uplink=uplink, footing=uplink, barren=barren, rounds=model.rounds + (not barren))


def _forget_troubles(model: Model) -> Model:
    return replace(model, failures=0, unrest=0, fights=0, barren=frozenset(), rounds=0)


def _wake(model: Model) -> Step:
    """Everything anew: connections do not outlive a sleep, and a core takes minutes to notice."""
    woken = _choose(replace(_forget_troubles(model), asleep=False))
    return (woken, ()) if model.state is State.FAILED else _begin(woken, Reason.WOKE)


def _show_fault(model: Model, fault: Reason | None) -> Model:
    """What is wrong is told while it is, not only in the end."""
    if model.state is State.CONNECTING:
        if fault is not None:
            return replace(model, fault=fault, reason=fault, detail="")
        if model.fault is not None and model.reason is model.fault:
            return replace(model, fault=None, reason=Reason.CONNECTING, detail="")
    return replace(model, fault=fault)


def _step_core(model: Model, event: Event) -> Step:
    """Events of the core and of the verification; those of an earlier one are stale."""
    match event:
        case CoreStartFailed(core, detail, reason) if core == model.core and model.core_running:
            return _retry_later(replace(model, core_running=False), reason, detail)
        case CoreExited(core, detail) if core == model.core and model.core_running:
            gone = replace(model, core_running=False)
            known = model.fault if model.fault is not Reason.SLOW else None
            if known is Reason.PORT_IN_USE and model.proxy and model.state is State.CONNECTING:
                # Any user can take the port of the proxy: that costs the proxy, not the tunnel.
                return _connect(gone, Reason.CONNECTING, proxy=False)
            after, effects_done = _retry_later(gone, known or Reason.CORE_EXITED, detail)
            if known is Reason.DATASTORE_BROKEN and not (after.core_running or model.data_set_aside):
                # Once: what comes back although it began with nothing does not come from what was stored.
                return replace(after, data_set_aside=True), (*effects_done, SetDataAside())
            return after, effects_done
        case CoreFault(core, reason) if core == model.core and model.core_running:
            return _show_fault(model, reason), ()
        case CoreRegion(core, region) if core == model.core and model.core_running:
            return replace(model, region=region), ()
        case CoreTunnels(core, count) if core == model.core and model.core_running:
            model = replace(model, tunnels=count)
            if count >= 1 and model.state is State.CONNECTING:
                return _verify(model, Reason.TUNNEL_UP)
            if count < 1 and model.state in {State.VERIFYING, State.OPEN}:
                model = replace(model, unrest=model.unrest + 1)
                if delay := calm_delay(model.unrest):
                    return _pause(model, Reason.TUNNEL_LOST, "", delay)
                model, effects = _move(model, State.CONNECTING, Reason.TUNNEL_LOST)
                _await_tunnel(model, effects)
                return replace(model, fault=None), tuple(effects)
            return model, ()
        case Verified(number) if (
            number == model.verification
            and model.state is State.VERIFYING
            and model.core_running
            and model.tunnels >= 1
        ):
            model, effects = _move(model, State.OPEN, Reason.VERIFIED)
            effects += [ArmTimer(Timer.CALM, CALM_SECONDS), ArmTimer(Timer.RENEWAL, RENEWAL_SECONDS)]
            return replace(model, failures=0, doubts=0, rounds=0, data_set_aside=False), (*effects, OpenTunnel(number))
        case VerificationFailed(number, detail) if number == model.verification and model.state is State.VERIFYING:
            if model.doubts + 1 < VERIFICATIONS_PER_CORE:
                return _verify(replace(model, doubts=model.doubts + 1), Reason.TUNNEL_SILENT, detail)
            return _retry_later(model, Reason.TUNNEL_SILENT, detail)
        case TunnelSilent(detail) if model.state is State.OPEN:
            return _verify(model, Reason.TUNNEL_SILENT, detail)
        case _:
            return model, ()
