"""The attacks: one small file for each known way in which a VPN leaks. A file here is all that it takes to add one.

A file holds a docstring, the value ATTACK and the functions that it is made of. `run` prepares the machine and fires
shots; the functions that shots call run on the hosts, in a process of their own, as the user that the shot names.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from psiphon_lab.leaktest.attack import Attack


@functools.cache
def load_attacks() -> tuple[Attack, ...]:
    """Every attack, by id. Raises ValueError if a file holds none, or two have one id."""
    found: dict[str, Attack] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        attack = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ATTACK", None)
        if not isinstance(attack, Attack):
            raise ValueError(f"{module.name} holds no ATTACK")
        if attack.id in found:
            raise ValueError(f"two attacks are called {attack.id}")
        found[attack.id] = attack
    return tuple(found[identifier] for identifier in sorted(found))
