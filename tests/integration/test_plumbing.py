# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the link's plumbing may do, and what only looks like it: DHCP, neighbour discovery and MLD under the lock.

Every packet is first seen outside without the lock. Then each guard is tried alone, and all together.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

import pytest
from tests.integration.testbed import open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.sending import send_bytes
from psiphon_lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

WIRE = LAN_A.interface
RS, RA, NS, NA, REDIRECT, MLD2 = 133, 134, 135, 136, 137, 143
LINK_LOCAL = "fe80::50:53ff:fe00:a10"
ALL_NODES, ALL_ROUTERS, ALL_MLD2, ALL_DHCP6 = "ff02::1", "ff02::2", "ff02::16", "ff02::1:2"
SITE_DHCP6 = "ff05::1:3"
TOKEN = b"p"  # with two numbers six bytes, exactly as long as a link-layer address
Send = Callable[[bytes], None]


def solicited(address: str) -> str:
    """The solicited-node group of an address (RFC 4291, 2.7.1)."""
    return f"ff02::1:ff{packet_builder.pack_address(address)[-3]:02x}:{packet_builder.pack_address(address)[-2:].hex()}"


def frame(packet: bytes) -> None:
    # Broadcast, so that any router on the link accepts it.
    send_bytes(WIRE, packet_builder.ip_frame(packet_builder.BROADCAST_MAC, LAN_A.mac, packet))


def option(token: bytes, *, exact: bool) -> bytes:
    """An option of neighbour discovery with a token: the source's link-layer address, or a nonce of 32 bytes."""
    return b"\x01\x01" + token if exact else b"\x0e\x04" + token.ljust(30)


def discovery(kind: int, target: str, about: str = "", *, source: str = LAN_A.client6, hop_limit: int = 255,
              code: int = 0, exact: bool = False) -> Send:  # fmt: skip
    """A message of neighbour discovery in a raw frame. about: the address that it is about."""

    def send(token: bytes) -> None:
        rest = bytes(4) + (packet_builder.pack_address(about) if about else b"") + option(token, exact=exact)
        frame(packet_builder.icmp_packet(source, target, kind, rest, code=code, hop_limit=hop_limit))

    return send


def raw_discovery(kind: int, target: str, *, hop_limit: int = 255, exact: bool = False) -> Send:
    """The same from a raw socket of root that is bound to the link."""

    def send(token: bytes) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, packet_builder.ICMPV6) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WIRE.encode())
            for limit in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
                sock.setsockopt(socket.IPPROTO_IPV6, limit, hop_limit)
            about = b"" if kind == RS else packet_builder.pack_address(LAN_A.router6)
            index = socket.if_nametoindex(WIRE) if target.startswith("ff02:") else 0
            body = struct.pack("!BBHI", kind, 0, 0, 0) + about + option(token, exact=exact)
            sock.sendto(body, (target, 0, 0, index))

    return send


def mld(target: str, hop_limit: int) -> Send:
    def send(token: bytes) -> None:
        frame(packet_builder.icmp_packet(LINK_LOCAL, target, MLD2, bytes(4) + token, hop_limit=hop_limit))

    return send


def dhcp(source: str, target: str, ports: tuple[int, int]) -> Send:
    """A request of a DHCP client, in a raw frame as dhclient makes it."""

    def send(token: bytes) -> None:
        if ":" in source:
            message = b"\x01\0\0\1" + struct.pack("!HH", 1, len(token)) + token
        else:
            message = (
                b"\x01\x01\x06\0" + bytes(224) + bytes(8) + b"\x63\x82\x53\x63\x35\x01\x03\x3d" + bytes([len(token)])
            )
            message += token + b"\xff"
        frame(packet_builder.udp_packet(source, target, ports, message))

    return send


