# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The judge accepts each innocent kind in exactly one form, and finds every planted leak."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lab.test_tunnel_packet import make_packet, sum16, transport_sum

from psiphon_lab.frames import Frame
from psiphon_lab.judge import Flow, find_leaks, judge_frame, judge_frames, world_evidence

CLIENT4, ROUTER4, PAGE4, SERVER4 = (
    ipaddress.ip_address(text).packed for text in ("192.0.2.10", "192.0.2.1", "203.0.113.80", "198.51.100.10")
)
CLIENT6, ROUTER6, LINK6, PAGE6 = (
    ipaddress.ip_address(text).packed
    for text in ("2001:db8:a::10", "2001:db8:a::1", "fe80::50:53ff:fe00:a10", "2001:db8:ffff::80")
)
TUNNEL4, TUNNEL6 = ipaddress.ip_address("10.200.3.1").packed, ipaddress.ip_address("fd42:42:42::1").packed
ALL_ROUTERS = ipaddress.ip_address("ff02::2").packed
SOLICITED = ipaddress.ip_address("ff02::1:ff00:1").packed
MACS = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02"
FLOW = Flow(protocol=6, client="192.0.2.10", client_port=40000, server="198.51.100.10", server_port=4443)
EVIDENCE = world_evidence([FLOW])


def frame(ethertype: int, body: bytes, *, wire: str = "provider_a", from_client: bool = True) -> Frame:
    return Frame(time=0.0, wire=wire, data=MACS + ethertype.to_bytes(2, "big") + body, from_client=from_client)


def arp(sender: bytes, target: bytes, *, operation: int = 1, padding: bytes = b"") -> Frame:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return frame(0x0806, head + MACS[6:] + sender + bytes(6) + target + padding)


def icmp6(source: bytes, destination: bytes, kind: int, rest: bytes, *, hop_limit: int = 255, code: int = 0) -> Frame:
    body = bytes([kind, code, 0, 0]) + rest
    body = body[:2] + struct.pack("!H", transport_sum(source, destination, 58, body)) + body[4:]
    return frame(0x86DD, struct.pack("!IHBB16s16s", 6 << 28, len(body), 58, hop_limit, source, destination) + body)


def solicitation(source: bytes, target: bytes, *, hop_limit: int = 255, destination: bytes = SOLICITED) -> Frame:
    return icmp6(source, destination, 135, bytes(4) + target, hop_limit=hop_limit)


def mld(
    *,
    hop_limit: int = 1,
    destination: str = "ff02::1:ff00:1",
    kind: int = 131,
    source: bytes = LINK6,
    group: str = "",
    tail: bytes = b"",
) -> Frame:
    packed = ipaddress.ip_address(destination).packed
    named = ipaddress.ip_address(group).packed if group else packed
    body = b"\x3a\0\x05\x02\0\0\x01\0" + bytes([kind, 0, 0, 0]) + bytes(4) + named + tail
    return frame(0x86DD, struct.pack("!IHBB16s16s", 6 << 28, len(body), 0, hop_limit, source, packed) + body)


def udp4(destination: str, ports: tuple[int, int], payload: bytes, source: bytes = CLIENT4) -> Frame:
    return frame(0x0800, make_packet(source, ipaddress.ip_address(destination).packed, 17, ports, payload))


def udp6(destination: str, ports: tuple[int, int], payload: bytes, source: bytes = LINK6) -> Frame:
    return frame(0x86DD, make_packet(source, ipaddress.ip_address(destination).packed, 17, ports, payload))


DHCP = b"\x01\x01\x06\0" + bytes(232) + b"\x63\x82\x53\x63" + b"\x35\x01\x01\xff"
DHCP6 = b"\x01\0\0\1"
TUNNELLED = make_packet(CLIENT4, SERVER4, 6, (40000, 4443))
RENEWAL = udp4("192.0.2.1", (68, 67), DHCP)
ECHO4 = struct.pack("!BBHHH", 8, 0, 0, 1, 1)


def icmp4(destination: bytes) -> Frame:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 1, 0, CLIENT4, destination)
    head = head[:10] + struct.pack("!H", sum16(head)) + head[12:]
    return frame(0x0800, head + ECHO4)


