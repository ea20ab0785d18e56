# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Would a ruleset let this packet out? A small interpreter for the JSON that nft prints. Pure.

It decides `locked` for the status, with and without a daemon: it tries sample packets of applications on the rules that
the kernel holds. An expression that it does not understand may match or not, and the chain gets every outcome that is
then possible. So it can err only by calling a locked machine open.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from psiphon_vpn.policy import names

JsonValue = Any


@dataclass(frozen=True, kw_only=True)
class Packet:
    """A packet of an application as an output or postrouting hook sees it.

    Attributes:
        values: the packet's values of expressions such as "meta oifname" or "ip daddr". An expression that is missing
            here is unknown, unless its protocol is in `absent`.
        absent: protocols that the packet does not have ("ip6" in an IPv4 packet): their fields never match.
        never: values that an expression is known not to have, if any other is possible (the interface is some wire).
    """

    values: dict[str, int | str]
    absent: frozenset[str] = frozenset()
    never: dict[str, frozenset[int | str]] = field(default_factory=dict)


class _Unknown:
    pass


UNKNOWN = _Unknown()
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132, "gre": 47, "udplite": 136}
FAMILIES = {"ipv4": 2, "ipv6": 10}


def _name_of(left: JsonValue) -> str:
    """An expression's key in a packet's values; empty if packets have no such value."""
    if not isinstance(left, dict) or len(left) != 1:
        return ""
    kind, body = next(iter(left.items()))
    if not isinstance(body, dict):
        return ""
    if kind in {"meta", "ct"}:
        return f"{kind} {body.get('key')}"
    return f"{body.get('protocol')} {body.get('field')}" if kind == "payload" else ""


def _number(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return PROTOCOLS.get(value, FAMILIES.get(value, value))
    return value


def _any(found: list[bool | _Unknown]) -> bool | _Unknown:
    return True if True in found else (UNKNOWN if UNKNOWN in found else False)


def _equals(value: Any, right: JsonValue, sets: "Sets") -> bool | _Unknown:
    """Whether a known value equals the right side, or is an element of it."""
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(right[1:])
        return UNKNOWN if elements is None else _any([_equals(value, item, sets) for item in elements])
    if isinstance(right, list):
        right = {"set": right}
    if isinstance(right, dict):
        if "elem" in right and isinstance(right["elem"], dict):
            return _equals(value, right["elem"].get("val"), sets)
        if "set" in right and isinstance(right["set"], list):
            return _any([_equals(value, item, sets) for item in right["set"]])
        if "prefix" in right:
            try:
                network = ipaddress.ip_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False)
                return ipaddress.ip_address(value) in network
            except ValueError:
                return UNKNOWN
        if "range" in right:
            low, high = right["range"]
            try:
                return (
                    int(ipaddress.ip_address(low))
                    <= int(ipaddress.ip_address(value))
                    <= int(ipaddress.ip_address(high))
                )
            except ValueError:
                pass
            if all(isinstance(item, int) for item in (value, low, high)):
                return bool(low <= value <= high)
        return UNKNOWN
    right = _number(right)
    # An `InterfaceName` is a str too.
    if isinstance(right, str) != isinstance(value, str) or (isinstance(right, str) and right.endswith("*")):
        return UNKNOWN
    return bool(value == right)


def _never_equals(never: frozenset[int | str], right: JsonValue, sets: "Sets") -> bool | _Unknown:
    """Whether a value outside `never` equals the right side: no, or unknown."""
    if isinstance(right, int) or (isinstance(right, str) and not right.startswith("@")):
        return False if right in never else UNKNOWN
    elements = sets.get(right[1:]) if isinstance(right, str) else right.get("set") if isinstance(right, dict) else right
    if not isinstance(elements, list):
        return UNKNOWN
    values = [item["elem"].get("val") if isinstance(item, dict) and "elem" in item else item for item in elements]
    return _any([False if isinstance(item, int | str) and item in never else UNKNOWN for item in values])


def _matches(expression: JsonValue, packet: Packet, sets: "Sets") -> bool | _Unknown:
    body = expression.get("match")
    if not isinstance(body, dict):
        return UNKNOWN
    name, right = _name_of(body.get("left")), body.get("right")
    if name.split(" ")[0] in packet.absent:
        return False
    if name in packet.values:
        result = _equals(packet.values[name], right, sets)
    elif name in packet.never:
        result = _never_equals(packet.never[name], right, sets)
    else:
        return UNKNOWN
    if isinstance(result, _Unknown):
        return UNKNOWN
    if body.get("op") in {"==", "in"}:
        return result
    return not result if body.get("op") == "!=" else UNKNOWN


Sets = dict[str, list[JsonValue]]
"""The elements of named sets."""
VERDICTS = {"accept", "drop", "reject", "jump", "goto", "return"}
HARMLESS = {"counter", "log", "mangle"}
"""Statements that neither decide nor match anything."""
SELECTING = {"match", "limit", "quota"}
END = "end"
"""The outcome of a chain without a verdict: its caller goes on, or its policy decides."""


