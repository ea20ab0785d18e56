# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine under test, as the matrix sees it: brought into a state, and attacked in it.

Only these few calls reach a machine with a kernel of its own. What is outside (captures, judge, verdict) is not part
of it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from psiphon_lab.attacks import load_attacks
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.held_state import HeldState
from psiphon_lab.leaktest.layer_counters import ROUTING, read_counters, subtract
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.states import STATES
from psiphon_lab.leaktest.testbed import Testbed
from psiphon_lab.leaktest.trial import Trial, missing_tools
from psiphon_lab.leaktest.verdict import Tried
from psiphon_lab.namespace import LabError
from psiphon_lab.service_adapter.mechanisms import find_missing


@dataclass(frozen=True, kw_only=True)
class Played:
    """What was done to the machine.

    Attributes:
        seconds: how long it took.
        actions: what was done, one line each.
        tried: the attempts.
        state_lost: why the state was not held, or "".
        error: why the attack could not be carried out, or "".
        layers: packets that each layer refused meanwhile.
        claimed: networks that the provider claimed to be on its link.
    """

    seconds: float = 0.0
    actions: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    state_lost: str = ""
    error: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    claimed: tuple[str, ...] = ()


class Player(Protocol):
    """A machine under test. Each call may raise LabError."""

    def find_missing(self) -> tuple[str, ...]:
        """Which mechanisms of the service's layers its kernel lacks."""

    def begin(self, mode: Mode, attacks: Sequence[str]) -> None:
        """Begin what these attacks begin before the lock, and lock the machine, except in the positive control.

        It stays locked for the states that follow, except while such an attack begins something.
        """

    def enter(self) -> None:
        """Bring the machine into the state."""

    def play(self, attack: str) -> Played:
        """Carry out an attack."""

    def leave(self) -> None:
        """Stop holding the state."""


class LocalPlayer:
    """The machine of a testbed in this process."""

    def __init__(self, testbed: Testbed, fork_server: ForkServer) -> None:
        self._testbed = testbed
        self._fork_server = fork_server
        self._numbers = itertools.count(1)
        self._attacks = {attack.id: attack for attack in load_attacks()}
        self._held: HeldState | None = None
        self._mode = Mode.CONTROL
        self._locked = False

    def find_missing(self) -> tuple[str, ...]:
        """See `Player`."""
        return self._testbed.world.client.call(find_missing)

    def begin(self, mode: Mode, attacks: Sequence[str]) -> None:
        """See `Player`."""
        self._mode = mode
        self._held = None
        early = [attack for attack in (self._attacks[name] for name in attacks) if attack.before_lock is not None]
        if self._locked and (early or mode is Mode.BOOT):  # a boot finds nothing of the service
            self._testbed.unlock()
            self._locked = False
        for attack in early:
            assert attack.before_lock is not None
            self._testbed.begun[attack.id] = attack.before_lock(self._make_trial(attack))
        if mode is not Mode.CONTROL and not self._locked:
            self._testbed.lock()
            self._locked = True
        self._held = STATES[mode](self._testbed)

    def _make_trial(self, attack: Attack) -> Trial:
        return Trial(
            testbed=self._testbed,
            fork_server=self._fork_server,
            mode=self._mode,
            attack=attack.id,
            families=attack.families,
            numbers=self._numbers,
            held=self._held,
        )

    def enter(self) -> None:
        """See `Player`."""
        assert self._held is not None
        self._held.enter()

    def leave(self) -> None:
        """See `Player`."""
        assert self._held is not None
        self._held.leave()

    def play(self, attack: str) -> Played:
        """See `Player`."""
        begin = time.monotonic()
        what, held = self._attacks[attack], self._held
        assert held is not None
        if lacking := missing_tools(what.tools):
            return Played(error=f"this machine lacks {', '.join(lacking)}")
        trial = self._make_trial(what)
        client = self._testbed.world.client
        state_lost = error = ""
        layers: dict[str, int] = {}
        try:
            held.repair_network()
            held.restore()
            before = read_counters(client)
            try:
                what.run(trial)
                trial.settle()
                layers = subtract(before, read_counters(client))
            finally:
                with contextlib.suppress(LabError):
                    trial.settle()
                trial.cleanups.close()
                if not what.disturbs:
                    state_lost = held.explain_loss()
                if what.disturbs or state_lost:
                    held.restore()
        except Exception as problem:  # noqa: BLE001 - after any error the attack was not carried out, and proves nothing
            error = (str(problem) or type(problem).__name__).splitlines()[0][:300]
        tried = _describe(trial)
        routed = sum(
            count for item in tried for results, count in item.results.items() if results.startswith("unreachable")
        )
        if routed and self._mode is not Mode.CONTROL:
            layers[ROUTING] = routed
        return Played(
            seconds=round(time.monotonic() - begin, 2),
            actions=tuple(trial.actions),
            tried=tried,
            state_lost=state_lost,
            error=error,
            layers=layers,
            claimed=tuple(trial.claimed),
        )


def _describe(trial: Trial) -> tuple[Tried, ...]:
    return tuple(
        Tried(
            name=attempt.shot.name,
            by=attempt.by,
            family=attempt.shot.family,
            trace=attempt.trace,
            results=attempt.outcome.results if attempt.outcome else {},
            rounds=attempt.outcome.rounds if attempt.outcome else 0,
            error=attempt.outcome.error if attempt.outcome else "no result",
            needs=attempt.needs,
        )
        for attempt in trial.attempts
    )
