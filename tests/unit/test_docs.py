# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents do not contradict the code or the file tree, as far as a program can check."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests import modules_page, permits_page
from tests.states_picture import PATH, render

from psiphon_lab.layers_table import render_table
from psiphon_vpn.cli.main import cli
from psiphon_vpn.config import parse_settings
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.permits import PERMITS
from psiphon_vpn.policy.routing import MAIN_TABLE, build_rules
from psiphon_vpn.service.model import LEGAL_MOVES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:\bpsiphon-vpn|Setup\.sh)((?: --?[a-z][a-z-]*)*) ([a-z]+(?:-[a-z]+)*)((?: --[a-z][a-z-]*)*)")


def strip_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def list_anchors(text: str) -> set[str]:
    """The anchors that a hosting site makes from headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_code(text: str) -> Iterator[str]:
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(strip_code(document.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in list_anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@pytest.mark.defect(18)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    context = click.Context(cli)
    unknown = []
    for line in list_code(document.read_text(encoding="utf-8")):
        for _before, name, options in COMMAND.findall(line):
            command = cli.get_command(context, name)
            known = {option for parameter in command.params for option in parameter.opts} if command else set()
            unknown += [f"{name} {option}" for option in options.split() if option not in known]
            unknown += [] if command else [name]
    assert not unknown


def test_the_configuration_in_the_readme_is_accepted() -> None:
    blocks = re.findall(
        r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    for block in blocks:
        parse_settings(block.encode())


def test_the_moves_in_the_architecture_are_the_legal_ones() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z]+)` \| ((?:`[A-Z]+`(?:, )?)+) \|", text, re.MULTILINE)
    reported = {state: set(re.findall(r"[A-Z]+", moves)) for state, moves in rows}
    assert reported == {str(state): {str(move) for move in moves} for state, moves in LEGAL_MOVES.items()}


def test_the_page_of_modules_is_current() -> None:
    wanted = modules_page.render()
    assert modules_page.PATH.read_text(encoding="utf-8") == wanted, "regenerate it: python -m tests.modules_page"


def test_the_package_map_has_every_package_and_no_other() -> None:
    text = read_sections("docs/architecture.md")["Package map"]
    reported = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([\w/]+)/`", row)
    }
    there = {
        path.relative_to(modules_page.SOURCES).as_posix().removeprefix("psiphon_vpn/")
        for path in modules_page.list_packages()
    }
    there -= {"psiphon_vpn"}
    assert reported == there


PLACES = (ROOT, modules_page.SOURCES, *modules_page.PACKAGES)
NAMED = re.compile(
    r"(?:src|tests|docs|packaging|policy|linux|core|service|system|diagnose|cli|psiphon_lab)/[\w./-]*|[\w.-]+\.(?:py|sh|md|toml)"
)
OTHERS = {"config.toml"}
"""A file on a user's machine."""


def list_named(text: str) -> Iterator[str]:
    """Paths of this project in a document's code, and modules that the document says to run."""
    for line in list_code(text):
        yield from (
            word
            for word in re.split(r"[\s'\"=:,()]+", line)
            if NAMED.fullmatch(word) and word not in OTHERS and "/locale/" not in word
        )
        yield from (f"-m {name}" for name in re.findall(r"\bpython3? (?:-I )?-m ([\w.]+)", line))


