"""What the state machine asks to be done. Carried out in order; when one fails, those behind it are not."""

import enum
from dataclasses import dataclass

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import Intent


class Timer(enum.StrEnum):
    """The timers. All of them are cancelled by every move."""

    RETRY = "retry"
    ESTABLISH = "establish"


@dataclass(frozen=True)
class CloseLease:
    """Empty the lease's sets in the kernel, at once."""


@dataclass(frozen=True)
class ApplyPolicy:
    """Load the policy of a state, its routes, and what stands around it; read it back."""

    state: State


@dataclass(frozen=True)
class StartCore:
    """Start the core with this number, bound to the present uplink."""

    number: int


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


Effect = CloseLease | ApplyPolicy | StartCore | StopCore | Verify | OpenTunnel | ArmTimer | CancelTimers | StoreIntent
