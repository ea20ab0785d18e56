# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
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
    RESCUE = "rescue"
    """No server has answered: perhaps ask for a newer list of servers. Fires again and again while connecting."""
    HELD = "held"
    """The tunnel has been open for a while: what goes wrong from now on does not count as an opening that failed."""
    CALM = "calm"
    """Nothing has happened for a while: count troubles and changes from zero again."""
    VERIFICATION = "verification"
    """Give up a verification that neither succeeds nor fails."""
    RENEWAL = "renewal"
    """Open, and nothing renews the lease: it has run out by then. Each renewal restarts the timer."""
    WAKE = "wake"
    """A sleep was announced and the machine still runs, or its end was not reported. Counts waking time only."""


@dataclass(frozen=True)
class UserStart:
    """The user wants to be connected.

    Attributes:
        settings: the configuration, read with the command; None if it is not usable.
    """

    settings: Settings | None = None


@dataclass(frozen=True)
class UserStop:
    """The user wants to be disconnected: locked."""


@dataclass(frozen=True)
class UserRestart:
    """The user wants it from scratch; `settings` as in `UserStart`."""

    settings: Settings | None = None


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
        taken: another program removed it, or set it down; nothing suggests that it cannot be made again.
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
    """What is wrong with the core's attempts; None when nothing is any more. The core may keep trying.

    Attributes:
        detail: more about it, for people.
    """

    core: int
    reason: Reason | None
    detail: str = ""


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
class RescueEnded:
    """The rescue with this number is over.

    Attributes:
        found: it brought a verified list that the core does not have yet.
        proxy_trouble: what the upstream proxy did instead of connecting, for people; empty if it is not at fault.
    """

    number: int
    found: bool
    proxy_trouble: str = ""


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
StateEvent = RulesEvent | LockEvent | CoreEvent | TunnelEvent | RescueEnded | TimerFired
Event = CommonEvent | StateEvent
