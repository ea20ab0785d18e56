# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of packets that make up nearly all traffic of an open machine, and what each hook evaluates for them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.policies import IDENTITY, LINKS, make_policy
from tests.rule_walk import IPV4, IPV6, Walked, list_base_chains, walk_chain

from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names

LO, TUN, CARD = (1, "lo", 772), (7, names.TUN_NAME, names.TUN_TYPE), (2, "eth0", 1)
"""Index, name and link layer of the interfaces (ARPHRD of if_arp.h)."""
LEASES = (names.TUN_NAME,)
SERVER = {4: "203.0.113.9", 6: "2001:db8:9::9"}
OWN = {4: "192.0.2.10", 6: "2001:db8:a::10"}
PAGE = {4: "198.51.100.80", 6: "2001:db8:80::80"}
TUNNEL = {4: names.TUN_IPV4, 6: names.TUN_IPV6}
HERE = {4: "127.0.0.1", 6: "::1"}
GATEWAY = {4: "192.0.2.1", 6: "fe80::1"}
TCP, UDP = 6, 17
ACK, SYN = 16, 2


def build_ip(source: str, target: str, protocol: int, payload: bytes, *, hop_limit: int = 64) -> bytes:
    """An IP packet. Nobody checks its checksums."""
    ends = tuple(map(ipaddress.ip_address, (source, target)))
    addresses = b"".join(end.packed for end in ends)
    if ends[0].version == 4:
        return (
            bytes((0x45, 0))
            + (20 + len(payload)).to_bytes(2, "big")
            + bytes(4)
            + bytes((hop_limit, protocol))
            + bytes(2)
            + addresses
            + payload
        )
    return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes((protocol, hop_limit)) + addresses + payload


def build_tcp(source_port: int, target_port: int, flags: int = ACK) -> bytes:
    """A TCP header."""
    ports = source_port.to_bytes(2, "big") + target_port.to_bytes(2, "big")
    return ports + bytes(8) + bytes((0x50, flags)) + bytes(6)


def build_udp(source_port: int, target_port: int) -> bytes:
    """A UDP header."""
    return source_port.to_bytes(2, "big") + target_port.to_bytes(2, "big") + b"\0\x08\0\0"


def build_walked(packet: bytes, **facts: object) -> Walked:
    """A packet as an inet hook has it."""
    return Walked(packet=packet, protocol=IPV4 if packet[0] >> 4 == 4 else IPV6, **facts)  # type: ignore[arg-type]


def put_on_card(walked: Walked) -> Walked:
    """The packet at a card's egress, where it has an Ethernet header."""
    return replace(walked, ethernet=bytes(12) + walked.protocol.to_bytes(2, "big"), oif=CARD)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of packet: its name, the packet, and the hooks that it passes, in order."""

    name: str
    walked: Walked
    hooks: tuple[str, ...]


OUT, IN = ("output", "postrouting"), ("prerouting", "input")


def list_kinds() -> tuple[Kind, ...]:
    """The usual packets, of both families."""
    return tuple(kind for version in (4, 6) for kind in _list_kinds_of(version))


def _list_kinds_of(version: int) -> Iterator[Kind]:
    own, server, tunnel, page, here = (places[version] for places in (OWN, SERVER, TUNNEL, PAGE, HERE))
    core = {"uid": IDENTITY.uid, "gid": IDENTITY.gid, "ct_mark": names.CORE_MARK}
    user = {"uid": 1000, "gid": 1000}
    answer = {"direction": "reply"}

    def make(
        name: str, ends: tuple[str, str], hooks: tuple[str, ...], *, ports: tuple[int, int], **facts: object
    ) -> Kind:
        packet = build_ip(*ends, TCP, build_tcp(*ports))
        walked = build_walked(packet, state="established", **facts)
        return Kind(name=f"{name}, IPv{version}", walked=walked, hooks=hooks)

    out, back, local = (40000, 443), (443, 40000), (40000, 8080)
    gateway = GATEWAY[version]
    by_card = (*OUT, "egress")
    yield make(
        "the core to its server, through the card", (own, server), by_card, ports=out, oif=CARD, nexthop=gateway, **core
    )
    yield make(
        "its server's answer, through the card",
        (server, own), IN, ports=back, iif=CARD, ct_mark=names.CORE_MARK, **answer,
    )  # fmt: skip
    yield make("an application's packet, into the TUN", (tunnel, page), OUT, ports=out, oif=TUN, nexthop=page, **user)
    yield make("its answer, out of the TUN", (page, tunnel), IN, ports=back, iif=TUN, **answer)
    yield make("this machine to itself, out", (here, here), OUT, ports=local, oif=LO, nexthop=here, **user)
    yield make("this machine to itself, in", (here, here), IN, ports=local, iif=LO, local=True)


def build_tables() -> tuple[Table, ...]:
    """The tables of an open machine with one card, all layers loaded."""
    links = replace(LINKS, tun_index=TUN[0])
    egress = build_egress_guard(IDENTITY, parse_names("eth0"), links.dhcp_servers, on_link=links.on_link)
    assert egress is not None
    return (
        build_base_table(make_policy(State.OPEN, links=links)),
        build_wire_guard(IDENTITY),
        egress,
        build_frame_guard(IDENTITY, parse_names("eth0")),
    )


def count_kind(kind: Kind, tables: tuple[Table, ...]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """The expressions and rules evaluated for a packet, by hook, table and base chain.

    Raises:
        ValueError: a chain does not let it pass, so later chains would not see it.
    """
    counts = {}
    for hook in kind.hooks:
        for table in tables:
            for chain in list_base_chains(table, hook):
                walked = put_on_card(kind.walked) if hook == "egress" else kind.walked
                walk = walk_chain(table, chain, walked, LEASES)
                if walk.verdict != "accept":
                    raise ValueError(f"{kind.name}: {walk.verdict} by {table.name} {chain.name}")
                counts[hook, table.name, chain.name] = (walk.expressions, walk.rules)
    return counts


def count_all() -> dict[str, dict[tuple[str, str, str], tuple[int, int]]]:
    """The counts of every kind, by its name."""
    tables = build_tables()
    return {kind.name: count_kind(kind, tables) for kind in list_kinds()}


def render_counts() -> str:
    """The table, as text: a line for each chain that a kind of packet meets, and the sums."""
    lines = ["expressions (rules) that a packet is asked", ""]
    for name, counts in count_all().items():
        total = tuple(map(sum, zip(*counts.values(), strict=True)))
        lines.append(f"{name}: {total[0]} ({total[1]})")
        lines += [
            f"    {hook:<12}{f'{table} {chain}':<36}{expressions:>4} ({rules})"
            for (hook, table, chain), (expressions, rules) in counts.items()
        ]
    return "\n".join(lines) + "\n"
