# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks a packet through rendered rules as nf_tables does, and counts the expressions that are evaluated for it.

A test instrument, and no part of the service: it reads the text of rules (`ruleset.Rule.text`), not what a kernel
lists. `tests/integration/test_rule_walk_kernel.py` compares its count of each rule with the expressions that nft
itself makes. `python -m tests.rule_walk` prints the table of the usual packets.

An expression is one step of the kernel's virtual machine: loading a value is one, comparing it is one, looking it up in
a set is one (nft(8), `--debug=netlink` shows them). A rule ends at the first comparison that fails. Neighbouring fields
of a packet are counted one by one, although nft compares them at once where it can. Chains of address translation are
not counted: the kernel evaluates them only for the first packet of a flow (nf_nat_core.c, nf_nat_inet_fn).
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

from psiphon_vpn.policy.ruleset import Chain, Rule, Table

ETHERNET, IPV4, IPV6 = 14, 0x0800, 0x86DD
TAGS = (0x8100, 0x88A8)
EXTENSIONS = (0, 43, 60)
FRAGMENT = 44
FAMILIES = {"ipv4": 4, "ipv6": 6}


@dataclass(frozen=True, kw_only=True)
class Walked:
    """A packet as a hook of the kernel sees it.

    Attributes:
        packet: from the IP header on, or what follows the Ethernet header.
        ethernet: the Ethernet header, with a VLAN tag if there is one; empty if the interface has none.
        protocol: protocol of the socket buffer (EtherType).
        unseen: bytes of `ethernet` that the kernel keeps outside the frame: the outermost tag.
        oif, iif: index and name of an interface, and the type of its link layer; None where the hook knows none.
        oifkind: kind of the interface through which it leaves.
        uid, gid: of the socket; None if no socket sent it.
        groups: control groups that the socket is in.
        state, direction, status: of connection tracking, which knows only the state of an invalid packet.
        ct_mark, mark: the two marks.
        nexthop: the gateway of its route, or its destination.
        local: whether its destination is an address of this machine.
    """

    packet: bytes
    ethernet: bytes = b""
    protocol: int = IPV4
    unseen: int = 0
    oif: tuple[int, str, int] | None = None
    iif: tuple[int, str, int] | None = None
    oifkind: str = ""
    uid: int | None = None
    gid: int | None = None
    groups: frozenset[str] = frozenset()
    state: str = "invalid"
    direction: str = "original"
    status: frozenset[str] = frozenset()
    ct_mark: int = 0
    mark: int = 0
    nexthop: str = ""
    local: bool = False

    @property
    def version(self) -> int:
        """IP version by the protocol of the socket buffer; 0 for anything else."""
        return {IPV4: 4, IPV6: 6}.get(self.protocol, 0)

    def find_transport(self) -> tuple[int | None, int, bool]:
        """Protocol above IP, where its header begins, and whether this is a later fragment, which has no header.

        As nft_set_pktinfo_ipv4_validate and ipv6_find_hdr do it. None if there is no such header.
        """
        data = self.packet
        if self.version == 4:
            if len(data) < 20 or data[0] >> 4 != 4 or data[0] & 15 < 5:
                return None, 0, False
            return data[9], (data[0] & 15) * 4, bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
        if self.version != 6 or len(data) < 40 or data[0] >> 4 != 6:
            return None, 0, False
        kind, at = data[6], 40
        while kind in {*EXTENSIONS, FRAGMENT} and len(data) >= at + 8:
            if kind == FRAGMENT and int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8:
                return data[at], at, True
            kind, at = data[at], at + (8 if kind == FRAGMENT else (data[at + 1] + 1) * 8)
        return kind, at, False


@dataclass
class Walk:
    """The result of a walk.

    Attributes:
        verdict: "accept", "drop" or "reject with …".
        expressions, rules: how many were evaluated.
        ct_mark, mark: the marks at its end.
        changes: other changes of the packet.
    """

    verdict: str = ""
    expressions: int = 0
    rules: int = 0
    ct_mark: int = 0
    mark: int = 0
    changes: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> tuple[object, ...]:
        """Everything that a packet's sender or receiver could notice."""
        return self.verdict, self.ct_mark if self.verdict == "accept" else 0, self.mark, tuple(self.changes)


