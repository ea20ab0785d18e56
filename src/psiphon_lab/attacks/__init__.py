# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The attacks: one small module for each known way in which a VPN leaks. To add an attack, add a module here.

A module has a docstring, the value ATTACK and its functions. `run` prepares the machine and fires shots. The functions
that make the shots run on the hosts, in their own processes, as the actor's user.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from psiphon_lab.leaktest.attack import Attack


def list_modules() -> tuple[str, ...]:
    """The names of the attacks' modules."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(f"{__name__}.{name}" for name in names if not name.startswith("_"))


@functools.cache
def load_attacks() -> tuple[Attack, ...]:
    """Every attack, sorted by id. Raises ValueError if a module has none, or two attacks have the same id."""
    by_id: dict[str, Attack] = {}
    for name in list_modules():
        attack = getattr(importlib.import_module(name), "ATTACK", None)
        if not isinstance(attack, Attack):
            raise ValueError(f"{name} has no ATTACK")
        if attack.id in by_id:
            raise ValueError(f"two attacks have the id {attack.id}")
        by_id[attack.id] = attack
    return tuple(by_id[identifier] for identifier in sorted(by_id))
