"""The attacks: one small file for each known way in which a VPN leaks. A file here is all that it takes to add one.

A file holds a docstring, the value ATTACK and the functions that it is made of. `run` prepares the machine and fires
shots; the functions that shots call run on the hosts, in a process of their own, as the user that the shot names.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from psiphon_lab.leaktest.attack import Attack


def list_modules() -> tuple[str, ...]:
    """The files of attacks, as modules."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(f"{__name__}.{name}" for name in names if not name.startswith("_"))


@functools.cache
def load_attacks() -> tuple[Attack, ...]:
    """Every attack, by id. Raises ValueError if a file holds none, or two have one id."""
    found: dict[str, Attack] = {}
    for name in list_modules():
        attack = getattr(importlib.import_module(name), "ATTACK", None)
        if not isinstance(attack, Attack):
            raise ValueError(f"{name} holds no ATTACK")
        if attack.id in found:
            raise ValueError(f"two attacks are called {attack.id}")
        found[attack.id] = attack
    return tuple(found[identifier] for identifier in sorted(found))
