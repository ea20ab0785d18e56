"""What the state machine decides on: the model, the table of legal moves, and how long it waits for what. Pure."""

from dataclasses import dataclass, field

from psiphon_vpn.config import Settings
from psiphon_vpn.network.observed import Observed
from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.policy.derive import UplinkFacts
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import Intent
from psiphon_vpn.service.reasons import Reason

LEGAL_MOVES: dict[State, frozenset[State]] = {
    State.LOCKED: frozenset({State.LOCKED, State.CONNECTING, State.FAILED}),
    State.CONNECTING: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.FAILED}),
    State.VERIFYING: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.OPEN, State.FAILED}),
    State.OPEN: frozenset({State.LOCKED, State.CONNECTING, State.VERIFYING, State.FAILED}),
    State.FAILED: frozenset({State.LOCKED, State.FAILED}),
}

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 60.0
VERIFICATIONS_PER_CORE = 3
FAILURES_PER_UPLINK = 3
"""So many cores in a row that led to nothing, and another uplink is tried, where there is one."""
TROUBLES_AT_ONCE = 5
"""So many networks that are new, and tunnels that are lost, are answered at once; further ones after a pause that
doubles, until it has been calm for CALM_SECONDS."""
CALM_SECONDS, LAST_CALM_SECONDS = 20.0, 10.0
SLOW_SECONDS = 15.0
QUIET_SECONDS = 120.0
"""The longest that psiphon-tunnel-core was seen to say nothing while it tries is one dial: 20 s, times up to three."""
WAKE_SECONDS = 30.0
VERIFICATION_SECONDS = 60.0
"""A question takes 4 s, and reading back tens of milliseconds; a busy machine may take seconds for it."""
RENEWAL_SECONDS = 8.0
"""The lease has run out by then, and is not renewed as it was."""
FIRST_FIGHT_SECONDS, LAST_FIGHT_SECONDS = 2.0, 60.0
"""So long nobody may have changed the lock before it is tried again, doubled with each fight without calm between."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that decisions rest on.

    Attributes:
        core: number of the core that was started last; events carry it.
        core_running: that core has not ended yet.
        proxy: that core was to have its SOCKS proxy.
        tunnels: what that core said last.
        verification: number of the verification under way or done last.
        failures: starts in a row that led to nothing.
        doubts: verifications in a row of this core that failed.
        unrest: uplinks that came and tunnels that were lost since it was calm.
        fights: with other programs over the lock, since it was calm.
        asleep: the machine said that it is going to sleep, and not yet that it woke.
        fault: what is wrong with this core's attempts.
        seen: the network as it was seen last.
        settings: the last ones that were good.
        footing: the uplink as it was when the core was started: what may be in use of it.
        barren: indexes of the uplinks that brought no tunnel, until all were tried or the one that did is lost.
        rounds: how often all were tried without a tunnel.
        data_set_aside: the core's data were set aside since it was last open; that helps once, or not at all.
    """

    state: State = State.LOCKED
    reason: Reason = Reason.STARTING
    detail: str = ""
    intent: Intent = Intent.CONNECTED
    settings_good: bool = True
    uplink: Uplink | None = None
    seen: Observed = field(default_factory=Observed)
    settings: Settings = field(default_factory=Settings)
    footing: Uplink | None = None
    barren: frozenset[int] = frozenset()
    rounds: int = 0
    core: int = 0
    core_running: bool = False
    proxy: bool = True
    tunnels: int = 0
    verification: int = 0
    failures: int = 0
    doubts: int = 0
    unrest: int = 0
    fights: int = 0
    asleep: bool = False
    region: str | None = None
    fault: Reason | None = None
    data_set_aside: bool = False

    @property
    def choices(self) -> tuple[Uplink, ...]:
        """Every uplink that could be taken, the best first."""
        return self.seen.uplinks

    @property
    def named(self) -> str:
        """The interface that the configuration names as uplink, if any."""
        return self.settings.uplink

    @property
    def uplink_facts(self) -> UplinkFacts | None:
        """What rules name of the uplink."""
        return self.uplink.facts if self.uplink is not None else None


def calm_delay(unrest: int) -> float:
    """Seconds to wait after so many troubles without calm; 0 for not at all."""
    over = unrest - TROUBLES_AT_ONCE
    return min(LAST_CALM_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(over - 1, 10)) if over > 0 else 0.0


def fight_delay(fights: int) -> float:
    """Seconds of peace to wait for in so many fights without calm."""
    return min(LAST_FIGHT_SECONDS, FIRST_FIGHT_SECONDS * 2.0 ** min(max(fights - 1, 0), 10))


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many starts in a row that led to nothing."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10))
