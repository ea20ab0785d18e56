"""The state machine. Pure: a model and an event give a new model and effects, which others carry out in order.

What holds by construction, and is tested with random sequences of events:

* every move out of OPEN begins with `CloseLease`;
* `OpenTunnel` is only ever the answer to `Verified` with the number of the verification under way;
* an event of a core that is no longer the current one changes nothing;
* whatever fails leads to a state that is locked.
"""

from dataclasses import dataclass, replace

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.effects import (
    ApplyPolicy,
    ArmTimer,
    CancelTimers,
    CloseLease,
    Effect,
    OpenTunnel,
    StartCore,
    StopCore,
    StoreIntent,
    Timer,
    Verify,
)
from psiphon_vpn.service.events import (
    CoreExited,
    CoreFault,
    CoreRegion,
    CoreStartFailed,
    CoreTunnels,
    EnforcementFailed,
    Event,
    Intent,
    LinksChanged,
    LockBroken,
    SettingsBad,
    SettingsGood,
    TimerFired,
    TunBroken,
    TunnelSilent,
    UplinkSeen,
    UserRestart,
    UserStart,
    UserStop,
    VerificationFailed,
    Verified,
)
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.uplink import Uplink

LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.LOCKED: frozenset({State.LOCKED, State.CONNECTING, State.FAILED}),
    State.CONNECTING: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.FAILED}),
    State.VERIFYING: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.OPEN, State.FAILED}),
    State.OPEN: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.FAILED}),
    State.FAILED: frozenset({State.LOCKED, State.FAILED}),
}

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0
VERIFICATIONS_PER_CORE = 3


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that decisions rest on.

    Attributes:
        core: number of the core that was started last; events carry it.
        core_running: that core has not ended yet.
        tunnels: what that core said last.
        verification: number of the verification under way or done last.
        failures: starts in a row that led to nothing.
        doubts: verifications in a row of this core that failed.
    """

    state: State = State.LOCKED
    reason: Reason = Reason.STARTING
    detail: str = ""
    intent: Intent = Intent.CONNECTED
    settings_good: bool = True
    uplink: Uplink | None = None
    core: int = 0
    core_running: bool = False
    tunnels: int = 0
    verification: int = 0
    failures: int = 0
    doubts: int = 0
    establish_timeout: int = 300
    region: str | None = None
    fault: Reason | None = None


Step = tuple[Model, tuple[Effect, ...]]


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


def _start_core(model: Model, effects: list[Effect]) -> Model:
    number = model.core + 1
    effects.append(StartCore(number))
    if model.establish_timeout:
        effects.append(ArmTimer(Timer.ESTABLISH, float(model.establish_timeout)))
    return replace(model, core=number, core_running=True, tunnels=0, doubts=0, region=None, fault=None)


def _lock(model: Model, reason: Reason, detail: str = "", *, graceful: bool = False) -> tuple[Model, list[Effect]]:
    model, effects = _move(model, State.LOCKED, reason, detail)
    return _stop_core(model, effects, graceful=graceful), effects


def _begin(model: Model, reason: Reason, detail: str = "") -> Step:
    """From scratch: connecting where that is wanted and possible, locked where not."""
    if not model.settings_good:
        return _fail(model, Reason.BAD_CONFIG, model.detail)
    if model.intent is Intent.STOPPED:
        model, effects = _lock(model, Reason.STOPPED_BY_USER, graceful=True)
        return model, tuple(effects)
    if model.uplink is None:
        model, effects = _lock(model, Reason.NO_UPLINK)
        return model, tuple(effects)
    return _connect(model, reason, detail)


def _connect(model: Model, reason: Reason, detail: str = "") -> Step:
    """A new core. The lease is closed and the old core is gone before the new one may use the wire."""
    effects: list[Effect] = [CloseLease()]
    model = _stop_core(model, effects)
    if State.CONNECTING not in LEGAL_MOVES[model.state]:
        model, more = _move(model, State.LOCKED, reason, detail)
        effects += more
    model, more = _move(model, State.CONNECTING, reason, detail)
    effects += more
    model = _start_core(model, effects)
    return model, tuple(effects)


def _fail(model: Model, reason: Reason, detail: str) -> Step:
    model, effects = _move(model, State.FAILED, reason, detail)
    model = _stop_core(model, effects)
    return model, tuple(effects)


def _retry_later(model: Model, reason: Reason, detail: str = "") -> Step:
    """The core is of no use: at once a new one if it had been of use, else locked until a timer says otherwise."""
    wanted = model.intent is Intent.CONNECTED and model.uplink is not None and model.settings_good
    if wanted and model.state is State.OPEN:
        return _connect(replace(model, failures=0), reason, detail)
    model, effects = _lock(model, reason, detail)
    if not wanted:
        return model, tuple(effects)
    delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(model.failures, 10))
    effects.append(ArmTimer(Timer.RETRY, delay))
    return replace(model, failures=model.failures + 1), tuple(effects)


def _verify(model: Model, reason: Reason, detail: str = "") -> Step:
    same_policy = model.state is State.CONNECTING  # by construction: Policy.core_may_connect, tunnel_may_open
    model, effects = _move(model, State.VERIFYING, reason, detail)
    if same_policy:
        effects = [effect for effect in effects if not isinstance(effect, ApplyPolicy)]
    number = model.verification + 1
    effects.append(Verify(number))
    return replace(model, verification=number), tuple(effects)


def _remember(intent: Intent, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """Store what the user asked for before anything that may fail, but after the lease is closed."""
    first = 1 if effects and isinstance(effects[0], CloseLease) else 0
    return (*effects[:first], StoreIntent(intent), *effects[first:])


def step(model: Model, event: Event) -> Step:
    """What an event leads to. An event that does not concern the present leads to nothing."""
    match event:
        case UserStart():
            stored = replace(model, intent=Intent.CONNECTED, failures=0)
            if model.intent is Intent.CONNECTED and model.state in {State.CONNECTING, State.VERIFYING, State.OPEN}:
                return stored, ()
            after, effects = _begin(stored, Reason.CONNECTING)
            return after, _remember(Intent.CONNECTED, effects)
        case UserStop():
            after, effects = _begin(replace(model, intent=Intent.STOPPED), Reason.STOPPED_BY_USER)
            return after, _remember(Intent.STOPPED, effects)
        case UserRestart():
            after, effects = _begin(replace(model, intent=Intent.CONNECTED, failures=0), Reason.RESTARTING)
            return after, _remember(Intent.CONNECTED, effects)
        case SettingsBad(detail):
            return _fail(replace(model, settings_good=False, detail=detail), Reason.BAD_CONFIG, detail)
        case SettingsGood(timeout):
            good = replace(model, settings_good=True, establish_timeout=timeout, failures=0)
            return _begin(good, Reason.CONNECTING)
        case UplinkSeen(uplink):
            return _see_uplink(model, uplink)
        case LinksChanged() if model.state is State.OPEN or model.state is State.VERIFYING:
            return _verify(model, Reason.RULES_CHANGED)
        case LinksChanged():
            return model, (ApplyPolicy(model.state),)
        case EnforcementFailed(detail):
            model, effects_list = _move(model, State.LOCKED, Reason.LOCK_FAILED, detail)
            # The rules that failed are not tried again at once: what stands now drops everything.
            effects_list = [effect for effect in effects_list if not isinstance(effect, ApplyPolicy)]
            model = _stop_core(model, effects_list)
            delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(model.failures, 10))
            effects_list.append(ArmTimer(Timer.RETRY, delay))
            return replace(model, failures=model.failures + 1), tuple(effects_list)
        case TunBroken(detail) if model.state is not State.FAILED:
            return _retry_later(model, Reason.TUN_FAILED, detail)
        case LockBroken(detail) if model.state in {State.OPEN, State.VERIFYING}:
            return _verify(model, Reason.RULES_CHANGED, detail)
        case LockBroken():
            return model, (ApplyPolicy(model.state),)
        case TimerFired(Timer.RETRY) if model.state in {State.LOCKED, State.CONNECTING}:
            return _begin(model, model.reason, model.detail)
        case TimerFired(Timer.ESTABLISH) if model.state is State.CONNECTING:
            return _retry_later(model, model.fault or Reason.NO_SERVER)
        case _:
            return _step_core(model, event)


def _see_uplink(model: Model, uplink: Uplink | None) -> Step:
    if uplink == model.uplink:
        return model, ()
    changed = replace(model, uplink=uplink)
    if model.state is State.FAILED or model.intent is Intent.STOPPED:
        return changed, (ApplyPolicy(model.state),)
    first = model.uplink is None
    return _begin(replace(changed, failures=0), Reason.CONNECTING if first else Reason.UPLINK_CHANGED)


def _step_core(model: Model, event: Event) -> Step:
    """Events of the core and of the verification; those of an earlier one are stale."""
    match event:
        case CoreStartFailed(core, detail, reason) if core == model.core and model.core_running:
            return _retry_later(replace(model, core_running=False), reason, detail)
        case CoreExited(core, detail) if core == model.core and model.core_running:
            gone = replace(model, core_running=False)
            return _retry_later(gone, model.fault or Reason.CORE_EXITED, detail)
        case CoreFault(core, reason) if core == model.core and model.core_running:
            return replace(model, fault=reason), ()
        case CoreRegion(core, region) if core == model.core and model.core_running:
            return replace(model, region=region), ()
        case CoreTunnels(core, count) if core == model.core and model.core_running:
            model = replace(model, tunnels=count)
            if count >= 1 and model.state is State.CONNECTING:
                return _verify(model, Reason.TUNNEL_UP)
            if count < 1 and model.state in {State.VERIFYING, State.OPEN}:
                model, effects = _move(model, State.CONNECTING, Reason.TUNNEL_LOST)
                if model.establish_timeout:
                    effects.append(ArmTimer(Timer.ESTABLISH, float(model.establish_timeout)))
                return model, tuple(effects)
            return model, ()
        case Verified(number) if (
            number == model.verification
            and model.state is State.VERIFYING
            and model.core_running
            and model.tunnels >= 1
        ):
            model, effects = _move(model, State.OPEN, Reason.VERIFIED)
            return replace(model, failures=0, doubts=0), (*effects, OpenTunnel(number))
        case VerificationFailed(number, detail) if number == model.verification and model.state is State.VERIFYING:
            if model.doubts + 1 < VERIFICATIONS_PER_CORE:
                return _verify(replace(model, doubts=model.doubts + 1), Reason.TUNNEL_SILENT, detail)
            return _retry_later(model, Reason.TUNNEL_SILENT, detail)
        case TunnelSilent(detail) if model.state is State.OPEN:
            return _verify(model, Reason.TUNNEL_SILENT, detail)
        case _:
            return model, ()
