# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of the lock is small, and opening needs a reading back: shown from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import psiphon_vpn
from psiphon_vpn.linux import lock
from psiphon_vpn.linux.lock import Lock

SOURCES = Path(psiphon_vpn.__file__).parent
VERBS = {"load", "read_back", "renew", "close", "restore"}
VALUE = {"view"}


def find_calls(name: str, directory: Path = SOURCES) -> dict[str, int]:
    """How often each module calls a function, class or method of that name."""
    found: dict[str, int] = {}
    for path in sorted(directory.rglob("*.py")):
        count = sum(_name_called(node) == name for node in _list_calls(path))
        if count:
            found[path.stem] = count
    return found


def _list_calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def _name_called(node: ast.Call) -> str | None:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def test_a_proof_is_made_in_one_place_and_only_at_the_end_of_a_reading() -> None:
    assert find_calls("Proof") == {"lease": 1}
    assert find_calls("prove") == {"reading_back": 1}


def test_the_reading_of_the_sources_would_find_a_proof_made_elsewhere() -> None:
    assert find_calls("Proof", Path(__file__).parents[1])["fake_lock"] == 2


def test_the_lock_has_five_verbs_and_a_reason_for_each_other_method() -> None:
    members = {name for name in dir(Lock) if not name.startswith("_")}
    assert members >= VERBS | VALUE
    for name in members - VERBS - VALUE:
        assert f"* `{name}`" in (lock.__doc__ or "")
