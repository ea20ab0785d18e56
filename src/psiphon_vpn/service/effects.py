"""What the state machine asks to be done. Carried out in order; when one fails, those behind it are not."""

from dataclasses import dataclass

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import Intent, Timer


@dataclass(frozen=True)
class CloseLease:
    """Empty the lease's sets in the kernel, at once."""


@dataclass(frozen=True)
class ApplyPolicy:
    """Load the policy of a state, its routes, and what stands around it; read it back."""

    state: State


@dataclass(frozen=True)
class AmendPolicy:
    """Load what changed in the rules of a state and nothing else: a lease goes on, and is renewed after a reading."""

    state: State


@dataclass(frozen=True)
class StartCore:
    """Start the core with this number, bound to the present uplink.

    Attributes:
        proxy: with its SOCKS proxy, if the port is free.
    """

    number: int
    proxy: bool = True


@dataclass(frozen=True)
class StopCore:
    """End the core and wait for it."""

    graceful: bool


@dataclass(frozen=True)
class Verify:
    """Check rules, routes and TUN, and ask the resolver through the tunnel; answer with this number."""

    number: int


@dataclass(frozen=True)
class OpenTunnel:
    """Check once more and take the lease, on the strength of the verification with this number."""

    number: int


@dataclass(frozen=True)
class ArmTimer:
    """Wake up after so many seconds."""

    timer: Timer
    seconds: float


@dataclass(frozen=True)
class CancelTimers:
    """Forget all timers."""


@dataclass(frozen=True)
class StoreIntent:
    """Remember what the user asked for, across a reboot."""

    intent: Intent


@dataclass(frozen=True)
class SetDataAside:
    """Move what the core stored out of its way. No core runs, and whether it succeeds is not waited for."""


@dataclass(frozen=True)
class DoubtTun:
    """Have the TUN made anew with the next policy: something about it that nobody looks at may keep packets back."""


@dataclass(frozen=True)
class FindCause:
    """Look, without sending anything, why the core with this number gets no tunnel; answer by `CoreFault`."""

    core: int


Effect = (
    CloseLease
    | ApplyPolicy
    | AmendPolicy
    | StartCore
    | StopCore
    | Verify
    | OpenTunnel
    | ArmTimer
    | CancelTimers
    | StoreIntent
    | FindCause
    | DoubtTun
    | SetDataAside
)
