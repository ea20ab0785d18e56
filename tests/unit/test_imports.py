# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What may import what, read from the sources: layers, and no circles. Imports inside functions count too."""

from __future__ import annotations

import ast
import functools
import typing
from collections.abc import Iterator
from pathlib import Path

from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import OWN_NAMES
from psiphon_vpn.system import layout

SOURCES = Path(__file__).resolve().parents[2] / "src"
SERVICE, LAB = "psiphon_vpn", "psiphon_lab"
POLICY, NETWORK, LINUX, CORE, SYSTEM, SERVERS = "policy", "network", "linux", "core", "system", "servers"
MANAGERS = "network_managers"
EDITING = "editing"
TOP = "the top"
"""Modules that are in no package of the service's: errors, translation, the configuration, the socket's client."""

LAYERS: dict[str, set[str]] = {
    POLICY: set(),
    NETWORK: {POLICY, TOP},
    MANAGERS: set(),
    LINUX: {POLICY, NETWORK, MANAGERS, TOP},
    CORE: {POLICY, SYSTEM, TOP},
    SERVERS: {POLICY, CORE, SYSTEM, TOP},
    SYSTEM: {POLICY, NETWORK, MANAGERS, LINUX, CORE, SERVERS, TOP},
    "service": {POLICY, NETWORK, MANAGERS, LINUX, CORE, SERVERS, SYSTEM, TOP},
    "diagnose": {POLICY, NETWORK, MANAGERS, LINUX, CORE, SERVERS, SYSTEM, EDITING, "service", TOP},
    EDITING: {POLICY, CORE, SERVERS, SYSTEM, TOP},
    "cli": {POLICY, NETWORK, LINUX, CORE, SERVERS, SYSTEM, EDITING, "diagnose", TOP},
    TOP: {POLICY, CORE, SERVERS, SYSTEM},
}
"""What each package may import besides itself."""
EXCEPTIONS = {
    # The two programs start here.
    ("psiphon_vpn.__main__", "psiphon_vpn.cli.main"),
    ("psiphon_vpn.__main__", "psiphon_vpn.cli.quick"),
}
"""The only modules that may use `cli` from below."""
DEVELOPERS = "psiphon_vpn.cli.develop"
"""The only module of the service's that knows the laboratory, which is never installed."""
ADAPTER = "psiphon_lab.service_adapter"
"""The only package of the laboratory that knows the service."""
TOOLS = {"psiphon_vpn.errors", "psiphon_vpn.i18n", "psiphon_vpn.run"}
"""Modules that the whole laboratory may use: errors for users, translation, running programs. They do not say what the
service does."""
Graph = dict[str, set[str]]


def name_module(path: Path) -> str:
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for name in (SERVICE, LAB) for path in (SOURCES / name).rglob("*.py")}


def _list_statements(tree: ast.AST, *, late: bool) -> Iterator[ast.AST]:
    """Every statement; if not `late`, only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if late or not (is_late or is_typing):
            yield node
            yield from _list_statements(node, late=late)


def find_imports(source: str, *, late: bool = True) -> set[str]:
    """The full names that a source imports: modules and what is in them, but no relative imports (ruff TID252)."""
    found: set[str] = set()
    for node in _list_statements(ast.parse(source), late=late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def find_module(name: str) -> str | None:
    """The module that an imported name is, or is in; None for modules of others."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@functools.cache
def draw(*, late: bool) -> Graph:
    """The graph of imports."""
    graph: Graph = {}
    for name, path in MODULES.items():
        found = {find_module(imported) for imported in find_imports(path.read_text(encoding="utf-8"), late=late)}
        graph[name] = {module for module in found if module is not None and module != name}
    return graph


