# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our tables are listed in one place, and their names are written in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psiphon_vpn
from psiphon_lab.leaktest.layer_counters import TABLES
from psiphon_vpn.diagnose.report import COMMANDS
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import (
    build_arp_table,
    build_bridge_guard,
    build_egress_guard,
    build_frame_guard,
    build_wire_guard,
)
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.own_tables import BASE, LAYERS, OWN_NAMES, OWN_TABLES, REMOVAL, Keeper, list_kept
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.service.healer import KEPT_TABLES
from psiphon_vpn.system.units import render_guard_script

PACKAGE = Path(psiphon_vpn.__file__).parent
ROOT = PACKAGE.parents[1]
CONSTANTS = {name for name in vars(names) if name.endswith(("_TABLE", "SCRATCH_TABLES")) and name != "ROUTE_TABLE"}
HOME = PACKAGE / "policy" / "names.py"
LIST = PACKAGE / "policy" / "own_tables.py"


def build_all() -> tuple[tuple[str, str], ...]:
    """Family and name of each table that the policy has."""
    identity = Identity(uid=1, gid=1)
    frames, egress = (
        build_frame_guard(identity, parse_names("card0")),
        build_egress_guard(identity, parse_names("card0")),
    )
    assert egress is not None
    base = build_base_table(Policy(state=State.LOCKED, identity=identity))
    tables = (base, build_wire_guard(identity), egress, frames, build_bridge_guard(identity), build_arp_table())
    return tuple((table.family, table.name) for table in tables)


def list_texts(path: Path) -> Iterator[str]:
    """The strings in a module that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_the_list_has_every_table_that_the_policy_makes_and_every_copy() -> None:
    assert [table.address for table in LAYERS] == [*build_all()]
    copies = {table.address for table in list_kept(Keeper.READING)}
    families = {family for family, _ in build_all()}
    assert copies == {(family, name) for family in families for name in names.SCRATCH_TABLES}
    assert len(OWN_TABLES) == len(LAYERS) + len(copies)
    assert sorted(OWN_NAMES) == sorted({name for path in (HOME,) for name in list_texts(path) if name in OWN_NAMES})


def test_no_name_of_a_table_is_written_but_in_one_place() -> None:
    written = re.compile("|".join(sorted(OWN_NAMES)))
    assert any(written.search(text) for text in list_texts(HOME)), (
        "the positive control: the names are found where they are"
    )
    wrong = [
        f"{path.relative_to(PACKAGE)}: {text[:60]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != HOME
        for text in list_texts(path)
        if written.search(text)
    ]
    for path in (*ROOT.glob("*.sh"), *(ROOT / "packaging").iterdir(), *(ROOT / ".ci").iterdir()):
        wrong += [str(path)] if written.search(path.read_text(encoding="utf-8")) else []
    assert not wrong, "use policy/names.py, or policy/own_tables.py for more than one"


def test_no_other_module_makes_a_list_of_our_tables() -> None:
    """A list with three of them or more would miss the next table."""

    def count(node: ast.AST) -> int:
        return len({part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)} & CONSTANTS)

    kinds = (ast.Tuple, ast.List, ast.Set, ast.Dict)
    lists: dict[str, list[int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and count(node) > 2:
                lists.setdefault(path.name, []).append(node.lineno)
    # Exception: an attack's commands against each table are such a list.
    assert set(lists) <= {"a09_rules_flushed.py"}
    made = ast.parse("OURS = {names.BASE_TABLE, (names.GUARD_TABLE, 1), names.ARP_TABLE}").body[0]
    assert count(made) == 3, "the positive control"


def test_what_is_removed_is_all_of_it_and_the_base_table_last() -> None:
    assert sorted(REMOVAL, key=str) == sorted(OWN_TABLES, key=str)
    assert REMOVAL[-1] == BASE


def test_whoever_needs_our_tables_has_all_of_them() -> None:
    listed = {argv[-2:] for argv in COMMANDS if argv[:2] == ("nft", "-s")}
    assert listed == {table.address for table in LAYERS}, "the report shows each"
    assert set(TABLES) == {table.name for table in LAYERS}, "the leak test counts what each stopped"
    assert {table.name for table in list_kept(Keeper.DAEMON)} == KEPT_TABLES, "the daemon puts back what it keeps"
    script = render_guard_script()
    assert all(str(table) in script for table in list_kept(Keeper.HOLDER)), "the holder knows what it holds"


def test_the_architecture_tells_of_every_table_and_who_keeps_it() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Layers\n")[2].partition("\n### ")[0]
    reported = {}
    for row in re.findall(r"^\| (.+) \| `table (\w+ \w+)`.* \| (.+) \| .* \|$", section, re.MULTILINE):
        reported[row[1]] = row[0].casefold()
    assert reported == {str(table): table.layer.casefold() for table in LAYERS}
