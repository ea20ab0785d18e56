"""What an attack is. A value; nothing here touches a system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.terms import Actor, Mode


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to leak.

    Attributes:
        id: as in the corpus.
        name: a few words.
        reference: where it is known from: a CVE, an audit's finding, a product's issue.
        plain: what happens, for people who are no engineers.
        actors: who does it.
        recognised: how its frames are known on the wire.
        control: what shows that it would leak without the lock.
        run: does it.
        before_lock: what must be begun before the machine is locked; what it returns is `arena.begun`.
        families: the IP versions that it concerns.
        senseless: states in which it says nothing, and why.
        disturbs: whether the machine leaves its state by it (a deleted device): then the state is reached anew.
        beyond: why the lock cannot stop it, "" if it can: it is tried all the same, shown apart, and no failure.
        tools: programs that it needs; without one of them it is not made, and proves nothing.
        standin_only: whether only the stand-in core can do it.
    """

    id: str
    name: str
    reference: str
    plain: str
    actors: tuple[Actor, ...]
    recognised: str
    control: str
    run: Callable[[Arena], None]
    before_lock: Callable[[Arena], Any] | None = None
    families: tuple[int, ...] = (4, 6)
    senseless: Mapping[Mode, str] = field(default_factory=dict)
    disturbs: bool = False
    beyond: str = ""
    tools: tuple[str, ...] = ()
    standin_only: bool = False