Value = int | str | bytes | None
Read = Callable[[Walked], Value]
"""Reads a value of a packet; None where nf_tables would break off the rule (NFT_BREAK)."""


@dataclass(frozen=True)
class _Step:
    """One match or statement. `costs`: the number of expressions until it is decided."""

    cost: int
    holds: Callable[[Walked], bool] | None = None
    verdict: str = ""
    target: str = ""
    effect: str = ""


def _meta(key: str) -> Read:
    readers: dict[str, Read] = {
        "skuid": lambda packet: packet.uid,
        "skgid": lambda packet: packet.gid,
        "l4proto": lambda packet: packet.find_transport()[0],
        "nfproto": lambda packet: packet.version or None,
        "length": lambda packet: len(packet.packet) + len(packet.ethernet) - packet.unseen,
        "protocol": lambda packet: packet.protocol,
        "oiftype": lambda packet: packet.oif and packet.oif[2],
        "iiftype": lambda packet: packet.iif and packet.iif[2],
        "oifkind": lambda packet: packet.oifkind if packet.oif else None,
        # Without a device, the kernel reads 0 and an empty name (nft_meta.c, nft_meta_store_ifindex).
        "oif": lambda packet: packet.oif[0] if packet.oif else 0,
        "iif": lambda packet: packet.iif[0] if packet.iif else 0,
        "oifname": lambda packet: packet.oif[1] if packet.oif else "",
        "iifname": lambda packet: packet.iif[1] if packet.iif else "",
    }
    return readers[key]


