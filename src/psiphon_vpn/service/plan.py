# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An answer of the state machine under construction: the new model, and the effects in their order.

It keeps the promises about every answer, so that no state can forget them: each move out of OPEN closes the lease
before anything else, each move ends a rescue, and every move is in the table of legal moves.
"""

from dataclasses import replace
from typing import Any

from psiphon_vpn.policy.model import State
from psiphon_vpn.service.effects import (
    ApplyPolicy,
    ArmTimer,
    CancelTimers,
    CloseLease,
    Effect,
    StartCore,
    StartRescue,
    StopCore,
    StopRescue,
    StoreIntent,
)
from psiphon_vpn.service.events import Intent, Timer
from psiphon_vpn.service.model import LEGAL_MOVES, Model
from psiphon_vpn.service.reasons import Reason

Step = tuple[Model, tuple[Effect, ...]]


class IllegalMove(Exception):
    """A defect of this program: a move that the table does not allow."""


class Plan:
    """The answer to one event.

    Args:
        model: at the time of the event.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._effects: list[Effect] = []
        self._closed = False

    @property
    def step(self) -> Step:
        """The answer so far."""
        return self.model, tuple(self._effects)

    @property
    def empty(self) -> bool:
        """Whether there is no effect yet."""
        return not self._effects

    def update(self, **changes: Any) -> None:
        """Change the model."""
        self.model = replace(self.model, **changes)

    def do(self, effect: Effect) -> None:
        """Append an effect."""
        self._effects.append(effect)

    def arm(self, timer: Timer, seconds: float) -> None:
        """Arm a timer."""
        self.do(ArmTimer(timer, seconds))

    def close(self) -> None:
        """Close the lease, if there is one."""
        if not self._closed:
            self.do(CloseLease())
        self._closed = True

    def remember(self, intent: Intent) -> None:
        """Store the intent after closing the lease, and before anything that may fail."""
        self.close()
        self.update(intent=intent)
        self.do(StoreIntent(intent))

    def move(self, state: State, reason: Reason, detail: str = "", *, load: bool = True) -> None:
        """Go to a state.

        Args:
            state: the new state.
            reason: why.
            detail: more about the reason, for people.
            load: load the rules of that state. False if the present rules are the same, or must not be replaced now.

        Raises:
            IllegalMove: the table does not allow it.
        """
        if state not in LEGAL_MOVES[self.model.state]:
            raise IllegalMove(f"{self.model.state} -> {state}")
        if self.model.state is State.OPEN:
            self.close()
        self.end_rescue()
        self.do(CancelTimers())
        if load:
            self.do(ApplyPolicy(state))
        self.update(state=state, reason=reason, detail=detail)

    def stop_core(self, *, graceful: bool = False) -> None:
        """End the core, if one runs."""
        if self.model.core_running:
            self.do(StopCore(graceful=graceful))
        self.update(core_running=False, tunnels=0, doubts=0, region=None, fault=None)

    def start_rescue(self) -> None:
        """Ask for a newer list of servers, beside the core."""
        number = self.model.rescue + 1
        self.do(StartRescue(number))
        self.update(rescue=number, rescuing=True)

    def end_rescue(self) -> None:
        """End a rescue that is not over. Every move does, before anything is loaded."""
        if self.model.rescuing:
            self.do(StopRescue())
        self.update(rescuing=False)

    def start_core(self, *, proxy: bool) -> None:
        """Start a core on the current uplink."""
        number = self.model.core + 1
        self.do(StartCore(number, proxy))
        self.update(core=number, core_running=True, tunnels=0, doubts=0, region=None, fault=None)
        self.update(uplink_at_start=self.model.uplink, proxy=proxy)