def find_circles(graph: Graph) -> list[set[str]]:
    """The sets of modules each of which leads to all others of its set (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            place = stack.index(name)
            found = set(stack[place:])
            del stack[place:]
            if len(found) > 1:
                circles.append(found)

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return circles


def find_package(module: str) -> str:
    """The package of the service that contains a module."""
    parts = module.split(".")
    return parts[1] if (SOURCES.joinpath(*parts[:2])).is_dir() and len(parts) > 1 else TOP


def find_wrong(graph: Graph) -> list[tuple[str, str]]:
    """Imports that the layers forbid."""
    return [
        (module, other)
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if module.startswith(f"{SERVICE}.")
        and other.startswith(f"{SERVICE}.")
        and (module, other) not in EXCEPTIONS
        and find_package(other) not in {find_package(module), *LAYERS[find_package(module)]}
    ]


def test_no_layer_imports_one_above_it() -> None:
    assert find_wrong(draw(late=True)) == []


def test_every_package_has_its_layer() -> None:
    assert {find_package(module) for module in MODULES if module.startswith(f"{SERVICE}.")} == set(LAYERS)


def test_the_service_knows_nothing_of_the_laboratory_but_in_the_command_of_developers() -> None:
    graph = draw(late=True)
    knowing = {name for name, others in graph.items() if any(other.startswith(LAB) for other in others)}
    assert {name for name in knowing if name.startswith(SERVICE)} == {DEVELOPERS}


def is_adapter(module: str) -> bool:
    return module == ADAPTER or module.startswith(f"{ADAPTER}.")


def test_the_laboratory_knows_the_service_only_through_its_adapter() -> None:
    wrong = [
        (module, other)
        for module, others in sorted(draw(late=True).items())
        for other in sorted(others - TOOLS)
        if module.startswith(LAB) and not is_adapter(module) and other.startswith(f"{SERVICE}.")
    ]
    assert wrong == []


def list_texts(source: str) -> Iterator[str]:
    """Every string of a source that is not a docstring, the constant parts of f-strings included."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_only_the_adapter_writes_names_of_the_service() -> None:
    """A name of an interface, table, set, unit or module of the service would be a second place to change."""
    own = {names.TUN_NAME, names.LEASE_SET, str(names.ROUTE_TABLE), SERVICE, *OWN_NAMES, *layout.UNITS}
    written = {
        (module, name)
        for module, path in MODULES.items()
        if module.startswith(LAB) and not is_adapter(module)
        for text in list_texts(path.read_text(encoding="utf-8"))
        for name in own
        if name in text
    }
    assert written == set()


def test_texts_are_found_and_docstrings_left_out() -> None:
    source = "'first'\nx = f'a {1} b'\ndef f():\n    'second'\n    g('c')\n"
    assert {*list_texts(source)} == {"a ", " b", "c"}


def test_there_is_no_circle_of_imports_late_ones_and_those_for_types_alone_included() -> None:
    assert find_circles(draw(late=True)) == []


def test_the_exceptions_are_needed() -> None:
    graph = draw(late=True)
    assert all(other in graph[module] for module, other in EXCEPTIONS)


PARSERS = {
    "psiphon_vpn.config.parse_settings": {"psiphon_vpn.editing.worker", "psiphon_lab.service_adapter.daemon"},
    "psiphon_vpn.config.load_settings": {"psiphon_vpn.service.daemon"},
    "tomlkit": {"psiphon_vpn.editing.document"},
    "psiphon_vpn.editing.document": {"psiphon_vpn.editing.values", "psiphon_vpn.editing.worker"},
    "psiphon_vpn.editing.values": {"psiphon_vpn.editing.worker"},
    "psiphon_vpn.editing.worker": set(),
}
"""What parses the configuration, which psiphon-user can write, and the only modules that may have it: the daemon, which
is not root, and the worker without privileges. Commands of root use `editing.requests` and `editing.installed`."""


def test_nothing_that_runs_as_root_parses_the_configuration() -> None:
    found: dict[str, set[str]] = {parser: set() for parser in PARSERS}
    for name, path in MODULES.items():
        imported = find_imports(path.read_text(encoding="utf-8"))
        for parser, modules in found.items():
            if any(f"{other}.".startswith(f"{parser}.") for other in imported):
                modules.add(name)
    assert found == PARSERS


# -- the reading itself: it would find what it looks for ---------------------------------------------------------------


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import a.b
from c import d as e
if typing.TYPE_CHECKING:
    import typed
class It:
    import inner
    def late(self):
        from f.g import h
"""
    assert find_imports(source) == {"a.b", "c.d", "typed", "inner", "f.g.h"}
    assert find_imports(source, late=False) == {"a.b", "c.d", "inner"}


def test_a_circle_is_found_and_a_way_is_none() -> None:
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [{"b", "c"}]
    assert find_circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_wrong_layer_is_found() -> None:
    wrong: typing.Any = {
        "psiphon_vpn.policy.base": {"psiphon_vpn.linux.nft"},
        "psiphon_vpn.core.process": {"psiphon_vpn.service.runner"},
        "psiphon_vpn.diagnose.system": {"psiphon_vpn.cli.view"},
    }
    assert len(find_wrong(wrong)) == 3
