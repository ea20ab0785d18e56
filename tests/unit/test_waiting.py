# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of this project wait for events: none sleeps for a fixed time, and none asserts how long something took."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time"}
OWN_CLOCK = "tests.skipping"
"""Who imports this has a clock of its own: no time passes while it sleeps there."""
PACE = "between two sends or changes, so that they do not come as one"
ON_THEIR_WAY = "frames on their way, of which no later event tells"
ALLOWED: dict[str, tuple[int, str]] = {
    "booted/test_service.py": (1, PACE),
    "diagnose/scene.py": (1, PACE),
    "integration/busy_neighbour.py": (1, PACE),
    "integration/test_allowed_bridges.py": (1, PACE),
    "integration/test_guests.py": (1, PACE),
    "integration/test_healing.py": (1, PACE),
    "integration/test_leaks_found.py": (2, "a connection's second attempt comes a second after the first; and " + PACE),
    "integration/test_link_frames.py": (1, ON_THEIR_WAY),
    "integration/test_plumbing.py": (2, ON_THEIR_WAY),
    "unit/test_control.py": (1, "what is measured is how late it is"),
    "unit/test_core_process.py": (1, "descriptors that are closed in the background, if at all"),
}
"""Sleeps by file: how many, and what for. Each that goes makes the number smaller; none is added without a reason."""


def find_sleeps(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of sleep for a time other than 0, except those in a `while`, between two looks at something."""
    between = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.While)
        for statement in node.body
        for part in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and node.args) or id(node) in between:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "sleep" and not (isinstance(node.args[0], ast.Constant) and node.args[0].value == 0):
            yield node


def has_own_clock(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == OWN_CLOCK for node in ast.walk(tree))


def find_bounds(tree: ast.AST) -> Iterator[ast.Assert]:
    """Assertions that a measured time is less than something."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        measured = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and _reads_clock(node.value) and isinstance(node.value, ast.BinOp)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Assert) and any(_is_bound(part, measured) for part in ast.walk(node.test)):
                yield node


def _reads_clock(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
        for node in ast.walk(tree)
    )


def _is_bound(node: ast.AST, measured: set[str]) -> bool:
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        smaller = {ast.Lt: left, ast.LtE: left, ast.Gt: right, ast.GtE: right}.get(type(operator))
        if smaller is not None and (
            (_reads_clock(smaller) and isinstance(smaller, ast.BinOp))
            or (isinstance(smaller, ast.Name) and smaller.id in measured)
        ):
            return True
    return False


def list_sources() -> dict[str, ast.AST]:
    return {str(path.relative_to(TESTS)): ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")}


def test_no_test_sleeps_for_a_fixed_time() -> None:
    found = Counter(
        {name: len(list(find_sleeps(tree))) for name, tree in list_sources().items() if not has_own_clock(tree)}
    )
    assert found - Counter({name: number for name, (number, _why) in ALLOWED.items()}) == Counter()


def test_no_test_asserts_that_something_took_less_than_a_time() -> None:
    found = {f"{name}:{node.lineno}" for name, tree in list_sources().items() for node in find_bounds(tree)}
    assert found == set()


@pytest.mark.parametrize(
    ("text", "sleeps", "bounds"),
    [
        ("def f():\n    time.sleep(0.3)", 1, 0),
        ("def f():\n    while not there():\n        time.sleep(0.3)", 0, 0),
        ("async def f():\n    await asyncio.sleep(0)", 0, 0),
        ("def f():\n    begin = time.monotonic()\n    assert time.monotonic() - begin < 5", 0, 1),
        ("def f():\n    took = time.monotonic() - begin\n    assert 1 < took < 5", 0, 1),
        ("def f():\n    took = time.monotonic() - begin\n    assert took > 5", 0, 0),
    ],
)
def test_these_would_be_found(text: str, sleeps: int, bounds: int) -> None:
    tree = ast.parse(text)
    assert (len(list(find_sleeps(tree))), len(list(find_bounds(tree)))) == (sleeps, bounds)
