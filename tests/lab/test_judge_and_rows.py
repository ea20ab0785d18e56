# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the judge of captured frames and the table of what may pass differ, one by one.

They are written independently, one from the security policy and one as rules, so that each reveals errors in the other.
Here each frame is compared with the values of the rows, as the egress guard applies them, without nft.
"""

from __future__ import annotations

import ipaddress

from tests.lab.test_judge import EVIDENCE, INNOCENT, LEAKS
from tests.unit.test_imports import draw

from psiphon_lab.frames import Decoded, Frame, decode_packet
from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.match import Match, MessageForm, Permit, RuntimeValue

ADDRESSES = {4: ipaddress.ip_network(names.TUN_IPV4_SUBNET), 6: ipaddress.ip_network(names.TUN_IPV6_SUBNET)}

ROWS_ALLOW = {
    # The rows know the owner of a socket, and a frame does not show it: psiphon-user may send to any server, and the
    # content of a network manager's messages is not parsed. The judge knows the server's own record, and parses.
    "core": {
        "TCP to a page",
        "TCP to a page over IPv6",
        "DNS to the router",
        "DNS to the router over IPv6",
        "mDNS",
        "SSDP",
        "a broadcast",
        "the server's port from another socket",
        "the server's other port",
        "the flow's numbers in UDP",
        "a fragment of the flow",
        "a DHCP answer",
        "DHCP to a server off the link",
        "DHCP to the other provider's network",
        "DHCP's ports with something else inside",
        "DHCPv6 to a global address",
        "DHCPv6 from a global address",
        "DHCPv6's ports with something else inside",
    },
    "dhcp": {"DHCP's ports with something else inside"},
    "dhcpv6": {"DHCPv6 from a global address", "DHCPv6's ports with something else inside"},
    # A network manager may send ARP for any address before the machine has one.
    "arp-search": {
        "ARP for an address that is not on the link",
        "ARP for the tunnel's address",
        "an ARP answer for the tunnel's address",
        "ARP from an address of elsewhere",
    },
    # nft cannot parse what is inside EAPOL, so root's programs are trusted with it.
    "eapol": {"EAPOL that says less than it carries"},
    # A network manager's solicitation is matched by type, hop limit, length and destination only.
    "router-search": {"a router solicitation with something reserved"},
}
"""By row: what it lets pass, and the judge calls a leak."""
JUDGE_ALLOWS = {
    # The card pads a frame behind the egress hook.
    "ARP with padding",
}
"""What the judge calls innocent, and no row lets pass."""
NEVER_JUDGED = {"core-names", "pppoe", "ppp-control"}
"""Rows for frames that the laboratory never makes. The judge would call them leaks."""


def list_rows(frame: Frame) -> set[str]:
    """The rows that match a frame, without regard to its owner."""
    return {row.name for row in permits.ON_A_WIRE if has_values(row, frame.data)}


def has_values(row: Permit, data: bytes) -> bool:
    match = row.match
    number, body = int.from_bytes(data[12:14], "big"), data[14:]
    if match.ethertype is not None:
        return number == match.ethertype and any(has_form(match, message, body) for message in match.messages)
    packet = decode_packet(body) if number in (0x0800, 0x86DD) and body else None
    if packet is None or packet.version not in match.versions or number != {4: 0x0800, 6: 0x86DD}[packet.version]:
        return False
    if ipaddress.ip_address(packet.source) in ADDRESSES[packet.version]:
        return False
    return (
        (packet.protocol in match.protocols or (row is permits.MLD and packet.protocol == 0))
        and match.hop_limit in {None, packet.hop_limit}
        and is_one_of(packet.source_port, match.source_ports)
        and is_one_of(packet.destination_port, match.destination_ports)
        and is_inside(packet.source, match.sources)
        and is_inside(packet.destination, match.destinations)
        and (not match.messages or any(is_message(row, message, packet, len(body)) for message in match.messages))
    )


def is_one_of(port: int, ports: tuple[int | RuntimeValue, ...]) -> bool:
    return not ports or port in ports


def is_inside(address: str, places: tuple[object, ...]) -> bool:
    value = ipaddress.ip_address(address)
    networks = [ipaddress.ip_network(str(place)) for place in places if not isinstance(place, RuntimeValue)]
    if RuntimeValue.PREFIXES in places:
        networks += [*EVIDENCE.on_link["provider_a"], ipaddress.ip_network("fe80::/64")]
    if RuntimeValue.GATEWAYS in places:
        networks += [ipaddress.ip_network("192.0.2.1")]
    return not places or any(value in network for network in networks if network.version == value.version)


def is_message(row: Permit, message: MessageForm, packet: Decoded, size: int) -> bool:
    """Whether ICMPv6 has the form: type, code, size, reserved bits, option; for a report the group too."""
    payload = packet.payload
    if row is permits.MLD:
        header, payload = payload[:8], payload[8:]
        if header != b"\x3a\0\x05\x02\0\0\x01\0" or ipaddress.IPv6Address(packet.destination).packed != payload[8:]:
            return False
    if len(payload) < 8 or payload[0] not in message.types or payload[1] != message.code:
        return False
    if len(payload) not in message.sizes or size != 40 + int(row is permits.MLD) * 8 + len(payload):
        return False
    if row is permits.ROUTER_SEARCH:
        return True
    if row is permits.NEIGHBOURS:
        target = str(ipaddress.IPv6Address(payload[8:24]))
        return (
            not (int.from_bytes(payload[4:8], "big") & 0x1FFFFFFF)
            and has_option(message, payload[24:])
            and is_inside(target, (RuntimeValue.PREFIXES,))
            and (packet.source == "::" or is_inside(packet.source, (RuntimeValue.PREFIXES,)))
        )
    return (not any(payload[4:8]) and has_option(message, payload[8:])) or (
        row is permits.MLD and not any(payload[4:8])
    )


def has_option(message: MessageForm, rest: bytes) -> bool:
    return (not rest and not message.options) or int.from_bytes(rest[:2], "big") in message.options


def has_form(match: Match, message: MessageForm, body: bytes) -> bool:
    """Whether ARP or EAPOL has the form; for the kernel's own ARP the addresses too."""
    if match.ethertype == permits.EAPOL_OWN.match.ethertype:
        return len(body) >= 2 and body[0] in permits.EAPOL_VERSIONS and body[1] in message.types
    if len(body) not in message.sizes or body[:6] != b"\0\x01\x08\0\x06\x04":
        return False
    operation = int.from_bytes(body[6:8], "big")
    if match == permits.ARP_OWN.match:
        sender, target = (str(ipaddress.ip_address(body[start : start + 4])) for start in (14, 24))
        on_link = (EVIDENCE.on_link["provider_a"][0],)
        unknown = operation != permits.REQUEST or not any(body[18:24])
        if not (unknown and sender == "192.0.2.10" and is_inside(target, on_link)):
            return False
    return operation in message.types


def test_rows_and_judge_differ_where_it_is_written_and_nowhere_else() -> None:
    allowed: dict[str, set[str]] = {}
    for name, frame in LEAKS.items():
        for row in list_rows(frame):
            allowed.setdefault(row, set()).add(name)
    assert allowed == ROWS_ALLOW
    assert {name for name, (_, frame) in INNOCENT.items() if not list_rows(frame)} == JUDGE_ALLOWS


def test_each_row_is_met_by_a_frame_of_these_or_named_as_one_that_is_not() -> None:
    met = {row for _, frame in INNOCENT.values() for row in list_rows(frame)}
    assert met == {row.name for row in permits.ON_A_WIRE} - NEVER_JUDGED


def test_the_judge_takes_nothing_from_the_service() -> None:
    """So that a wrong row cannot open a hole and acquit it."""
    graph = draw(late=True)
    reached, left = set(), {"psiphon_lab.judge"}
    while left:
        reached |= left
        left = {module for name in left for module in graph[name]} - reached
    assert "psiphon_lab.frames" in reached
    assert [module for module in reached if not module.startswith("psiphon_lab")] == []
