# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes identities, places and secrets from a text. Pure.

In two ways at once. Everything *known* of this machine (its name, its users, its interfaces, known networks, values of
its configuration) is replaced wherever it is a separate word, in every form in which programs write it (`spellings`).
And everything with the *form* of an address, a name with dots or a secret is replaced unless this program itself uses
that text: a list of what may stay, not of what must go. In doubt it goes: a large number may be an address. The same
value gets the same placeholder, so that a reader still sees what belongs together.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final

from psiphon_vpn.diagnose.folding import fold, fold_letter, list_forms
from psiphon_vpn.diagnose.spellings import Hidden, View, spell_hardware, spell_name, spell_numbers, undo_escapes

ADDRESS, HARDWARE, NAME, SECRET, USER = "address", "hardware", "name", "secret", "user"
HIDDEN_KINDS: Final = frozenset({USER, "host", "network"})
"""Kinds of known texts that are also searched as bytes; a word of the configuration is too common for that."""
_EDGE_BEFORE, _EDGE_AFTER = r"(?<![^\W_])", r"(?![^\W_])"

# Hexadecimal with two colons or more: IPv6, MAC and InfiniBand addresses, also when they are glued to a word.
_COLONS: Final = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:]*(?:\d{1,3}(?:\.\d{1,3}){3})?")
_TIME: Final = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\Z")
_VERSION: Final = re.compile(r"v?\d{1,4}(?:\.\d{1,4}){1,2}\Z")
"""Two or three numbers: too few for an address, and no name ends in a number."""
_QUAD: Final = re.compile(r"\d{1,3}(?:[._-]\d{1,3}){3}")
_MAC: Final = re.compile(
    r"[0-9A-Fa-f]{2}(?:([-_ ,])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4,}|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}"
)
_DOTTED: Final = re.compile(r"[^\W_](?:[\w\-]*)(?:\.[\w\-]+)+")
_MAIL: Final = re.compile(r"[^\s@<>\"'=]+@[^\s@<>\"'=]+")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{8,}|0[xX][0-9A-Fa-f]{6,}")
"""Eight digits are an IPv4 address, as in /proc/net/tcp; behind 0x the first may be left out."""
_RUN: Final = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_DIGITS: Final = re.compile(r"\d{8,}")
"""As one number, an IPv4 address whose first part is not 0 has eight digits or more."""
_BYTES: Final = re.compile(
    r"(?:\d{1,3}; ?){3,}(?:\d{1,3})?|\d{1,3}(?:, ?\d{1,3}){5,}"
    r"|(?:0[xX][0-9A-Fa-f]{1,2}[,; ]{1,2}){3,}0[xX][0-9A-Fa-f]{1,2}"
)
"""A network's name or an address as a list of numbers, as in NetworkManager's files (nm-settings-keyfile(5))."""
_ESCAPED: Final = re.compile(r"(?:\\x[0-9A-Fa-f]{2}|\\[0-3][0-7]{2}|%[0-9A-Fa-f]{2}){3,}")
"""Not plain text: an identifier, or a name in other letters."""
_HOME: Final = re.compile(r"(?<=/home/)[^/\s:\"'<>]+")
_SAID: Final = re.compile(
    r"(?:(?<=user=)|(?<=host=)|(?<=ssid=)|(?<=login=)|(?<=hostname=)|(?<=username=))[\"']?[^\s\"',;()]+", re.IGNORECASE
)
_NUMBER: Final = re.compile(r"(?<![\w.])(?:0[xX])?0*([0-9A-Fa-f]+(?:\.\d+){0,2})(?![\w.])")
PLACEHOLDER: Final = re.compile(r"<(?:address|name|secret|[a-z]+)-\d+>")


FORMS: Final = (
    (_URL, NAME),
    (_MAIL, NAME),
    (_HOME, USER),
    (_SAID, NAME),
    (_BYTES, SECRET),
    (_ESCAPED, SECRET),
    (_MAC, ADDRESS),
    (_COLONS, ADDRESS),
    (_QUAD, ADDRESS),
    (_DOTTED, NAME),
    (_RUN, SECRET),
    (_HEX, SECRET),
    (_DIGITS, SECRET),
)


def harvest(texts: Iterable[str]) -> frozenset[str]:
    """Everything of a suspicious form in texts without user data: it may stay."""
    found: set[str] = set()
    for text in texts:
        for pattern, _kind in FORMS:
            found.update(match[0].rstrip(".") for match in pattern.finditer(text))
    return frozenset(found)