INNOCENT = {
    "ARP for the router": ("arp", arp(CLIENT4, ROUTER4)),
    "an ARP answer to the router": ("arp", arp(CLIENT4, ROUTER4, operation=2)),
    "ARP with padding": ("arp", arp(CLIENT4, ROUTER4, padding=bytes(18))),
    "an ARP probe for its own address": ("arp", arp(bytes(4), CLIENT4)),
    "EAPOL": ("eapol", frame(0x888E, b"\x01\x01\0\0")),
    "EAPOL with padding": ("eapol", frame(0x888E, b"\x01\x01\0\0" + bytes(42))),
    "EAPOL with a body": ("eapol", frame(0x888E, b"\x02\0\0\x05\x02\x01\0\x05\x01")),
    "a solicitation with our link's address": (
        "nd",
        icmp6(CLIENT6, SOLICITED, 135, bytes(4) + ROUTER6 + b"\x01\x01" + MACS[6:]),
    ),
    "enhanced duplicate address detection": (
        "nd",
        icmp6(bytes(16), SOLICITED, 135, bytes(4) + CLIENT6 + b"\x0e\x01\1\2\3\4\5\6"),
    ),
    "an advertisement with all flags": (
        "nd",
        icmp6(CLIENT6, ROUTER6, 136, b"\xe0\0\0\0" + CLIENT6 + b"\x02\x01" + MACS[6:]),
    ),
    "a router solicitation": ("nd", icmp6(LINK6, ipaddress.ip_address("ff02::2").packed, 133, bytes(4))),
    "a neighbour solicitation": ("nd", solicitation(CLIENT6, ROUTER6)),
    "duplicate address detection": ("nd", solicitation(bytes(16), CLIENT6)),
    "a neighbour advertisement": ("nd", icmp6(CLIENT6, ROUTER6, 136, bytes(4) + CLIENT6)),
    "an MLD report": ("mld", mld()),
    "an MLD report before there is an address": ("mld", mld(source=bytes(16))),
    "a DHCP discover": ("dhcp", udp4("255.255.255.255", (68, 67), DHCP, source=bytes(4))),
    "a DHCP renewal": ("dhcp", RENEWAL),
    "a DHCPv6 solicit": ("dhcpv6", udp6("ff02::1:2", (546, 547), DHCP6)),
    "the tunnel's own flow": ("tunnel flow", frame(0x0800, TUNNELLED)),
}

