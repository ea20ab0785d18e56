"""The events of the state machine. Those of a core or a verification carry its number, to recognise stale ones."""

import enum
from dataclasses import dataclass

from psiphon_vpn.config import Settings
from psiphon_vpn.network.choice import SocketUse
from psiphon_vpn.network.observed import ObservedNetwork
from psiphon_vpn.service.reasons import Reason


class Intent(enum.StrEnum):
    """What the user asked for. It is stored apart from the state."""

    CONNECTED = "connected"
    STOPPED = "stopped"


class Timer(enum.StrEnum):
    """The timers. Every move cancels all of them."""

    RETRY = "retry"
    """Locked: try again."""
    ESTABLISH = "establish"
    """Give up a core that never gets a tunnel."""
    SLOW = "slow"
    """The core has no tunnel yet: look for the cause."""
    QUIET = "quiet"
    """Give up a core without a tunnel that no longer sends notices. Each notice restarts the timer."""
    GIVE_WAY = "give_way"
    """Give up an uplink without a tunnel for another, if there is one."""
    CALM = "calm"
    """Nothing has gone wrong for a while: count troubles from zero again."""
    VERIFICATION = "verification"
    """Give up a verification that neither succeeds nor fails."""
    RENEWAL = "renewal"
    """Open, and nothing renews the lease: it has run out by then. Each renewal restarts the timer."""
    WAKE = "wake"
    """A sleep was announced and the machine still runs, or its end was not reported. Counts waking time only."""


@dataclass(frozen=True)
class UserStart:
    """The user wants to be connected."""


@dataclass(frozen=True)
class UserStop:
    """The user wants to be disconnected: locked."""


@dataclass(frozen=True)
class UserRestart:
    """The user wants it from scratch."""


@dataclass(frozen=True)
class SettingsGood:
    """The configuration was read."""

    settings: Settings


@dataclass(frozen=True)
class SettingsBad:
    """The configuration is not usable."""

    detail: str


@dataclass(frozen=True)
class NetworkSeen:
    """The network as it is now: the ways out, and everything that rules name.

    Attributes:
        uses: what the core's sockets use of the uplink; None if unknown.
    """

    seen: ObservedNetwork
    uses: frozenset[SocketUse] | None = None


@dataclass(frozen=True)
class UplinkLost:
    """The kernel announced that the uplink or its addresses are gone. A look at the network follows."""


@dataclass(frozen=True)
class AmendmentRefused:
    """Single rules could not be changed in place: load the whole policy."""


@dataclass(frozen=True)
class LockBroken:
    """Rules or routes were not as they should be."""

    detail: str


@dataclass(frozen=True)
class LockFought:
    """Another program changes rules or routes again and again."""

    culprit: str


@dataclass(frozen=True)
class TunBroken:
    """The TUN is gone, or was replaced, or cannot be made.

    Attributes:
        taken: another program removed it; nothing suggests that it cannot be made again.
    """

    detail: str
    taken: bool = False


@dataclass(frozen=True)
class EnforcementFailed:
    """The kernel did not accept the policy. The rules now drop everything, or are the previous ones.

    Attributes:
        led_around: it did accept it, but routes programs' packets past the tunnel.
    """

    detail: str
    led_around: bool = False


@dataclass(frozen=True)
class SleepComing:
    """The machine is about to sleep."""


@dataclass(frozen=True)
class Woke:
    """The machine slept, and runs again: earlier checks say nothing about now. The links were read again."""


@dataclass(frozen=True)
class CoreStartFailed:
    """The core could not be started, or was not started because it failed its check."""

    core: int
    detail: str
    reason: Reason = Reason.CORE_MISSING


@dataclass(frozen=True)
class CoreExited:
    """The core ended by itself."""

    core: int
    detail: str


@dataclass(frozen=True)
class CoreFault:
    """What is wrong with the core's attempts; None when nothing is any more. The core may keep trying."""

    core: int
    reason: Reason | None


@dataclass(frozen=True)
class CoreRegion:
    """The region of the server that the core is connected to."""

    core: int
    region: str


@dataclass(frozen=True)
class CoreTunnels:
    """How many tunnels the core reports."""

    core: int
    count: int


@dataclass(frozen=True)
class Verified:
    """Rules, routes, TUN and tunnel were checked and found right."""

    number: int


@dataclass(frozen=True)
class VerificationFailed:
    """Something was not right."""

    number: int
    detail: str


@dataclass(frozen=True)
class TunnelSilent:
    """The tunnel did not answer while open."""

    detail: str


@dataclass(frozen=True)
class LeaseLost:
    """There was no lease to renew. The tunnel is closed.

    Attributes:
        expired: the lease ran out before its renewal. If not, it was closed meanwhile; another event says why.
    """

    expired: bool


@dataclass(frozen=True)
class PartFailed:
    """A part of the service failed, or an effect. The lease is already closed.

    Attributes:
        part: its name.
        kind: what ended it, without the error's own text.
    """

    part: str
    kind: str

    @property
    def description(self) -> str:
        """Both, for people."""
        return f"{self.part}: {self.kind}"


@dataclass(frozen=True)
class TimerFired:
    """A timer that was armed ran out.

    Attributes:
        timer: which one.
        number: of the time that it was armed or put off. It counts only while that was the last time.
    """

    timer: Timer
    number: int = 0


CommonEvent = UserStart | UserStop | UserRestart | SettingsGood | SettingsBad | NetworkSeen | UplinkLost
"""Events that all states answer alike, except for the loading of rules and a connection in progress (`any_state`)."""

LockEvent = LockFought | EnforcementFailed | TunBroken | PartFailed | SleepComing | Woke
"""Troubles, and sleep: all states with a core answer them alike (`states/with_core`)."""

RulesEvent = AmendmentRefused | LockBroken
CoreEvent = CoreStartFailed | CoreExited | CoreFault | CoreRegion | CoreTunnels
TunnelEvent = Verified | VerificationFailed | TunnelSilent | LeaseLost
StateEvent = RulesEvent | LockEvent | CoreEvent | TunnelEvent | TimerFired
Event = CommonEvent | StateEvent