NO_PLUMBING: dict[str, Send] = {
    "a solicitation that a router would forward": discovery(NS, solicited(LAN_A.router6), LAN_A.router6, hop_limit=64),
    "a router solicitation that a router would forward": discovery(RS, ALL_ROUTERS, hop_limit=64),
    "a solicitation to somebody on the internet": discovery(NS, plan.INTERNET6, LAN_A.router6),
    "a router solicitation to somebody on the internet": discovery(RS, plan.INTERNET6),
    "an advertisement to somebody on the internet": discovery(NA, plan.INTERNET6, LAN_A.client6),
    "a solicitation for somebody on the internet": discovery(NS, solicited(plan.INTERNET6), plan.INTERNET6),
    "a program's own solicitation for a neighbour": discovery(NS, solicited(plan.NEIGHBOUR6), plan.NEIGHBOUR6),
    "a program's own advertisement": discovery(NA, ALL_NODES, LAN_A.client6),
    "a solicitation with a code": discovery(NS, solicited(LAN_A.router6), LAN_A.router6, code=1),
    "a router advertisement": discovery(RA, ALL_NODES, source=LINK_LOCAL),
    "a redirect": discovery(REDIRECT, ALL_NODES, LAN_A.router6, source=LINK_LOCAL),
    "a raw socket's solicitation to somebody on the internet": raw_discovery(NS, plan.INTERNET6),
    "a raw socket's router solicitation to somebody on the internet": raw_discovery(RS, plan.INTERNET6),
    "a raw socket's solicitation for a neighbour": raw_discovery(NS, solicited(plan.NEIGHBOUR6)),
    "a raw socket's advertisement": raw_discovery(NA, ALL_NODES),
    "a raw socket's router solicitation with a hop limit": raw_discovery(RS, ALL_ROUTERS, hop_limit=64),
    "a raw socket's router solicitation with more in it": raw_discovery(RS, ALL_ROUTERS),
    "an MLD report that a router would forward": mld(ALL_MLD2, 64),
    "a program's own MLD report": mld(ALL_MLD2, 1),
    "an MLD report to all nodes": mld(ALL_NODES, 1),
    "an MLD report to somebody on the internet": mld(plan.INTERNET6, 1),
    "DHCP to somebody on the internet": dhcp(LAN_A.client4, plan.INTERNET4, (68, 67)),
    "DHCP from another port": dhcp(LAN_A.client4, "255.255.255.255", (1068, 67)),
    "DHCP to another port": dhcp(LAN_A.client4, "255.255.255.255", (68, 53)),
    "DHCP as a server sends it": dhcp(LAN_A.client4, "255.255.255.255", (67, 68)),
    "DHCPv6 to somebody on the internet": dhcp(LAN_A.client6, plan.INTERNET6, (546, 547)),
    "DHCPv6 to servers of the site": dhcp(LAN_A.client6, SITE_DHCP6, (546, 547)),
    "DHCPv6 from another port": dhcp(LINK_LOCAL, ALL_DHCP6, (1546, 547)),
    "DHCPv6 to another port": dhcp(LINK_LOCAL, ALL_DHCP6, (546, 53)),
}
PLUMBING: dict[str, Send] = {
    "a network manager's router solicitation": raw_discovery(RS, ALL_ROUTERS, exact=True),
    "the same in a raw frame": discovery(RS, ALL_ROUTERS, source=LINK_LOCAL, exact=True),
    "DHCP to everybody on the link": dhcp("0.0.0.0", "255.255.255.255", (68, 67)),
    "DHCPv6 to everybody on the link": dhcp(LINK_LOCAL, ALL_DHCP6, (546, 547)),
}
_rounds = iter(range(1000))


def find_seen(world: World, sends: dict[str, Send]) -> set[str]:
    """Send all of them as root; returns the names of those that left the client."""
    mark, tag = world.mark(), TOKEN + b"%03d" % next(_rounds)
    tokens = {name: tag + b"%02d" % number for number, name in enumerate(sends)}

    def send_all() -> None:
        for name, send in sends.items():
            try:
                send(tokens[name])
            except OSError:
                continue  # refused; the wire shows whether it really was

    world.client.call(send_all)
    time.sleep(0.15)
    data = [frame.data for frame in world.frames_since(mark)]
    return {name for name, token in tokens.items() if any(token in one for one in data)}


def kernel_answers(world: World, address: str = LAN_A.client6) -> bool:
    """Whether the client's kernel advertises its own address to a neighbour that solicits it from a similar one."""
    mark = world.mark()
    world.neighbour.run(["ip", "-6", "neigh", "flush", "dev", "eth0"])

    def call() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            index = socket.if_nametoindex("eth0") if address.startswith("fe80:") else 0
            sock.sendto(b"anybody there?", (address, 9, 0, index))

    world.neighbour.call(call)
    time.sleep(0.15)
    # ICMPv6 in the IPv6 packet in the frame.
    return any(frame.data[12:14] == b"\x86\xdd" and frame.data[20] == packet_builder.ICMPV6 and frame.data[54] == NA
               for frame in world.frames_since(mark) if len(frame.data) > 54)  # fmt: skip


@pytest.mark.requirement("R1", "R4", "R7", "R19")
def test_only_the_links_own_plumbing_passes_and_nothing_that_looks_like_it_whichever_guard_is_asked() -> None:
    with open_testbed(start=False) as testbed:
        world, machine = testbed.world, testbed.machine

        def assert_no_wider(which: str) -> None:
            assert not find_seen(world, NO_PLUMBING), which
            assert find_seen(world, PLUMBING) == set(PLUMBING), which
            assert kernel_answers(world), which

        machine.release_guard()
        world.client.run(["nft", "flush", "ruleset"])
        everything = NO_PLUMBING | PLUMBING
        assert find_seen(world, everything) == set(everything), "the positive control"
        assert kernel_answers(world)
        machine.hold_guard()
        assert_no_wider("wire guard and frame guard alone")
        machine.release_guard()
        machine.boot_lock()
        sockets = {name: send for name, send in NO_PLUMBING.items() if name.startswith("a raw socket")}
        assert not find_seen(world, sockets), "the base table alone, which no frame of a packet socket passes through"
        assert kernel_answers(world, LINK_LOCAL), "at boot no prefix of the link is known: only link scope"
        machine.start_daemon()
        machine.wait_state("OPEN")
        assert_no_wider("base table and egress guard alone, open")
        machine.hold_guard()
        machine.command("stop")
        assert_no_wider("all of them, locked")