@dataclass(frozen=True)
class Chains:
    """The chains of one table: their rules, its sets, and the base chains by hook."""

    rules: dict[str, list[list[JsonValue]]]
    base: dict[str, list[tuple[str, str]]]
    sets: Sets

    @classmethod
    def read(cls, objects: list[JsonValue]) -> "Chains":
        """Sort the objects that nft printed, in their order."""
        rules: dict[str, list[list[JsonValue]]] = {}
        base: dict[str, list[tuple[str, str]]] = {}
        sets: Sets = {}
        for entry in objects:
            if "chain" in entry:
                chain = entry["chain"]
                rules.setdefault(chain["name"], [])
                if chain.get("type") == "filter" and "hook" in chain:
                    base.setdefault(chain["hook"], []).append((chain["name"], chain.get("policy", "accept")))
            elif "rule" in entry:
                rules.setdefault(entry["rule"]["chain"], []).append(entry["rule"].get("expr", []))
            elif "set" in entry:
                sets[entry["set"]["name"]] = list(entry["set"].get("elem", []))
        return cls(rules, base, sets)


def _read_rule(expressions: list[JsonValue], packet: Packet, sets: Sets) -> tuple[str, str, bool] | None:
    """A rule's verdict, its target, and whether it certainly applies; None if it does not match this packet."""
    certain, verdict = True, None
    for expression in expressions:
        key = expression if isinstance(expression, str) else next(iter(expression), "")
        if key == "match":
            result = _matches(expression, packet, sets)
            if result is False:
                return None
            certain = certain and result is True
        elif key in VERDICTS:
            target = expression[key].get("target", "") if key in {"jump", "goto"} else ""
            verdict = (key, target)
        elif key not in HARMLESS:
            certain = False
            if key not in SELECTING and verdict is None:
                # A verdict map, a queue, an iptables extension: it may accept.
                verdict = ("accept", "")
    return (*verdict, certain) if verdict is not None else None


def _outcomes(chains: Chains, name: str, packet: Packet, above: frozenset[str]) -> set[str]:
    """The possible outcomes of a chain: "accept", "drop", or END if the packet may reach its end."""
    if name in above:
        return {"accept"}  # the kernel allows no loop, so we do not understand this ruleset
    outcomes: set[str] = set()
    for expressions in chains.rules.get(name, []):
        read = _read_rule(expressions, packet, chains.sets)
        if read is None:
            continue
        kind, target, certain = read
        if kind in {"jump", "goto"}:
            inner = _outcomes(chains, target, packet, above | {name})
            if kind == "jump" and END in inner:
                inner, certain = inner - {END}, False
            outcomes |= inner
        else:
            outcomes.add({"return": END, "reject": "drop"}.get(kind, kind))
        if certain:
            return outcomes
    return outcomes | {END}


def lets_out(objects: list[JsonValue], packet: Packet, *, hooks: tuple[str, ...] = ("output",)) -> bool:
    """Whether a table may let a packet pass all of these hooks.

    A hook without a filter chain of the table passes everything.
    """
    chains = Chains.read(objects)
    for hook in hooks:
        for name, policy in chains.base.get(hook, []):
            outcomes = _outcomes(chains, name, packet, frozenset())
            if "accept" not in outcomes and (END not in outcomes or policy != "accept"):
                return False
    return True


def application_packets(loopback: str = "lo", bridges: frozenset[str] | None = None) -> tuple[Packet, ...]:
    """Sample packets that must never leave: of root and of ordinary users, of each kind, both families, on any wire.

    Args:
        loopback: name of the loopback device: nft prints it for the index in the rules.
        bridges: names of all bridges while the bridge guard is loaded: then no bridge leads out by itself, since each
            port is checked. None while it is not loaded.
    """
    inner = frozenset[int | str]({loopback, names.TUN_NAME, *(bridges or ())})
    kinds = {} if bridges is None else {"meta oifkind": frozenset[int | str]({"bridge"})}
    # A card can have the TUN's name, but then another index and type; or loopback's, but then another index.
    wires: tuple[tuple[dict[str, int | str], dict[str, frozenset[int | str]]], ...] = (
        ({}, {"meta oifname": frozenset({names.TUN_NAME}), "meta oif": inner, **kinds}),
        (
            {"meta oifname": names.TUN_NAME},
            {"meta oiftype": frozenset({names.TUN_TYPE}), "meta oif": inner, **kinds},
        ),
    )
    samples = []
    for family, prefix, absent, targets in (
        (2, "ip", "ip6", ("192.0.2.200", "10.0.0.53", "9.9.9.9")),
        (10, "ip6", "ip", ("2001:db8:200::1", "fd00::53", "2620:fe::fe")),
    ):
        source = "192.0.2.100" if family == 2 else "2001:db8:100::1"
        for target in targets:
            for uid in (0, 1000, 65534):
                for protocol, name, port in (
                    (6, "tcp", 443),
                    (17, "udp", 443),
                    (17, "udp", 53),
                    (6, "tcp", 53),
                    (1, "", 0),
                ):
                    number = protocol if protocol != 1 else (1 if family == 2 else 58)
                    values: dict[str, int | str] = {
                        "meta skuid": uid,
                        "meta skgid": uid,
                        "meta l4proto": number,
                        "meta nfproto": family,
                        f"{prefix} saddr": source,
                        f"{prefix} daddr": target,
                    }
                    gone = {absent, *({"tcp", "udp", "th", "icmpv6", "icmp"} - {name, "th" if name else ""})}
                    if name:
                        values |= {f"{name} sport": 40000, f"{name} dport": port, "th dport": port, "th sport": 40000}
                    elif family == 10:
                        gone -= {"icmpv6"}
                        values |= {"icmpv6 type": "echo-request", "icmpv6 code": 0, "ip6 hoplimit": 64}
                    samples += [
                        Packet(values=values | named, absent=frozenset(gone), never=never) for named, never in wires
                    ]
    return tuple(samples)