def is_punctuation(value: str) -> bool:
    """Whether a value, such as the search domain ".", identifies nobody and is in every line."""
    return len(value) < 3 and all(char in string.punctuation for char in value)


@cache
def list_own_texts() -> tuple[str, ...]:
    """Texts of this program: rules for an invented machine, names of units, settings and checks."""
    from psiphon_vpn.diagnose.registry import CHECKS
    from psiphon_vpn.diagnose.unit_facts import MANAGERS, OTHER_UNITS, PROPERTIES
    from psiphon_vpn.policy import names
    from psiphon_vpn.policy.base import build_base_table
    from psiphon_vpn.policy.guards import (
        build_arp_table,
        build_bridge_guard,
        build_egress_guard,
        build_frame_guard,
        build_wire_guard,
    )
    from psiphon_vpn.policy.model import Identity, Links, Policy, State
    from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS, TUN_SYSCTLS
    from psiphon_vpn.policy.values import InterfaceName
    from psiphon_vpn.system import layout as places
    from psiphon_vpn.system import units

    identity = Identity(uid=1, gid=1)
    wire = InterfaceName("eth0")
    links = Links(tun_index=2, uplink=wire, wires=(wire,))
    tables = [build_base_table(Policy(state=state, identity=identity, links=links)) for state in State]
    tables += [build_wire_guard(identity), build_bridge_guard(identity), build_arp_table()]
    hooked = (build_egress_guard(identity, (wire,)), build_frame_guard(identity, (wire,)))
    tables += [table for table in hooked if table is not None]
    layout = places.Layout()
    paths = [str(getattr(layout, name)) for name, kind in vars(places.Layout).items() if isinstance(kind, property)]
    settings = [*GLOBAL_SYSCTLS, *TUN_SYSCTLS, "net/ipv4/conf/all/rp_filter", "net/ipv4/ip_forward"]
    addresses = [names.TUN_IPV4, names.TUN_IPV6, names.RESOLVER_IPV4, "127.0.0.1", "::1", "0.0.0.0", "::/0"]  # noqa: S104
    targets = tuple(f"{name}.target" for name in "network-pre sysinit multi-user sleep network shutdown".split())
    return (
        *(table.render() for table in tables),
        *paths,
        *(f"{path}/{unit}" for path in paths for unit in places.UNIT_FILES),
        *settings,
        *(name.replace("/", ".") for name in settings),
        *(name.split("/", 1)[1].replace("/", ".") for name in settings),
        *addresses,
        *targets,
        *units.render_units().values(),
        *units.render_dropins().values(),
        units.render_guard_script(),
        units.render_sleep_script(),
        units.render_generator(),
        "Type=notify Type=oneshot psiphon_vpn.service.runner psiphon_vpn.service.control psiphon_vpn.linux.enforcer",
        *places.UNIT_FILES,
        *MANAGERS,
        *OTHER_UNITS,
        *PROPERTIES,
        *(f"{check.id} {check.title} {check.next_step}" for check in CHECKS),
        "skuid l4proto hook postrouting type filter priority mangle conntrack admin-prohibited 10.200.3.1/24",
        f"mld2-listener-report metric {names.UNREACHABLE_METRIC} metric 4294967295",
        f"fwmark {names.CORE_MARK:#x} mark {names.CORE_MARK:#010x}",
    )


@cache
def _harvest_own() -> frozenset[str]:
    return harvest(list_own_texts())


