# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/modules.md: every module and the first sentence of its docstring.

Run `python -m tests.modules_page` in the root of the checkout after you add or remove a module or change its docstring.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src"
PACKAGES = [SOURCES / name for name in ("psiphon_vpn", "psiphon_lab")]
PATH = ROOT / "docs" / "modules.md"


def describe(path: Path) -> str:
    """The first sentence of a module's docstring.

    Raises:
        ValueError: it has no docstring.
    """
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    if not text:
        raise ValueError(f"{path}: a module needs a docstring that says what it is for")
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text, maxsplit=1)[0].replace("|", "\\|")


def list_packages() -> Iterator[Path]:
    """Every directory with modules: the service's, then the laboratory's, each package before its parts."""
    for package in PACKAGES:
        yield from sorted({path.parent for path in package.rglob("*.py")})


def render() -> str:
    """The document."""
    lines = [
        "# Modules",
        "",
        "Made from the modules by `python -m tests.modules_page`; do not edit. Each with the first sentence of what it",
        "says of itself. What the packages are to each other is in [architecture.md](architecture.md#package-map).",
    ]
    for package in list_packages():
        lines += ["", f"## {package.relative_to(SOURCES).as_posix()}", "", describe(package / "__init__.py"), ""]
        lines += ["| Module | What it is |", "| --- | --- |"]
        lines += [
            f"| `{path.stem}` | {describe(path)} |" for path in sorted(package.glob("*.py")) if path.stem != "__init__"
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
