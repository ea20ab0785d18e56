"""An answer of the state machine while it is put together: the model as it will be, and the effects in their order.

What is promised of every answer is kept here, so that no state can forget it: each move out of OPEN closes the lease
before anything else, and no move is made that the table of legal moves does not have.
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
    StopCore,
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
        model: as it is when the event comes.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._effects: list[Effect] = []
        self._closed = False

    @property
    def step(self) -> Step:
        """The answer as it is now."""
        return self.model, tuple(self._effects)

    @property
    def empty(self) -> bool:
        """Whether nothing is to be done."""
        return not self._effects

    def update(self, **changes: Any) -> None:
        """Change the model."""
        self.model = replace(self.model, **changes)

    def do(self, effect: Effect) -> None:
        """Have something done after all that was planned before."""
        self._effects.append(effect)

    def arm(self, timer: Timer, seconds: float) -> None:
        """Arm a timer."""
        self.do(ArmTimer(timer, seconds))

    def close(self) -> None:
        """Close the lease, whether there is one or not."""
        if not self._closed:
            self.do(CloseLease())
        self._closed = True

    def remember(self, intent: Intent) -> None:
        """Store what the user asked for before anything that may fail, but after the lease is closed."""
        self.close()
        self.update(intent=intent)
        self.do(StoreIntent(intent))

    def move(self, state: State, reason: Reason, detail: str = "", *, load: bool = True) -> None:
        """Go to a state.

        Args:
            state: where to.
            reason: why.
            detail: more of it, for people.
            load: with the rules of that state. Without, those that stand are the same, or are not to be replaced now.

        Raises:
            IllegalMove: the table does not have it.
        """
        if state not in LEGAL_MOVES[self.model.state]:
            raise IllegalMove(f"{self.model.state} -> {state}")
        if self.model.state is State.OPEN:
            self.close()
        self.do(CancelTimers())
        if load:
            self.do(ApplyPolicy(state))
        self.update(state=state, reason=reason, detail=detail)

    def stop_core(self, *, graceful: bool = False) -> None:
        """End the core, if one runs."""
        if self.model.core_running:
            self.do(StopCore(graceful=graceful))
        self.update(core_running=False, tunnels=0, doubts=0, region=None, fault=None)

    def start_core(self, *, proxy: bool) -> None:
        """Start a core on the present uplink."""
        number = self.model.core + 1
        self.do(StartCore(number, proxy))
        self.update(core=number, core_running=True, tunnels=0, doubts=0, region=None, fault=None)
        self.update(footing=self.model.uplink, proxy=proxy)