class Redactor:
    """Replaces each value by its own placeholder.

    Args:
        known: values by kind ("user", "host", "network", ...): words that reveal something about this machine's user.
        keep: texts that may stay although they have a suspicious form; None for those of this program.
    """

    def __init__(self, known: Mapping[str, Iterable[str]] | None = None, *, keep: frozenset[str] | None = None) -> None:
        self._keep = _harvest_own() if keep is None else keep
        self._given: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self._hidden: dict[bytes, tuple[str, str]] = {}
        """Byte sequences to search for in digits, each with its value and kind."""
        self._numbers: dict[str, str] = {}
        words: set[str] = set()
        for kind, values in (known or {}).items():
            for value in map(str.strip, values):
                if value and not is_punctuation(value):
                    words |= self._learn(kind, value)
        # The longest first: a host's name may contain a user's.
        # Of those that differ in case alone one is enough where a letter is a letter: the list is long.
        alone = {word.lower() if word.isascii() else word for word in words}
        longest = sorted(alone, key=len, reverse=True)
        self._known = re.compile("|".join(map(_as_word, longest)), re.IGNORECASE) if longest else None

    def _learn(self, kind: str, value: str) -> set[str]:
        """Add a known value. Returns the texts by which it is found."""
        if kind == ADDRESS and value.count(".") == 3 and ":" not in value:
            packed = ipaddress.IPv4Address(value).packed
            self._hidden |= dict.fromkeys((packed, packed[::-1]), (value, kind))
            self._numbers |= dict.fromkeys(spell_numbers(value), value)
        elif kind == ADDRESS:
            self._hidden[ipaddress.IPv6Address(value).packed] = (value, kind)
        elif kind == HARDWARE:
            self._hidden |= dict.fromkeys(spell_hardware(value), (value, kind))
        forms = list_forms(value)
        names = {name for form in forms for name in spell_name(form)} if kind in HIDDEN_KINDS else forms
        spellings: set[str] = set()
        for name in names:
            # Each by itself: to fold a letter and to ignore its case are not the same for every letter.
            cases = {name, name.lower(), name.upper(), name.casefold(), name.title()}
            if kind in HIDDEN_KINDS:
                written = cases if name.isascii() else {form for case in cases for form in list_forms(case)}
                self._hidden |= {form.encode("utf-8", "replace"): (value, kind) for form in written}
            spellings |= {*cases, fold_letter(name)} - {""}
        for text in spellings:
            self._kinds.setdefault(text.casefold(), kind)
        return spellings

    def redact(self, text: str) -> str:
        """The text without identities."""
        # All are searched in the original text, and overlapping ones are replaced together: replacing one after the
        # other would leave halves that the next no longer recognises (a search domain "." once cut every address in
        # four).
        spans = sorted(self._find(text))
        pieces, position, number = [], 0, 0
        while number < len(spans):
            start, end, kind, value = spans[number]
            while number < len(spans) and spans[number][0] < end:
                if spans[number][1] > end:
                    _, end, kind, value = spans[number]
                number += 1
            pieces += [text[position:start], self.name(value or text[start:end], kind)]
            position = end
        return "".join([*pieces, text[position:]])

    def _find(self, text: str) -> Iterator[tuple[int, int, str, str]]:
        """What has to be replaced: its place, its kind, and the known value."""
        for start, end, kind in self._find_plain(text):
            yield start, end, kind, ""
        views, offset = list[View](), 0
        for line in text.splitlines(keepends=True):
            for start, end, kind in self._find_folded(line):
                yield offset + start, offset + end, kind, ""
            views += undo_escapes(line, offset)
            offset += len(line)
        for view in views:
            for start, end, kind in (*self._find_plain(view.text), *self._find_folded(view.text)):
                if any(view.escaped[start:end]):
                    yield *view.locate(start, end), kind, ""
        if self._hidden:
            hidden = Hidden(text, views)
            for needle, (value, kind) in self._hidden.items():
                for start, end in hidden.find(needle):
                    yield start, end, kind, value
        for match in _NUMBER.finditer(text) if self._numbers else ():
            if match[1].lower() in self._numbers:
                yield match.start(), match.end(), ADDRESS, self._numbers[match[1].lower()]

    def _find_folded(self, line: str) -> Iterator[tuple[int, int, str]]:
        """Known values in every Unicode form, with the marks on their last letter."""
        if self._known is None or line.isascii():
            return
        folded = fold(line)
        for match in self._known.finditer(folded.text):
            yield *folded.locate(*match.span()), self._kinds.get(match[0].casefold(), NAME)

    def _find_plain(self, text: str) -> Iterator[tuple[int, int, str]]:
        if self._known is not None:
            for match in self._known.finditer(text):
                yield match.start(), match.end(), self._kinds.get(match[0].casefold(), NAME)
        for pattern, kind in FORMS:
            for match in pattern.finditer(text):
                if match.end() > match.start() and not self._may_stay(match[0]):
                    yield match.start(), match.end(), kind

    def _may_stay(self, match: str) -> bool:
        return (
            match.rstrip(".") in self._keep
            or _TIME.match(match) is not None
            or _VERSION.match(match) is not None
            or match in {"::", ":::"}
        )

    def name(self, value: str, kind: str) -> str:
        """The placeholder of a value that has to go."""
        key = fold_letter(value)
        if key not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[key] = f"<{kind}-{self._counts[kind]}>"
        return self._given[key]


def _as_word(value: str) -> str:
    """A pattern for the value as a separate word: no letter or digit next to one at its edge."""
    before = _EDGE_BEFORE if value[0].isalnum() else ""
    after = _EDGE_AFTER if value[-1].isalnum() else ""
    return before + re.escape(value) + after