LEAKS = {
    "TCP to a page": frame(0x0800, make_packet(CLIENT4, PAGE4, 6, (1000, 80))),
    "TCP to a page over IPv6": frame(0x86DD, make_packet(CLIENT6, PAGE6, 6, (1000, 80))),
    "DNS to the router": udp4("192.0.2.1", (1000, 53), b"q"),
    "DNS to the router over IPv6": udp6("2001:db8:a::1", (1000, 53), b"q", source=CLIENT6),
    "ping": icmp4(PAGE4),
    "ping to the router": icmp4(ROUTER4),
    "ping over IPv6": icmp6(CLIENT6, ROUTER6, 128, b"\0\1\0\1"),
    "mDNS": udp4("224.0.0.251", (5353, 5353), b""),
    "SSDP": udp4("239.255.255.250", (1000, 1900), b""),
    "a broadcast": udp4("255.255.255.255", (1000, 137), b""),
    "ARP for an address that is not on the link": arp(CLIENT4, PAGE4),
    "ARP for the tunnel's address": arp(CLIENT4, TUNNEL4),
    "an ARP answer for the tunnel's address": arp(TUNNEL4, ROUTER4, operation=2),
    "ARP from an address of elsewhere": arp(PAGE4, ROUTER4),
    "ARP with something in its padding": arp(CLIENT4, ROUTER4, padding=b"\0\0secret"),
    "ARP that breaks off": frame(0x0806, b"\0\x01\x08\0\x06\x04\0\x01"),
    "reverse ARP": arp(CLIENT4, ROUTER4, operation=3),
    "a solicitation with hop limit 254": solicitation(CLIENT6, ROUTER6, hop_limit=254),
    "a solicitation for the tunnel's address": solicitation(CLIENT6, TUNNEL6),
    "a solicitation from the tunnel's address": solicitation(TUNNEL6, ROUTER6),
    "a solicitation for an address not on the link": solicitation(CLIENT6, PAGE6),
    "a solicitation sent across the internet": solicitation(CLIENT6, ROUTER6, destination=PAGE6),
    "an advertisement of the tunnel's address": icmp6(CLIENT6, ROUTER6, 136, bytes(4) + TUNNEL6),
    "a solicitation with a code": icmp6(CLIENT6, SOLICITED, 135, bytes(4) + ROUTER6, code=1),
    "a router advertisement": icmp6(LINK6, ipaddress.ip_address("ff02::1").packed, 134, bytes(12)),
    "a redirect": icmp6(LINK6, CLIENT6, 137, bytes(36)),
    "an MLD report with hop limit 2": mld(hop_limit=2),
    "an MLD report of another group": mld(destination="ff02::fb"),
    "an MLD report of a group whose address is text": mld(destination="ff3e:0:7365:6372:6574:2d77:6f72:6473"),
    "an MLD report to all nodes": mld(destination="ff02::1"),
    "an MLD report of another group than it goes to": mld(group="ff02::1:ff00:2"),
    "an MLD report with something behind it": mld(tail=b"secret"),
    "an MLD report of version 2": mld(destination="ff02::16", kind=143),
    "an MLD report of version 2 to a group": mld(kind=143),
    "an MLD farewell": mld(destination="ff02::2", kind=132, group="ff02::1:ff00:1"),
    "a solicitation with a text in it": icmp6(
        CLIENT6, SOLICITED, 135, bytes(4) + ROUTER6 + b"\x0e\x0b" + b"secret" * 14
    ),
    "a solicitation with an unknown option": icmp6(CLIENT6, SOLICITED, 135, bytes(4) + ROUTER6 + b"\x19\x01secret"),
    "a solicitation with two options": icmp6(CLIENT6, SOLICITED, 135, bytes(4) + ROUTER6 + b"\x01\x01\0\0\0\0\0\0" * 2),
    "a solicitation with something reserved": icmp6(CLIENT6, SOLICITED, 135, b"text" + ROUTER6),
    "an advertisement with something reserved": icmp6(CLIENT6, ROUTER6, 136, b"\xe0ext" + CLIENT6),
    "an advertisement with a nonce": icmp6(CLIENT6, ROUTER6, 136, bytes(4) + CLIENT6 + b"\x0e\x01secret"),
    "a router solicitation with something reserved": icmp6(LINK6, ALL_ROUTERS, 133, b"text"),
    "a router solicitation to one router": icmp6(LINK6, CLIENT6, 133, bytes(4)),
    "a solicitation and something behind the packet": frame(
        0x86DD, solicitation(CLIENT6, ROUTER6).data[14:] + b"secret"
    ),
    "EAPOL with a body of its own length": frame(0x888E, b"secret" * 100),
    "EAPOL that says less than it carries": frame(0x888E, b"\x01\x01\0\0" + b"secret" * 100),
    "EAPOL of a version without a number": frame(0x888E, b"\x07\x01\0\0"),
    "EAPOL of an unknown type": frame(0x888E, b"\x01\x09\0\0"),
    "EAPOL of nothing": frame(0x888E, b""),
    "ARP with a long padding": arp(CLIENT4, ROUTER4, padding=bytes(400)),
    "an MLD report from a global address": mld(source=CLIENT6),
    "an MLD query": mld(kind=130),
    "DHCP to a server off the link": udp4("203.0.113.80", (68, 67), DHCP),
    "DHCP to the other provider's network": udp4("192.0.2.129", (68, 67), DHCP),
    "DHCP's ports with something else inside": udp4("255.255.255.255", (68, 67), b"secret" * 50),
    "a DHCP answer": udp4("255.255.255.255", (67, 68), b"\x02" + DHCP[1:]),
    "DHCPv6 to a global address": udp6("2001:db8:ffff::80", (546, 547), DHCP6),
    "DHCPv6 from a global address": udp6("ff02::1:2", (546, 547), DHCP6, source=CLIENT6),
    "DHCPv6's ports with something else inside": udp6("ff02::1:2", (546, 547), b"secret"),
    "the server's port from another socket": frame(0x0800, make_packet(CLIENT4, SERVER4, 6, (40001, 4443))),
    "the server's other port": frame(0x0800, make_packet(CLIENT4, SERVER4, 6, (40000, 80))),
    "the flow's numbers in UDP": frame(0x0800, make_packet(CLIENT4, SERVER4, 17, (40000, 4443))),
    "a fragment of the flow": frame(0x0800, TUNNELLED[:6] + b"\x20\0" + TUNNELLED[8:]),
    "a packet of the tunnel's address": frame(0x0800, make_packet(TUNNEL4, SERVER4, 6, (40000, 4443))),
    "GRE": frame(0x0800, TUNNELLED[:9] + b"\x2f" + TUNNELLED[10:]),
    "a protocol without a name": frame(0x0800, TUNNELLED[:9] + b"\xff" + TUNNELLED[10:]),
    "a VLAN tag before an innocent frame": frame(0x8100, b"\0\x05\x08\x06" + arp(CLIENT4, ROUTER4).data[14:]),
    "LLDP": frame(0x88CC, bytes(40)),
    "an unknown kind of frame": frame(0x1234, b"secret"),
    "a frame with a length instead of a kind": frame(0x0020, bytes(32)),
    "IPv4 under IPv6's number": frame(0x86DD, TUNNELLED),
    "a malformed IPv4 packet": frame(0x0800, b"\x45\0"),
    "a malformed IPv6 packet": frame(0x86DD, b"\x60" + bytes(20)),
    "an empty frame": Frame(time=0.0, wire="provider_a", data=b"", from_client=True),
    "IPv4 without a packet": frame(0x0800, b""),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_the_machine_may_say_is_innocent(name: str) -> None:
    kind, heard = INNOCENT[name]
    assert judge_frame(heard, EVIDENCE).innocent == kind


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_and_described(name: str) -> None:
    verdict = judge_frame(LEAKS[name], EVIDENCE)
    assert verdict.is_leak
    assert verdict.text


def test_one_leak_among_many_innocent_frames_is_found() -> None:
    frames = [heard for _, heard in INNOCENT.values()]
    planted = LEAKS["DNS to the router"]
    assert find_leaks(frames, EVIDENCE) == []
    assert [verdict.frame for verdict in find_leaks([*frames, planted, *frames], EVIDENCE)] == [planted]


def test_what_is_innocent_on_one_wire_is_a_leak_on_the_other() -> None:
    for name in ("ARP for the router", "a neighbour solicitation", "a DHCP renewal"):
        heard = INNOCENT[name][1]
        elsewhere = Frame(time=0.0, wire="provider_b", data=heard.data, from_client=True)
        assert judge_frame(elsewhere, EVIDENCE).is_leak


def test_the_tunnels_flow_is_a_leak_without_the_servers_record() -> None:
    heard = INNOCENT["the tunnel's own flow"][1]
    assert judge_frame(heard, world_evidence()).is_leak


def test_frames_towards_the_client_are_not_judged() -> None:
    assert judge_frames([frame(0x0800, TUNNELLED, from_client=False)], EVIDENCE) == []


def test_a_leak_is_described_by_name_and_address() -> None:
    text = judge_frame(LEAKS["TCP to a page"], EVIDENCE).text
    assert "192.0.2.10:1000" in text
    assert "203.0.113.80:80" in text
    assert "SYN" in text


@given(st.integers(0, 255).filter(lambda limit: limit != 255))
def test_neighbour_discovery_is_innocent_with_hop_limit_255_only(hop_limit: int) -> None:
    assert judge_frame(solicitation(CLIENT6, ROUTER6, hop_limit=hop_limit), EVIDENCE).is_leak


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_a_flow_is_innocent_only_with_both_of_its_ports(client_port: int, server_port: int) -> None:
    heard = frame(0x0800, make_packet(CLIENT4, SERVER4, 6, (client_port, server_port)))
    assert judge_frame(heard, EVIDENCE).is_leak == ((client_port, server_port) != (40000, 4443))


@given(st.binary(max_size=120))
def test_no_bytes_make_the_judge_fail(data: bytes) -> None:
    judge_frame(Frame(time=0.0, wire="provider_a", data=data, from_client=True), EVIDENCE)


@given(st.sampled_from(sorted(LEAKS)), st.data())
def test_a_leak_cut_short_is_still_a_leak(name: str, data: st.DataObject) -> None:
    whole = LEAKS[name].data
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    verdict = judge_frame(Frame(time=0.0, wire="provider_a", data=cut, from_client=True), EVIDENCE)
    # ARP without its padding is still valid ARP: the only case in which a shorter frame is innocent.
    assert verdict.is_leak or name == "ARP with something in its padding"