def is_there(name: str) -> bool:
    if name.startswith("-m "):
        return importlib.util.find_spec(name.removeprefix("-m ")) is not None
    if "/" in name:
        return any((place / name).exists() for place in PLACES)
    return (
        any(
            next(place.rglob(name), None) for place in (ROOT / "src", ROOT / "tests", ROOT / "docs", ROOT / "packaging")
        )
        or (ROOT / name).exists()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_and_module_that_a_document_names_is_there(document: Path) -> None:
    names = {*list_named(document.read_text(encoding="utf-8"))}
    assert [name for name in sorted(names) if not is_there(name)] == []


JOURNEYS = {
    "Allow the core only ports 443 and 80": ("policy/permits.py", "-m tests.permits_page"),
    "A new state": ("policy/model.py", "policy/derive.py", "policy/base.py", "service/model.py", "cli/view.py"),
    "A new check": ("diagnose/registry.py", "diagnose/facts.py", "-m psiphon_vpn.diagnose.manual"),
    "A new command": ("cli/main.py", "service/control.py", "service/daemon.py", "service/events.py"),
    "A new network manager": ("network_managers/__init__.py",),
}
"""The changes that the guide describes, and files that it must name for each."""


@pytest.mark.parametrize("journey", JOURNEYS)
def test_the_guide_names_the_files_of_each_journey(journey: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^##+ {journey}\n(.*?)(?=^## |^### |\Z)", text, re.MULTILINE | re.DOTALL)
    named = {name.removeprefix("src/psiphon_vpn/") for name in list_named(section)}
    assert set(JOURNEYS[journey]) <= named


def test_a_path_or_module_that_is_not_there_would_be_found() -> None:
    text = "See `policy/base.py`, `policy/nowhere.py`, `nothing.py` and `.venv/bin/python -m tests.no_page`."
    assert {name for name in list_named(text) if not is_there(name)} == {
        "policy/nowhere.py", "nothing.py", "-m tests.no_page",
    }  # fmt: skip
    named = {*list_named((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))}
    assert {"src/psiphon_vpn/policy/base.py", "-m tests.modules_page", "-m pytest"} <= named


@pytest.mark.parametrize("document", permits_page.DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_what_may_pass_are_current(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert {found[2] for found in permits_page.TABLE.finditer(text)} == permits_page.DOCUMENTS[document]
    assert text == permits_page.fill(text), "regenerate them: python -m tests.permits_page"


def test_every_row_of_what_may_pass_is_in_the_documents() -> None:
    shown = [row for rows in permits_page.ARCHITECTURE.values() for row in rows]
    assert sorted(row.name for row in shown) == sorted(row.name for row in PERMITS)


def test_the_picture_of_the_states_is_current() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "regenerate it: python -m tests.states_picture"


def test_the_picture_has_every_move_that_is_legal_and_no_other() -> None:
    drawn = set(re.findall(r"^    ([A-Z]+) --> ([A-Z]+)", PATH.read_text(encoding="utf-8"), re.MULTILINE))
    legal = {(str(here), str(there)) for here, moves in LEGAL_MOVES.items() for there in moves if here is not there}
    assert drawn == legal


def test_the_routing_rules_in_the_architecture_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    reported = re.findall(r"^\| (\d{4}) \| [^|]+ \| (main|private) \|", text, re.MULTILINE)
    rules = [rule for rule in build_rules(Identity(uid=1, gid=1)) if rule.version == 4]
    assert reported == [(str(rule.priority), "main" if rule.table == MAIN_TABLE else "private") for rule in rules]


def read_sections(name: str, level: str = "##") -> dict[str, str]:
    parts = re.split(rf"^{level} (.*)$", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.requirement("R20")
def test_every_version_in_the_changelog_has_a_section_for_security() -> None:
    versions = read_sections("CHANGELOG.md")
    assert "Unreleased" in versions
    assert [name for name, text in versions.items() if "### Security" not in text] == []


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("limit", ["The kernel", "An attacker who is root", "Before the lock", "The other end"])
def test_the_security_document_says_what_is_out_of_reach(limit: str) -> None:
    assert f"- **{limit}" in read_sections("SECURITY.md")["What is out of reach"]


@pytest.mark.requirement("R25")
def test_the_security_document_says_how_to_report_in_private_and_what() -> None:
    text = " ".join(read_sections("SECURITY.md")["Reporting a vulnerability"].split())
    for words in (
        "private vulnerability reporting",
        "not in a public issue",
        "step by step",
        "uname -r",
        "would fix it",
    ):
        assert words in text


def test_the_table_of_layers_is_the_one_that_is_played() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "\n\n" + "\n".join(render_table()) + "\n\n" in text


def list_messages(text: str) -> Iterator[str]:
    """The messages for users in a module's source."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"_", "ngettext", "mark"}:
            yield from (it.value for it in node.args if isinstance(it, ast.Constant) and isinstance(it.value, str))


CORE_BY_ANOTHER_NAME = re.compile(r"tunnel core|(?<![\w./\[{-])[Cc]ores?(?![\w./}-]*[\w/}])")


def test_messages_call_the_core_the_tunnel_program() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {message}"
        for path in (ROOT / "src/psiphon_vpn").rglob("*.py")
        for message in list_messages(path.read_text(encoding="utf-8"))
        if CORE_BY_ANOTHER_NAME.search(message)
    ]
    assert not found


def test_another_name_of_the_core_in_a_message_would_be_found() -> None:
    source = """_("The tunnel core."), mark("the core's data"), _("[core.advanced] --core-file psiphon-tunnel-core")"""
    assert [bool(CORE_BY_ANOTHER_NAME.search(message)) for message in list_messages(source)] == [True, True, False]
