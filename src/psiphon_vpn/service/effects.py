# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The effects that the state machine orders. Carried out in order; after a failure the rest is dropped."""

from dataclasses import dataclass

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.events import Intent, Timer


@dataclass(frozen=True)
class CloseLease:
    """Empty the lease's sets in the kernel, at once."""


@dataclass(frozen=True)
class ApplyPolicy:
    """Load the policy of a state, its routes and kernel settings, and read everything back."""

    state: State


@dataclass(frozen=True)
class AmendPolicy:
    """Load only what changed in the rules of a state: a lease continues, and is renewed after a reading."""

    state: State


@dataclass(frozen=True)
class StartCore:
    """Start the core with this number, bound to the current uplink.

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
    """Check rules, routes and TUN, and send the resolver a question through the tunnel; report with this number."""

    number: int


@dataclass(frozen=True)
class OpenTunnel:
    """Check once more and take the lease that the verification with this number allows."""

    number: int


@dataclass(frozen=True)
class ArmTimer:
    """Have an event after so many seconds."""

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
    """Set the core's stored data aside while no core runs. The state machine does not wait for the outcome."""


@dataclass(frozen=True)
class ReplaceTun:
    """Have the next policy make a new TUN: something that no check covers may hold packets back."""


@dataclass(frozen=True)
class StartRescue:
    """Ask hosts of server lists, at addresses known from earlier tunnels; report with this number (`rescue.py`)."""

    number: int


@dataclass(frozen=True)
class StopRescue:
    """End the rescue, if it is not over, and wait for its end: nothing of it is sent any more."""


@dataclass(frozen=True)
class FindCause:
    """Find out, without sending anything, why the core with this number gets no tunnel; report by `CoreFault`."""

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
    | StartRescue
    | StopRescue
    | ReplaceTun
    | SetDataAside
)