def _raw(base: str, bit: int, size: int) -> Read:
    assert bit % 8 == 0
    assert size % 8 == 0

    def read(packet: Walked) -> Value:
        whole = packet.ethernet + packet.packet
        if base == "ll":
            start, available = 0, bool(packet.ethernet)
        elif base == "nh":
            start, available = len(packet.ethernet), True
        else:
            kind, at, later = packet.find_transport()
            start, available = len(packet.ethernet) + at, kind is not None and not later
        data = whole[start + bit // 8 : start + (bit + size) // 8]
        return int.from_bytes(data, "big") if available and len(data) == size // 8 else None

    return read


_FIELDS = {
    "ip saddr": ("nh", 96, 32), "ip daddr": ("nh", 128, 32),
    "ip6 saddr": ("nh", 64, 128), "ip6 daddr": ("nh", 192, 128),
    "ip6 length": ("nh", 32, 16), "ip6 nexthdr": ("nh", 48, 8), "ip6 hoplimit": ("nh", 56, 8),
    "icmpv6 type": ("th", 0, 8), "icmpv6 code": ("th", 8, 8),
    "tcp sport": ("th", 0, 16), "tcp dport": ("th", 16, 16),
    "udp sport": ("th", 0, 16), "udp dport": ("th", 16, 16),
    "th sport": ("th", 0, 16), "th dport": ("th", 16, 16),
    "arp saddr ip": ("nh", 112, 32), "arp daddr ip": ("nh", 192, 32),
}  # fmt: skip
_ABOVE = {"tcp": 6, "udp": 17, "icmpv6": 58}
_SENDS = {"ip": IPV4, "ip6": IPV6, "arp": 0x0806}


def _ct(key: str) -> Read:
    readers: dict[str, Read] = {
        "state": lambda packet: packet.state,
        "direction": lambda packet: packet.direction if packet.state != "invalid" else None,
        "mark": lambda packet: packet.ct_mark if packet.state != "invalid" else None,
        "status": lambda packet: " ".join(packet.status) if packet.state != "invalid" else None,
    }
    return readers[key]


class _Reader:
    """Reads one rule. family: the table's; leases: the elements of its sets."""

    def __init__(self, text: str, family: str, leases: frozenset[str]) -> None:
        self.words = re.findall(r'"[^"]*"|\{[^}]*\}|\S+', text)
        self.family, self.leases = family, leases
        self.known: set[str] = set()
        """What the rule has asked already: nft asks for no protocol twice."""

    def next(self, count: int = 1) -> str:
        taken, self.words = self.words[:count], self.words[count:]
        return " ".join(taken)

    def starts(self, *texts: str) -> bool:
        return any(self.words[: len(text.split())] == text.split() for text in texts)

    def read(self) -> Iterator[_Step]:
        while self.words:
            yield from self.read_step()

    def read_step(self) -> Iterator[_Step]:
        if self.starts("counter"):
            self.next()
            yield _Step(1)
        elif self.starts("accept", "drop", "return"):
            yield _Step(1, verdict=self.next())
        elif self.starts("jump", "goto"):
            yield _Step(1, verdict=self.next(), target=self.next())
        elif self.starts("reject"):
            yield _Step(1, verdict=self.next(len(self.words)))
        elif self.starts("ct mark set", "meta mark set"):
            what = self.next(3)
            bits = self.starts("meta mark or")
            value = self.next(3 if bits else 0) + self.next()
            yield _Step(3 if bits else 2, effect=f"{what} {value}")
        elif self.starts("dnat", "snat"):
            yield _Step(2, effect=self.next(len(self.words)))
        else:
            yield from self.read_match()

    def read_match(self) -> Iterator[_Step]:
        needs, read, label = self.read_left()
        yield from needs
        load = 1
        mask = None
        if self.starts("&"):
            self.next()
            mask = int(self.next(), 0)
            load += 1
        inverted = False
        if self.starts("!=", "=="):
            inverted = self.next() == "!="
        right = self.next()
        if label == "ct state":
            load += 1
        holds, costs = self.read_right(right, label)

        def matches(packet: Walked) -> bool:
            value = read(packet)
            if value is None:
                return False
            if mask is not None:
                assert isinstance(value, int)
                value &= mask
            return holds(value) is not inverted

        yield _Step(load + costs, holds=matches)

    def read_left(self) -> tuple[list[_Step], Read, str]:
        word = self.next()
        if word == "meta":
            key = self.next()
            self.known.add({"nfproto": "network", "protocol": "network", "l4proto": "transport"}.get(key, key))
            return [], _meta(key), f"meta {key}"
        if word in {"oif", "iif", "oifname", "iifname"}:
            return [], _meta(word), word
        if word == "ct":
            key = self.next()
            return [], _ct(key), f"ct {key}"
        if word == "rt":
            version = {"ip": 4, "ip6": 6}[self.next()]
            assert self.next() == "nexthop"
            # No match for a packet of another family (nft_rt.c, nft_rt_get_eval).
            return [], lambda packet: (packet.nexthop or None) if packet.version == version else None, "address"
        if word == "fib":
            self.next(2)
            return [], lambda packet: "local" if packet.local else "unicast", "fib"
        if word == "socket":
            level, path = self.next(3), self.next()
            assert level.startswith("cgroupv2 level ")
            self.words.insert(0, path)
            return [], lambda packet: None if packet.uid is None else " ".join(packet.groups), "group"
        if word.startswith("@"):
            base, bit, size = word[1:].split(",")
            return [], _raw(base, int(bit), int(size)), "number"
        name = f"{word} {self.next(2 if word == 'arp' else 1)}"
        base, start, width = _FIELDS[name]
        needs = self.network(word) if word in _SENDS else self.transport(word)
        return needs, _raw(base, start, width), "address" if name.endswith(("addr", "addr ip")) else "number"

    def network(self, word: str) -> list[_Step]:
        if "network" in self.known:
            return []
        self.known.add("network")
        if self.family == "inet":
            version = 4 if word == "ip" else 6
            return [_Step(2, holds=lambda packet: packet.version == version)]
        return [_Step(2, holds=lambda packet: packet.protocol == _SENDS[word])]

    def transport(self, word: str) -> list[_Step]:
        if word == "th" or "transport" in self.known:
            return []
        self.known.add("transport")
        number = _ABOVE[word]
        return [_Step(2, holds=lambda packet: packet.find_transport()[0] == number)]

    def read_right(self, right: str, label: str) -> tuple[Callable[[Value], bool], int]:
        if right.startswith("@"):
            return (lambda value: value in self.leases), 1
        if label == "ct state":
            states = right.split(",")
            return (lambda value: value in states), 1
        if label in {"ct status", "group"}:
            return (lambda value: right.strip('"') in str(value).split()), 2 if label == "ct status" else 1
        items = [item.strip() for item in right.strip("{}").split(",")]
        tests = [_read_value(item, label) for item in items]
        # A prefix of whole bytes is compared directly; any other needs a mask. A range needs a change of byte order and
        # two comparisons.
        single = not right.startswith("{")
        more = 1 if single and label == "address" and "/" in right and int(right.partition("/")[2]) % 8 else 0
        more += 2 if single and label == "meta length" and "-" in right else 0
        return (lambda value: any(test(value) for test in tests)), 1 + more


def _read_value(item: str, label: str) -> Callable[[Value], bool]:
    if label == "address":
        network = ipaddress.ip_network(item)
        low, high = int(network.network_address), int(network.broadcast_address)

        def inside(value: Value) -> bool:
            number = int(ipaddress.ip_address(value)) if isinstance(value, str) else value
            return isinstance(number, int) and low <= number <= high

        return inside
    if label in {"oif", "iif"}:
        index = int(item.strip('"'))
        return lambda value: value == index
    if label == "meta nfproto":
        return lambda value: value == FAMILIES[item]
    if re.fullmatch(r"\d+-\d+", item):
        first, last = map(int, item.split("-"))
        return lambda value: isinstance(value, int) and first <= value <= last
    if re.fullmatch(r"0x[0-9a-f]+|\d+", item):
        number = int(item, 0)
        return lambda value: value == number
    text = item.strip('"')
    return lambda value: value == text


@cache
def read_rule(text: str, family: str, leases: frozenset[str] = frozenset()) -> tuple[_Step, ...]:
    """The steps of a rule."""
    return tuple(_Reader(text, family, leases).read())


def count_expressions(rule: Rule, family: str) -> int:
    """All expressions of a rule."""
    return sum(step.cost for step in read_rule(rule.text, family))


def walk_chain(table: Table, chain: Chain, packet: Walked, leases: Iterable[str] = ()) -> Walk:
    """Walk through a base chain.

    Args:
        table: the table.
        chain: one of its base chains.
        packet: what arrives there.
        leases: the interfaces with a running lease.
    """
    assert chain.hook is not None
    walk = Walk(ct_mark=packet.ct_mark, mark=packet.mark)
    chains = {item.name: item for item in table.chains}
    held = frozenset(leases)
    stack: list[Iterator[Rule]] = [iter(chain.rules)]
    while stack:
        rule = next(stack[-1], None)
        if rule is None:
            stack.pop()
            continue
        walk.rules += 1
        for step in read_rule(rule.text, table.family, held):
            walk.expressions += step.cost
            if step.holds is not None and not step.holds(packet):
                break
            _apply(walk, step.effect)
            if step.verdict in {"jump", "goto"}:
                if step.verdict == "goto":
                    stack.pop()
                stack.append(iter(chains[step.target].rules))
            elif step.verdict == "return":
                stack.pop()
            elif step.verdict:
                walk.verdict = step.verdict
                return walk
    walk.verdict = chain.hook.policy
    return walk


def _apply(walk: Walk, effect: str) -> None:
    if effect.startswith("ct mark set "):
        walk.ct_mark = int(effect.rpartition(" ")[2], 0)
    elif effect.startswith("meta mark set meta mark or"):
        walk.mark |= int(effect.removeprefix("meta mark set meta mark or"), 0)
    elif effect.startswith("meta mark set "):
        walk.mark = int(effect.rpartition(" ")[2], 0)
    elif effect:
        walk.changes.append(effect)


def list_base_chains(table: Table, hook: str = "") -> tuple[Chain, ...]:
    """The chains that the kernel evaluates for each packet, in its order. hook: only those of this hook."""
    found = [
        chain for chain in table.chains if chain.hook and chain.hook.kind != "nat" and hook in {"", chain.hook.hook}
    ]
    return tuple(sorted(found, key=lambda chain: chain.hook.priority if chain.hook else 0))


def main() -> int:
    """Print the table."""
    from tests.usual_packets import render_counts

    sys.stdout.write(render_counts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
