# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""No test uses a private name of the product: what it needs is public there, passed in, or visible from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGES = ("psiphon_vpn", "psiphon_lab")
SOURCE = TESTS.parent / "src"
FOREIGN = {"os": {"_exit"}}
"""Private by name alone: public, documented names of the standard library."""
BY_STRING = {"setattr", "getattr", "delattr", "hasattr", "patch", "object"}
"""Functions that take a name as a string."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


@cache
def list_private_of_classes() -> dict[str, tuple[set[str], tuple[str, ...]]]:
    """The private names in each class of the product and the names of its bases, by the class's name."""
    found: dict[str, tuple[set[str], tuple[str, ...]]] = {}
    for package in PACKAGES:
        for path in (SOURCE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
                    found[node.name] = set(list_own(node)), bases
    return found


def list_own(kind: ast.ClassDef) -> Iterator[str]:
    """The private names that a class defines: methods, and attributes of itself."""
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and is_private(node.name):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and is_private(target.id):
                    yield target.id


def list_inherited(kind: ast.ClassDef) -> set[str]:
    """The private names that a test's class inherits from the product's classes."""
    names: set[str] = set()
    waiting = [ast.unparse(base).rpartition(".")[2] for base in kind.bases]
    while waiting:
        own, bases = list_private_of_classes().get(waiting.pop(), (set(), ()))
        names |= own
        waiting += bases
    return names


def find_private_uses(tree: ast.Module) -> Iterator[str]:
    """The private names that a module of tests uses of anything but itself, with the line of each."""
    own: set[int] = set()
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef):
            defined, inherited = set(list_own(kind)), list_inherited(kind)
            for node in ast.walk(kind):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self", "cls", kind.name}:
                    if node.attr in defined - inherited:
                        own.add(id(node))
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in inherited:
                    yield f"{node.lineno}: {kind.name}.{node.name}"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name) if is_private(name) and id(node) not in own:
                if name not in FOREIGN.get(ast.unparse(value), ()):
                    yield f"{node.lineno}: {ast.unparse(node)}"
            case ast.ImportFrom(module=module, names=names):
                parts = [*(module or "").split("."), *(alias.name for alias in names)]
                yield from (f"{node.lineno}: import of {part}" for part in parts if is_private(part))
            case ast.Import(names=names):
                parts = [part for alias in names for part in alias.name.split(".")]
                yield from (f"{node.lineno}: import of {part}" for part in parts if is_private(part))
            case ast.Call(func=func, args=args) if ast.unparse(func).rpartition(".")[2] in BY_STRING:
                yield from (f"{node.lineno}: by string: {text}" for text in map(find_private_text, args) if text)
            case ast.Subscript(value=ast.Call(func=ast.Name(id="vars")), slice=name) if text := find_private_text(name):
                yield f"{node.lineno}: by string: {text}"
            case ast.Constant(value=str(text)) if is_path_to_private(text):
                yield f"{node.lineno}: by path: {text}"
            case ast.Constant(value=str(text)) if (program := parse_program(text)) is not None:
                yield from (f"{node.lineno}: in a program: {use}" for use in find_private_uses(program))


def find_private_text(node: ast.AST) -> str:
    """A private name that is given as a string."""
    match node:
        case ast.Constant(value=str(text)) if is_private(text):
            return text
    return ""


def parse_program(text: str) -> ast.Module | None:
    """A program that a test gives to another interpreter."""
    if "\n" not in text or not any(f"import {package}" in text or f"from {package}" in text for package in PACKAGES):
        return None
    try:
        return ast.parse(text)
    except SyntaxError:
        return None


def is_path_to_private(text: str) -> bool:
    parts = text.split(".")
    return parts[0] in PACKAGES and all(map(str.isidentifier, parts)) and any(map(is_private, parts))


def test_no_test_uses_a_private_name_of_the_product() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{use}"
        for path in sorted(set(TESTS.rglob("*.py")) - {Path(__file__)})
        for use in find_private_uses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "runner._timers.arm(timer, 1.0)",
        "from psiphon_vpn.core.elf import _MACHINES",
        "from psiphon_lab.attacks._redirects import redirect",
        "import psiphon_lab.attacks._redirects",
        "monkeypatch.setattr(run, '_running', {1})",
        "monkeypatch.setattr('psiphon_vpn.run._running', {1})",
        "vars(run)['_running'] = {1}",
        "PROGRAM = '''\nfrom psiphon_vpn import run\nrun._running.add(1)\n'''",
        "class Lying(Machine):\n    def _answers(self): return True",
        "class Lying(Machine):\n    def answer(self): return self._core",
        "class Lying(Machine):\n    def __init__(self): self._core = None",
        "class Own:\n    def __init__(self, other): self._fd = other._fd",
    ],
)
def test_these_would_be_found(text: str) -> None:
    assert list(find_private_uses(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "class Own:\n    def __init__(self): self._fd = 1\n    def fileno(self): return self._fd",
        "class Own(Machine):\n    def __init__(self): self._own_of_the_test = 1",
        "import os\nos._exit(1)",
        "for _ in range(3): pass",
        "value.__class__",
        "def _help(): pass\n_help()",
        "monkeypatch.setattr('psiphon_vpn.__main__.main', 1)",
    ],
)
def test_these_are_a_tests_own(text: str) -> None:
    assert list(find_private_uses(ast.parse(text))) == []
