# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A change of the configuration changes what was asked and nothing else, whatever the file looks like."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from psiphon_vpn.editing.catalogue import Setting, list_settings
from psiphon_vpn.editing.document import NotEditable, render_value, set_value, unset_value

SETTINGS = list(list_settings())
ADVANCED = ("core", "advanced")
WORDS = (*"ab.=[]{}\"'#\n\r\t ,1\\", "core", "advanced", "uplink", '"""', "'''")
ENDS = st.sampled_from(["", "why = 1", "[core.advanced]", 'egress_region = "CA"'])


def find(document: object, key: tuple[str, ...]) -> object:
    for name in key:
        if not isinstance(document, dict) or name not in document:
            return None
        document = document[name]
    return document


def without(document: dict[str, object], key: tuple[str, ...]) -> dict[str, object]:
    """The document without a key, and without empty tables."""
    kept: dict[str, object] = {}
    for name, value in document.items():
        if name == key[0] and len(key) == 1:
            continue
        if isinstance(value, dict) and name in ADVANCED:
            if inner := without(value, key[1:] if name == key[0] else ("", "")):
                kept[name] = inner
        else:
            kept[name] = value
    return kept


def list_comments(text: str) -> list[str]:
    return re.findall(r"#!\d+", text)


scalars = (
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
any_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["URL", "a b", "", "x.y", "# no"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Files as people write them: settings in any of TOML's forms, with numbered comments."""
    count = iter(range(1000))
    lines: list[str] = []

    def note() -> str:
        return f"#!{next(count)} {draw(ENDS)}"

    def decorate(line: str) -> str:
        return line + draw(st.sampled_from(["", " ", "  " + note()]))

    def add(line: str) -> None:
        lines.extend(draw(st.lists(st.sampled_from(["", "  "]) | st.just("").map(lambda _x: note()), max_size=2)))
        lines.append(decorate(line))

    def spell(name: str) -> str:
        return draw(st.sampled_from([name, json.dumps(name), f"'{name}'"]))

    def assign(name: str) -> str:
        value = render_value(draw(any_values))
        if draw(st.integers(0, 5)) == 0:
            value = f'"""\n[core.advanced]\n# no comment\n{name} = 1\n"""'
        elif draw(st.integers(0, 4)) == 0:
            value = f"[\n  1, {note()}\n  2,\n]"
        return f"{name}{draw(st.sampled_from([' = ', '=', '  =  ']))}{value}"

    tops = draw(st.lists(st.sampled_from([s.name for s in SETTINGS if not s.is_core_option]), unique=True, max_size=4))
    cores = draw(st.lists(st.sampled_from([s.name for s in SETTINGS if s.is_core_option]), unique=True, max_size=4))
    form = draw(st.sampled_from(["header", "dotted", "core", "braces", "headers", "none"]))
    for name in tops:
        add(assign(spell(name)))
    if form == "header":
        add(f"[ {spell('core')} . {spell('advanced')} ]")
        for name in cores:
            add(draw(st.sampled_from(["", "    "])) + assign(spell(name)))
    elif form == "dotted":
        for name in cores:
            add(assign(f"{spell('core')}.{spell('advanced')} . {spell(name)}"))
    elif form == "core":
        add("[core]")
        for name in cores:
            add(assign(f"advanced.{spell(name)}"))
    elif form == "braces":
        inner = ", ".join(f"{spell(name)} = {render_value(draw(any_values))}" for name in cores)
        add(draw(st.sampled_from([f"core.advanced = {{{inner}}}", f"core = {{ advanced = {{{inner}}} }}"])))
    elif form == "headers":
        for name in cores:
            add(draw(st.sampled_from([f"[core.advanced.{spell(name)}]", f"[[core.advanced.{spell(name)}]]"])))
            if draw(st.booleans()):
                add(assign("URL"))
    lines.extend(note() for _ in range(draw(st.integers(0, 2))))
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))
    return draw(st.sampled_from([text, text, text.replace("\n", "\r\n")]))


