# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the kernel's listing with the policy, value by value, without nft.

A table and its copy come from the same text, so they cannot show how nft interpreted the text. Here each rule of the
listing is compared with the rule of the policy that it was made from: as many rules in each chain; in each rule the
same interfaces, by name and by index, the same mark and the same verdict; and no address that the policy does not have.
"""

import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from psiphon_vpn.linux.netlink import iterate_attributes, read_attributes
from psiphon_vpn.linux.nfnetlink import NFT_MSG_NEWSETELEM, Message
from psiphon_vpn.linux.nftimage import NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE
from psiphon_vpn.policy.ruleset import Chain, Rule, Table

_META_MARK, _META_IIF, _META_OIF, _META_IIFNAME, _META_OIFNAME = 3, 4, 5, 6, 7
_NETWORK_HEADER = 1
_ADDRESS_OFFSETS = {12: 4, 16: 4, 8: 16, 24: 16}
"""Where a header has an address, and how long it is: source and destination of IPv4, and of IPv6."""
_INTERVAL_END = 1
_VERDICTS = {0: "drop", 1: "accept", 0xFFFFFFFD: "jump", 0xFFFFFFFC: "goto", 0xFFFFFFFB: "return"}
_LOADING = frozenset({"ct", "fib", "exthdr", "socket", "numgen", "hash", "osf", "xfrm", "tunnel"})
"""Other expressions that put something into a register, by the attribute 1 like those that are read here."""
_NOTHING = ("", 0, 0)
_ARP = "0x0806"
"""In the text of every rule of a netdev table that is about ARP."""
_NAMES, _INDEXES, _ADDRESSES = "names", "indexes", "addresses"
_DEVICE, _DEVICES = 3, 4
"""NFTA_HOOK_DEV, NFTA_HOOK_DEVS"""
_REMEMBERED = 512
"""How many rules are cached, each by all its bytes: a policy has some 200, and most are in the next one too."""
_What = tuple[str, int, int]
"""What a register holds, the length of an address and how much of it was loaded."""


@dataclass
class _Found:
    """What a rule says. It is cached, so it must not be changed once it is read."""

    names: set[str] = field(default_factory=set)
    indexes: set[int] = field(default_factory=set)
    does: str = ""
    mark: str = ""
    """What is done to the packet's mark, as nft has it: "or 0x2000000", or a whole value; nothing where it is left."""
    edges: set[int] = field(default_factory=set)
    """Of the ranges of addresses: the first, and the one after the last, as numbers."""
    lookups: list[tuple[str, _What]] = field(default_factory=list)
    """Names of the sets that it looks into, and what for."""


def find_difference(image: Iterable[Message], tables: Iterable[Table]) -> str | None:
    """How a listing differs from the policy; None if it does not.

    Args:
        image: the messages that make the tables (`nftimage.read_image`).
        tables: the policy's.
    """
    messages: dict[str, list[Message]] = {}
    for message in image:
        messages.setdefault(_name_of(message), []).append(message)
    for table in tables:
        wrong = _compare(messages.get(table.name, []), table)
        if wrong is not None:
            return f"{table.family} {table.name}: {wrong}"
    return None


def _name_of(message: Message) -> str:
    # The first attribute, of every object.
    return next((_text(value) for kind, value in iterate_attributes(message.body) if kind == 1), "")


def _text(data: bytes) -> str:
    return data.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _compare(messages: list[Message], table: Table) -> str | None:
    sets: dict[str, tuple[bytes, ...]] = {}
    chains: dict[str, list[bytes]] = {}
    devices: dict[str, tuple[str, ...]] = {}
    for message in messages:
        attributes = read_attributes(message.body)
        if message.kind == NFT_MSG_NEWCHAIN:
            name = _text(attributes[3])
            chains[name], devices[name] = [], tuple(_read_devices(attributes.get(4, b"")))
        elif message.kind == NFT_MSG_NEWSETELEM:
            elements = tuple(element for _, element in iterate_attributes(attributes.get(3, b"")))
            sets[_text(attributes[2])] = (*sets.get(_text(attributes[2]), ()), *elements)
        elif message.kind == NFT_MSG_NEWRULE:
            chains.setdefault(_text(attributes[2]), []).append(attributes.get(4, b""))
    if set(chains) != {chain.name for chain in table.chains}:
        return "it has other chains"
    edges = {edge for chain in table.chains for rule in chain.rules for edge in _expect(rule).edges}
    for chain in table.chains:
        if set(devices[chain.name]) != set(chain.devices):
            return f"chain {chain.name} is on other devices"
        wrong = _compare_chain(chains[chain.name], chain, sets, edges, is_arp=table.family == "arp")
        if wrong is not None:
            return wrong
    return None


