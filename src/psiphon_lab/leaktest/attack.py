# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of an attack, as a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to leak.

    Attributes:
        id: unique, such as A05.
        name: a few words.
        reference: its source: a CVE, an audit's finding, a product's issue.
        summary: what happens, for readers who are not engineers.
        actors: who does it.
        recognised: how its frames are recognised on a wire.
        control: what shows that it would leak without the lock.
        run: carries it out.
        before_lock: begins something before the machine is locked; `trial.begun` is what it returns.
        families: the IP versions for which it exists.
        not_applicable: states in which it proves nothing, each with the reason.
        disturbs: whether it takes the machine out of its state (a deleted device), which is then entered again.
        out_of_reach: why the lock cannot stop it, or "". It is tried and shown apart, and does not count as a failure.
        tools: programs that it needs. Without them it is not tried, and proves nothing.
        needs: mechanisms of the kernel without which any attempt leaks; see also `Trial.fire`.
        standin_only: whether it requires the stand-in core.
    """

    id: str
    name: str
    reference: str
    summary: str
    actors: tuple[Actor, ...]
    recognised: str
    control: str
    run: Callable[[Trial], None]
    before_lock: Callable[[Trial], Any] | None = None
    families: tuple[int, ...] = (4, 6)
    not_applicable: Mapping[Mode, str] = field(default_factory=dict)
    disturbs: bool = False
    out_of_reach: str = ""
    tools: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    standin_only: bool = False
