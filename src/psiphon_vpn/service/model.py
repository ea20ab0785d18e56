# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of the state machine, the table of legal moves, and all waiting times. Pure."""

from dataclasses import dataclass, field

from psiphon_vpn.config import Settings
from psiphon_vpn.network.observed import ObservedNetwork
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
"""After so many fruitless cores in a row another uplink is tried, if there is one."""
TROUBLES_AT_ONCE = 5
"""So many openings in a row that did not hold are followed by another at once, further ones after a growing pause."""
HELD_SECONDS, LAST_UNREST_SECONDS = 5.0, 10.0
"""An opening has held after the first; the longest pause is the second."""
CHANGES_AT_ONCE = 5
"""So many changes of network are answered at once; a further one when it has held for SETTLE_SECONDS, until nothing
happened for CALM_SECONDS. This pause never grows: a new network costs only the core's own connecting."""
SETTLE_SECONDS = 0.5
CALM_SECONDS = 20.0
SLOW_SECONDS = 15.0
QUIET_SECONDS = 120.0
"""The longest silence seen of psiphon-tunnel-core while it tries is one dial: 20 s, times up to three."""
RESCUE_SECONDS = 20.0
"""Between two looks whether a rescue is due. A core with reachable servers has a tunnel within a few seconds."""
RESCUES_AT_FIRST = (1, 16, 32, 64)
RESCUE_EVERY = 90
"""A rescue is made at these looks without a tunnel in between, and then at every 90th: every half hour. One takes less
than the five minutes between the first two (`rescue.py`)."""
WAKE_SECONDS = 30.0
VERIFICATION_SECONDS = 60.0
"""A question takes up to 4 s, and reading back tens of milliseconds, or seconds on a busy machine."""
RENEWAL_SECONDS = 8.0
"""Without a renewal the lease has run out by then."""
FIRST_FIGHT_SECONDS, LAST_FIGHT_SECONDS = 2.0, 60.0
"""The lock must stay unchanged for this time before the next attempt; doubled with each fight without calm between."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that decisions depend on.

    Attributes:
        core: number of the last core that was started; its events carry it.
        core_running: that core has not ended yet.
        proxy: that core was started with its SOCKS proxy.
        tunnels: how many tunnels that core last reported.
        verification: number of the current or last verification.
        failures: fruitless starts in a row.
        doubts: failed verifications of this core in a row.
        unrest: openings in a row that did not hold, and other troubles of the service since one held.
        changes: new uplinks since it was calm.
        fights: with other programs over the lock, since it was calm.
        asleep: a sleep was announced, and its end not yet.
        fault: what is wrong with this core's attempts.
        seen: the network at the last look.
        settings: the last usable ones.
        uplink_at_start: the uplink as it was when the core was started: the core uses a part of it.
        unsuccessful: indexes of the uplinks without a tunnel, until all were tried or the one with a tunnel is lost.
        rounds: how often all uplinks were tried without a tunnel.
        barren_looks: how often in a row, while connecting, no server had answered when a rescue might have been due.
        rescue: number of the current or last rescue.
        rescuing: that rescue is not over.
        proxy_trouble: URL of an upstream proxy, and what a rescue met instead of a connection; until a later rescue or
            a tunnel gets past it.
        data_set_aside: the core's data were set aside since it was last open; doing it again would not help.
    """

    state: State = State.LOCKED
    reason: Reason = Reason.STARTING
    detail: str = ""
    intent: Intent = Intent.CONNECTED
    settings_good: bool = True
    uplink: Uplink | None = None
    seen: ObservedNetwork = field(default_factory=ObservedNetwork)
    settings: Settings = field(default_factory=Settings)
    uplink_at_start: Uplink | None = None
    unsuccessful: frozenset[int] = frozenset()
    rounds: int = 0
    core: int = 0
    core_running: bool = False
    proxy: bool = True
    tunnels: int = 0
    verification: int = 0
    failures: int = 0
    doubts: int = 0
    unrest: int = 0
    changes: int = 0
    fights: int = 0
    asleep: bool = False
    region: str | None = None
    fault: Reason | None = None
    data_set_aside: bool = False
    barren_looks: int = 0
    rescue: int = 0
    rescuing: bool = False
    proxy_trouble: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def settling(self) -> bool:
        """Whether the network changed so often that it is to hold for a moment before anything begins on it."""
        return self.changes > CHANGES_AT_ONCE

    @property
    def choices(self) -> tuple[Uplink, ...]:
        """Every possible uplink, the best first."""
        return self.seen.uplinks

    @property
    def named(self) -> str:
        """The interface that the configuration names as uplink, if any."""
        return self.settings.uplink

    @property
    def uplink_facts(self) -> UplinkFacts | None:
        """The part of the uplink that rules name."""
        return self.uplink.facts if self.uplink is not None else None


def settle_delay(changes: int) -> float:
    """Seconds for which a network must hold after so many changes without calm; 0 if it need not be waited for."""
    return SETTLE_SECONDS if changes > CHANGES_AT_ONCE else 0.0


def unrest_delay(unrest: int) -> float:
    """Seconds to wait after so many troubles since an opening held; 0 if it need not wait."""
    over = unrest - TROUBLES_AT_ONCE
    return min(LAST_UNREST_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(over - 1, 10)) if over > 0 else 0.0


def is_rescue_due(barren_looks: int) -> bool:
    """Whether a rescue is made after so many looks without a tunnel: ever more rarely."""
    return barren_looks in RESCUES_AT_FIRST or (barren_looks > 0 and barren_looks % RESCUE_EVERY == 0)


def fight_delay(fights: int) -> float:
    """Seconds without a change to wait for, after so many fights without calm."""
    return min(LAST_FIGHT_SECONDS, FIRST_FIGHT_SECONDS * 2.0 ** min(max(fights - 1, 0), 10))


def retry_delay(failures: int) -> float:
    """Seconds to wait after so many fruitless starts in a row."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10))