def _read_devices(hook: bytes) -> Iterator[str]:
    attributes = read_attributes(hook)
    if _DEVICES in attributes:
        yield from (_text(name) for _, name in iterate_attributes(attributes[_DEVICES]))
    elif _DEVICE in attributes:
        yield _text(attributes[_DEVICE])


def _compare_chain(
    found: list[bytes], chain: Chain, sets: dict[str, tuple[bytes, ...]], edges: set[int], *, is_arp: bool
) -> str | None:
    if len(found) != len(chain.rules):
        return f"chain {chain.name} has {len(found)} rules instead of {len(chain.rules)}"
    for number, (expressions, rule) in enumerate(zip(found, chain.rules, strict=True), start=1):
        wanted, read = _expect(rule), _read_whole_rule(expressions, sets)
        if (read.names, read.indexes) != (wanted.names, wanted.indexes):
            return f"rule {number} of chain {chain.name} is about other interfaces"
        if read.does != wanted.does:
            return f"rule {number} of chain {chain.name} does something else"
        if read.mark != wanted.mark:
            return f"rule {number} of chain {chain.name} sets another mark"
        # ARP has its addresses elsewhere, where IPv6 has part of one: they are not read.
        if not (is_arp or _ARP in rule.text or read.edges <= edges):
            return f"rule {number} of chain {chain.name} has an address that the policy does not have"
    return None


# -- what the policy says ---------------------------------------------------------------------------------------------

_QUOTED = re.compile(r'\b([io]if(?:name)?) (?:!= )?(\{[^}]*\}|"[^"]*")')
_MARK = re.compile(r"\bmeta mark set (meta mark or )?(\w+)\b")
_ADDRESS = re.compile(r"(?<![\w.:])(?:\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:.]*)(?:/\d+)?(?![\w.:])")


@lru_cache(maxsize=_REMEMBERED)
def _expect(rule: Rule) -> _Found:
    """What a rule of the policy says. Its text is of checked values alone (`policy/values.py`)."""
    found = _Found()
    for word, quoted in _QUOTED.findall(rule.text):
        values = re.findall(r'"([^"]*)"', quoted)
        if word.endswith("name"):
            found.names.update(values)
        elif all(value.isdigit() for value in values):
            found.indexes.update(map(int, values))
        else:
            found.indexes.update(1 for value in values if value == "lo")
    last = rule.text.split()
    if last[-1] in {"accept", "drop", "return"}:
        found.does = last[-1]
    elif len(last) > 1 and last[-2] in {"goto", "jump"}:
        found.does = " ".join(last[-2:])
    elif "reject" in last:
        found.does = "reject"
    elif "snat" in last or "dnat" in last:
        found.does = "nat"
    if set_mark := _MARK.search(rule.text):
        found.mark = ("or " if set_mark[1] else "") + hex(int(set_mark[2], 0))
    for text in _ADDRESS.findall(rule.text):
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        found.edges |= {int(network.network_address), int(network.broadcast_address) + 1}
    return found


# -- what the kernel says ---------------------------------------------------------------------------------------------


def _read_whole_rule(expressions: bytes, sets: dict[str, tuple[bytes, ...]]) -> _Found:
    found = _read_rule(expressions)
    for name, what in found.lookups:
        inside = _read_elements(what, sets.get(name, ()))
        found = replace(
            found,
            names=found.names | inside.names,
            indexes=found.indexes | inside.indexes,
            edges=found.edges | inside.edges,
        )
    return found


@lru_cache(maxsize=_REMEMBERED)
def _read_elements(what: _What, elements: tuple[bytes, ...]) -> _Found:
    found = _Found()
    for element in elements:
        _add_element(found, what, read_attributes(element))
    return found


