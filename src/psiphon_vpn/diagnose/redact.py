"""Takes out of a text what says who somebody is, where, and by which secrets. Pure.

Two ways at once. What is *known* of this machine (its name, its users, its interfaces, networks it knows, values of its
configuration) is replaced wherever it stands as a word of its own. And whatever has the *form* of an address, a name
with dots or a secret is replaced unless this program itself uses that very text: a list of what may stay, not of what
must go. The same value gets the same placeholder, so that a reader still sees what belongs together.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final

ADDRESS, NAME, SECRET = "address", "name", "secret"
_EDGE_BEFORE, _EDGE_AFTER = r"(?<![^\W_])", r"(?![^\W_])"

# Hexadecimal with two colons or more: IPv6, MAC and InfiniBand addresses, also when they are glued to a word.
_COLONS: Final = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:]*(?:\d{1,3}(?:\.\d{1,3}){3})?")
_TIME: Final = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\Z")
_VERSION: Final = re.compile(r"v?\d{1,4}(?:\.\d{1,4}){1,2}\Z")
"""Two or three numbers: too few for an address, and no name ends in a number."""
_QUAD: Final = re.compile(r"\d{1,3}(?:[.-]\d{1,3}){3}")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?:-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}")
_DOTTED: Final = re.compile(r"[^\W_](?:[\w\-]*)(?:\.[\w\-]+)+")
_MAIL: Final = re.compile(r"[^\s@<>\"'=]+@[^\s@<>\"'=]+")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{12,}")
_RUN: Final = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_DIGITS: Final = re.compile(r"\d{9,}")
PLACEHOLDER: Final = re.compile(r"<(?:address|name|secret|[a-z]+)-\d+>")


FORMS: Final = (
    (_URL, NAME),
    (_MAIL, NAME),
    (_MAC, ADDRESS),
    (_COLONS, ADDRESS),
    (_QUAD, ADDRESS),
    (_DOTTED, NAME),
    (_RUN, SECRET),
    (_HEX, SECRET),
    (_DIGITS, SECRET),
)


def harvest(texts: Iterable[str]) -> frozenset[str]:
    """Everything of a suspicious form in texts that hold nothing of any user: it may stay."""
    found: set[str] = set()
    for text in texts:
        for pattern, _kind in FORMS:
            found.update(match[0].rstrip(".") for match in pattern.finditer(text))
    return frozenset(found)


def is_punctuation(value: str) -> bool:
    """Whether a value, such as the search domain ".", says nothing of anybody and stands in every line."""
    return len(value) < 3 and all(char in string.punctuation for char in value)


@cache
def list_own_texts() -> tuple[str, ...]:
    """Texts of this program: rules for a machine that is nobody's, names of units, settings and checks."""
    from psiphon_vpn.diagnose.registry import CHECKS
    from psiphon_vpn.diagnose.unit_facts import MANAGERS, OTHER_UNITS, PROPERTIES
    from psiphon_vpn.policy import names
    from psiphon_vpn.policy.base import build_base_table
    from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard, build_wire_guard
    from psiphon_vpn.policy.model import Identity, Links, Policy, State
    from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS, TUN_SYSCTLS
    from psiphon_vpn.policy.values import InterfaceName
    from psiphon_vpn.system import layout as places
    from psiphon_vpn.system import units

    identity = Identity(uid=1, gid=1)
    wire = InterfaceName("eth0")
    links = Links(tun_index=2, uplink=wire, wires=(wire,))
    tables = [build_base_table(Policy(state=state, identity=identity, links=links)) for state in State]
    tables += [build_wire_guard(identity), build_arp_table()]
    egress = build_egress_guard(identity, (wire,))
    tables += [egress] if egress is not None else []
    layout = places.Layout()
    paths = [str(getattr(layout, name)) for name, kind in vars(places.Layout).items() if isinstance(kind, property)]
    settings = [*GLOBAL_SYSCTLS, *TUN_SYSCTLS, "net/ipv4/conf/all/rp_filter", "net/ipv4/ip_forward"]
    addresses = [names.TUN_IPV4, names.TUN_IPV6, names.RESOLVER_IPV4, "127.0.0.1", "::1", "0.0.0.0", "::/0"]  # noqa: S104
    targets = ("network-pre.target", "sysinit.target", "multi-user.target", "network.target", "shutdown.target")
    return (
        *(table.render() for table in tables),
        *paths,
        *(f"{path}/{unit}" for path in paths for unit in places.UNITS),
        *settings,
        *(name.replace("/", ".") for name in settings),
        *(name.split("/", 1)[1].replace("/", ".") for name in settings),
        *addresses,
        *targets,
        *units.render_units(layout).values(),
        *units.render_dropins().values(),
        units.render_guard_script(),
        "Type=notify Type=oneshot psiphon_vpn.service.runner psiphon_vpn.service.control psiphon_vpn.linux.enforcer",
        *places.UNITS,
        *MANAGERS,
        *OTHER_UNITS,
        *PROPERTIES,
        *(f"{check.id} {check.title} {check.next_step}" for check in CHECKS),
        "skuid l4proto hook postrouting type filter priority mangle conntrack admin-prohibited 10.200.3.1/24",
        "mld2-listener-report",
    )


@cache
def _harvest_own() -> frozenset[str]:
    return harvest(list_own_texts())


class Redactor:
    """Replaces; the same value by the same placeholder.

    Args:
        known: values by kind ("user", "host", "network", ...): words that mean something of this machine's user.
        keep: texts that may stay although they have a suspicious form; None for those of this program.
    """

    def __init__(self, known: Mapping[str, Iterable[str]] | None = None, *, keep: frozenset[str] | None = None) -> None:
        self._keep = _harvest_own() if keep is None else keep
        self._given: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        spellings: set[str] = set()
        for kind, values in (known or {}).items():
            for value in map(str.strip, values):
                if is_punctuation(value):
                    continue
                self._kinds.setdefault(value.casefold(), kind)
                # Each by itself: to fold a letter and to ignore its case are not the same for every letter.
                spellings |= {value, value.lower(), value.upper(), value.casefold()}
        # The longest first: a host's name may contain a user's.
        words = sorted(spellings, key=len, reverse=True)
        self._known = re.compile("|".join(map(_as_word, words)), re.IGNORECASE) if words else None

    def redact(self, text: str) -> str:
        """The text without what identifies."""
        # All are looked for in the text as it was, and what overlaps goes together: to replace one after the other
        # would leave halves that the next no longer knows (a search domain "." once cut every address in four).
        spans = sorted(self._find(text))
        pieces, position, number = [], 0, 0
        while number < len(spans):
            start, end, kind = spans[number]
            while number < len(spans) and spans[number][0] < end:
                if spans[number][1] > end:
                    end, kind = spans[number][1], spans[number][2]
                number += 1
            pieces += [text[position:start], self._name(text[start:end], kind)]
            position = end
        return "".join([*pieces, text[position:]])

    def _find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where something has to go, and of which kind it is."""
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

    def _name(self, value: str, kind: str) -> str:
        key = value.casefold()
        if key not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[key] = f"<{kind}-{self._counts[kind]}>"
        return self._given[key]


def _as_word(value: str) -> str:
    """The value where it stands by itself: no letter or digit before or behind one at its edge."""
    before = _EDGE_BEFORE if value[0].isalnum() else ""
    after = _EDGE_AFTER if value[-1].isalnum() else ""
    return before + re.escape(value) + after