def parse_or_skip(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
        raise


@settings(max_examples=100, deadline=None)
@given(text=documents(), setting=st.sampled_from(SETTINGS), value=any_values)
def test_set_changes_that_setting_and_nothing_else(text: str, setting: Setting, value: object) -> None:
    before = parse_or_skip(text)
    changed = set_value(text, setting.key, value)
    after = tomllib.loads(changed)
    assert repr(find(after, setting.key)) == repr(value)
    assert repr(without(after, setting.key)) == repr(without(before, setting.key)), "something else changed"
    gone = set(list_comments(text)) - set(list_comments(changed))
    if find(before, setting.key) is None:
        assert list_comments(changed) == list_comments(text)
        assert [line for line in text.splitlines() if line not in changed.splitlines()] == [] or "{" in text
    else:
        # Only what was inside the old value, such as a comment between the entries of a list.
        assert all(number in "\n".join(own_lines(text, setting)) for number in gone)
        order = [number for number in list_comments(text) if number not in gone]
        assert list_comments(changed) == order
    assert set_value(changed, setting.key, value) == changed, "a second time changes something"


def own_lines(text: str, setting: Setting) -> list[str]:
    """The text from the first line that names a setting: there its own comments can be."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if setting.name in line), 0)
    return lines[first:]


@settings(max_examples=100, deadline=None)
@given(text=documents(), setting=st.sampled_from(SETTINGS))
def test_unset_takes_that_setting_away_and_nothing_else(text: str, setting: Setting) -> None:
    before = parse_or_skip(text)
    changed = unset_value(text, setting.key)
    after = tomllib.loads(changed)
    assert find(after, setting.key) is None
    assert repr(without(after, setting.key)) == repr(without(before, setting.key)), "something else changed"
    if find(before, setting.key) is None:
        assert changed == text


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.sampled_from(WORDS), max_size=60).map("".join),
    setting=st.sampled_from(SETTINGS),
    value=any_values,
)
def test_any_text_is_changed_rightly_or_not_at_all(text: str, setting: Setting, value: object) -> None:
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(tomllib.TOMLDecodeError):
            set_value(text, setting.key, value)
        return
    try:
        after = tomllib.loads(set_value(text, setting.key, value))
    except NotEditable:
        return
    assert repr(find(after, setting.key)) == repr(value)
    assert repr(without(after, setting.key)) == repr(without(before, setting.key))


@pytest.mark.parametrize(
    ("before", "key", "value", "after"),
    [
        ("", ("uplink",), "eth0", 'uplink = "eth0"\n'),
        ('uplink = "a" # why\n', ("uplink",), "b", 'uplink = "b" # why\n'),
        ("# uplink = 1  # example\n# more\n", ("uplink",), "b", '# uplink = 1  # example\nuplink = "b"\n# more\n'),
        (
            "socks_port = 1\n\n# about the core\n[core.advanced]\n",
            ("uplink",),
            "b",
            'socks_port = 1\nuplink = "b"\n\n# about the core\n[core.advanced]\n',
        ),
        (
            "# about the core\n[core.advanced]\n",
            ("uplink",),
            "b",
            'uplink = "b"\n\n# about the core\n[core.advanced]\n',
        ),
        ("x = 1\r\ny = 2\r\n", ("uplink",), "b", 'x = 1\r\ny = 2\r\nuplink = "b"\r\n'),
        ("x = 1", (*ADVANCED, "A"), True, "x = 1\n\n[core.advanced]\nA = true\n"),
        ("[core.advanced]\nB = 1\n[z]\n", (*ADVANCED, "A"), 2, "[core.advanced]\nB = 1\nA = 2\n[z]\n"),
        ("core.advanced.B = 1\n", (*ADVANCED, "A"), 2, "core.advanced.B = 1\ncore.advanced.A = 2\n"),
        ("[core]\nadvanced.B = 1\n", (*ADVANCED, "A"), 2, "[core]\nadvanced.B = 1\nadvanced.A = 2\n"),
        ("core = {} # c\n", (*ADVANCED, "A"), 2, "core = {advanced = {A = 2}} # c\n"),
        (
            "[core.advanced]\n[core.advanced.T]\nx = 1\n",
            (*ADVANCED, "A"),
            2,
            "[core.advanced]\nA = 2\n[core.advanced.T]\nx = 1\n",
        ),
    ],
)
def test_a_change_is_put_where_a_person_would_put_it(
    before: str, key: tuple[str, ...], value: object, after: str
) -> None:
    assert set_value(before, key, value) == after


@pytest.mark.parametrize(
    ("before", "key", "after"),
    [
        ("a = 1\nuplink = 'b' # why\nc = 1\n", ("uplink",), "a = 1\nc = 1\n"),
        ("uplink = 'b'", ("uplink",), ""),
        ("[core.advanced.A]\n# keep\nx = 1\n\n[b]\n", (*ADVANCED, "A"), "# keep\n\n[b]\n"),
        ("[[core.advanced.A]]\nx = 1\n[z]\n[[core.advanced.A]]\n", (*ADVANCED, "A"), "[z]\n"),
        ("core = {advanced = {A = 1, B = 2}}\n", (*ADVANCED, "A"), "core = {advanced = { B = 2}}\n"),
    ],
)
def test_what_is_taken_away_leaves_the_rest_as_it_was(before: str, key: tuple[str, ...], after: str) -> None:
    assert unset_value(before, key) == after