@lru_cache(maxsize=_REMEMBERED)
def _read_rule(expressions: bytes) -> _Found:
    """What a rule says, but for the sets that it looks into."""
    found = _Found()
    loaded: dict[int, _What] = {}
    masks: dict[int, bytes] = {}
    constants: dict[int, bytes] = {}
    marks: dict[int, str] = {}
    for _, item in iterate_attributes(expressions):
        outer = read_attributes(item)
        kind, data = _text(outer.get(1, b"")), read_attributes(outer.get(2, b""))
        if kind == "meta" and 1 in data:
            loaded[_number(data[1])] = (_name_meta(_number(data[2])), 0, 0)
            masks.pop(_number(data[1]), None)
        elif kind in {"payload", "rt"} and 1 in data:
            loaded[_number(data[1])] = _name_payload(kind, data)
            masks.pop(_number(data[1]), None)
        elif kind == "meta" and _number(data.get(2, b"")) == _META_MARK:
            found.mark = marks.get(_number(data.get(3, b"")), "?")
        elif kind == "bitwise":
            marks[_number(data[2])] = _read_or(data)
            loaded[_number(data[2])] = loaded.get(_number(data[1]), _NOTHING)
            masks[_number(data[2])] = read_attributes(data.get(4, b"")).get(1, b"")
        elif kind == "cmp":
            register = _number(data[1])
            value = read_attributes(data[3]).get(1, b"")
            _add(found, loaded.get(register, _NOTHING), value, masks.get(register))
        elif kind == "lookup":
            found.lookups.append((_text(data[1]), loaded.get(_number(data[2]), _NOTHING)))
        elif kind == "immediate":
            inner = read_attributes(data[2])
            if 2 in inner:
                verdict = read_attributes(inner[2])
                found.does = _VERDICTS.get(_number(verdict[1]), "?")
                found.does += f" {_text(verdict[2])}" if 2 in verdict else ""
            else:
                constants[_number(data[1])] = inner.get(1, b"")
                marks[_number(data[1])] = hex(int.from_bytes(inner.get(1, b""), sys.byteorder))
        elif kind == "nat":
            found.does = "nat"
            address = constants.get(_number(data.get(3, b"")), b"")
            _add(found, (_ADDRESSES, len(address), len(address)), address, None)
        elif kind == "reject":
            found.does = "reject"
        elif kind in _LOADING and 1 in data:
            loaded[_number(data[1])] = _NOTHING
    return found


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _read_or(data: dict[int, bytes]) -> str:
    """A mark with bits added, as the kernel has it: the rest kept by a mask, the bits put in by exclusive or."""
    kept, put = (int.from_bytes(read_attributes(data.get(key, b"")).get(1, b""), sys.byteorder) for key in (4, 5))
    return f"or {put:#x}" if kept == put ^ 0xFFFFFFFF else "?"


def _name_meta(key: int) -> str:
    if key in {_META_IIFNAME, _META_OIFNAME}:
        return _NAMES
    return _INDEXES if key in {_META_IIF, _META_OIF} else ""


def _name_payload(kind: str, data: dict[int, bytes]) -> _What:
    if kind == "rt":
        length = {1: 4, 2: 16}.get(_number(data[2]), 0)  # NFT_RT_NEXTHOP4, NFT_RT_NEXTHOP6
        return (_ADDRESSES, length, length) if length else _NOTHING
    base, offset, length = (_number(data.get(key, b"")) for key in (2, 3, 4))
    whole = _ADDRESS_OFFSETS.get(offset, 0)
    # Two of them at once, or something beside one: not read.
    return (_ADDRESSES, whole, length) if base == _NETWORK_HEADER and 0 < length <= whole else _NOTHING


def _add(found: _Found, what: _What, value: bytes, mask: bytes | None) -> None:
    kind, whole, length = what
    if kind == _NAMES:
        # A name without its end is the beginning of one: `eth*`.
        found.names.add(_text(value) if b"\0" in value else f"{_text(value)}*")
    elif kind == _INDEXES and len(value) == 4:
        found.indexes.add(int.from_bytes(value, sys.byteorder))
    elif kind == _ADDRESSES and len(value) == length:
        free = 8 * (whole - length)
        first = int.from_bytes(value, "big") << free
        bits = int.from_bytes(mask, "big") << free if mask is not None else -1 << free
        found.edges |= {first, first + (~bits & ((1 << (8 * whole)) - 1)) + 1}


def _add_element(found: _Found, what: _What, element: dict[int, bytes]) -> None:
    value = read_attributes(element.get(1, b"")).get(1, b"")
    kind, whole, length = what
    if kind != _ADDRESSES:
        _add(found, what, value, None)
    elif len(value) == length:
        edge = int.from_bytes(value, "big") << 8 * (whole - length)
        # The end of a range, or its beginning; what is no range has no end here. Zero ends what reaches to the last.
        if edge or not _number(element.get(3, b"")) & _INTERVAL_END:
            found.edges.add(edge)
