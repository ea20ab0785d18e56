"""What the state machine is told. Events of a core or of a verification carry its number: stale ones are known."""

import enum
from dataclasses import dataclass

from psiphon_vpn.config import Settings
from psiphon_vpn.network.choice import Use
from psiphon_vpn.network.observed import Observed
from psiphon_vpn.service.reasons import Reason


class Intent(enum.StrEnum):
    """What the user asked for: stored apart from the state, which is what is true."""

    CONNECTED = "connected"
    STOPPED = "stopped"


class Timer(enum.StrEnum):
    """The timers. All of them are cancelled by every move."""

    RETRY = "retry"
    """Locked, and tries again."""
    ESTABLISH = "establish"
    """A core that never gets a tunnel is given up."""
    SLOW = "slow"
    """A core that has no tunnel yet: time to say what may be the cause."""
    QUIET = "quiet"
    """A core that has no tunnel and says nothing any more is given up. Starts anew with everything that it says."""
    GIVE_WAY = "give_way"
    """An uplink that brings no tunnel is given up for another, where there is one."""
    CALM = "calm"
    """Nothing has gone wrong for a while: troubles are counted from zero again."""
    VERIFICATION = "verification"
    """A verification that neither succeeds nor fails is given up."""
    RENEWAL = "renewal"
    """Open, and nothing renews the lease: it has run out by then. Starts anew with each renewal."""
    WAKE = "wake"
    """The machine said that it would sleep, and still runs: nobody told of its waking. Counts waking time only."""


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
    """The network as it is now: the ways out, and all that rules name.

    Attributes:
        uses: what the core's sockets use of the uplink; None where that is not known.
    """

    seen: Observed
    uses: frozenset[Use] | None = None


@dataclass(frozen=True)
class UplinkLost:
    """The kernel says that the uplink is gone, or its addresses are. What there is now is seen in a moment."""


@dataclass(frozen=True)
class AmendmentRefused:
    """Single rules could not be changed in place: the policy has to be loaded as a whole."""


@dataclass(frozen=True)
class LockBroken:
    """Rules or routes were not what they should be."""

    detail: str


@dataclass(frozen=True)
class LockFought:
    """Another program changes rules or routes again and again."""

    culprit: str


@dataclass(frozen=True)
class TunBroken:
    """The TUN is gone, or was replaced, or cannot be made.

    Attributes:
        taken: somebody took it away, and nothing says that it cannot be made again.
    """

    detail: str
    taken: bool = False


@dataclass(frozen=True)
class EnforcementFailed:
    """The kernel did not take the policy. What stands now drops everything, or is what stood before.

    Attributes:
        led_around: it did, and sends what programs send by another way than the tunnel.
    """

    detail: str
    led_around: bool = False


@dataclass(frozen=True)
class SleepComing:
    """The machine is about to sleep."""


@dataclass(frozen=True)
class Woke:
    """The machine slept, and runs again: what was checked before says nothing about now. The links were read anew."""


@dataclass(frozen=True)
class CoreStartFailed:
    """The core could not be started, or was not, since it is not what it has to be."""

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
    """What is wrong with the core's attempts, None when it no longer is; it may go on trying."""

    core: int
    reason: Reason | None


@dataclass(frozen=True)
class CoreRegion:
    """The region of the server that the core is connected to."""

    core: int
    region: str


@dataclass(frozen=True)
class CoreTunnels:
    """How many tunnels the core says it has."""

    core: int
    count: int


@dataclass(frozen=True)
class Verified:
    """Rules, routes, TUN and tunnel were checked, and all is well."""

    number: int


@dataclass(frozen=True)
class VerificationFailed:
    """Something was not well."""

    number: int
    detail: str


@dataclass(frozen=True)
class TunnelSilent:
    """The tunnel did not answer while open."""

    detail: str


@dataclass(frozen=True)
class LeaseLost:
    """The lease was to be renewed, and there is none. It is closed.

    Attributes:
        expired: its time was over before it was renewed. If not, it was closed meanwhile, and why is told apart.
    """

    expired: bool


@dataclass(frozen=True)
class PartFailed:
    """A part of the service failed, or carrying out an effect did. It is closed already.

    Attributes:
        part: its name.
        kind: what ended it, without the error's own text.
    """

    part: str
    kind: str

    @property
    def told(self) -> str:
        """Both, for people."""
        return f"{self.part}: {self.kind}"


@dataclass(frozen=True)
class TimerFired:
    """A timer that was armed ran out."""

    timer: Timer


Event = (
    UserStart
    | UserStop
    | UserRestart
    | SettingsGood
    | SettingsBad
    | NetworkSeen
    | UplinkLost
    | AmendmentRefused
    | LockBroken
    | LockFought
    | TunBroken
    | EnforcementFailed
    | SleepComing
    | Woke
    | CoreStartFailed
    | CoreExited
    | CoreFault
    | CoreRegion
    | CoreTunnels
    | Verified
    | VerificationFailed
    | TunnelSilent
    | LeaseLost
    | PartFailed
    | TimerFired
)
