# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A narrowed row in the kernel: what the row no longer names passes no layer, in no form of frame."""

from __future__ import annotations

import ipaddress
import socket
import sys
from dataclasses import replace

import pytest
from tests.integration.kernel import Kernel
from tests.lab.test_tunnel_packet import make_packet
from tests.policies import IDENTITY

from psiphon_vpn.policy import permits
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Links, Policy, State
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import InterfaceName, parse_names

pytestmark = pytest.mark.lab
CARD, FAR = "card0", "far0"
ALLOWED, OTHER = 443, 8443
ALL_FRAMES = 0x0003
"""ETH_P_ALL of if_ether.h."""
BY_SOCKET, TWO_TAGS, SESSION = "by a socket", "behind two tags", "in a session"
ENVELOPES = {
    # What is between the frame's addresses and the packet, for each IP version.
    TWO_TAGS: (0x8100, {4: "81000005810000060800", 6: "810000058100000686dd"}),
    SESSION: (0x8864, {4: "88641100000100000021", 6: "88641100000100000057"}),
}
"""IEEE 802.1Q, RFC 2516. This machine's kernel need not have such devices: psiphon-user makes the frames by itself."""
SEND = """
import socket, sys
for text in sys.argv[1:]:
    address, port = text.split("/")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(text.encode(), (address, int(port)))
        except OSError as error:
            print(text, error)
"""
SEND_FRAMES = """
import socket, sys
card, number, *frames = sys.argv[1:]
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
    for frame in frames:
        try:
            sender.sendto(bytes.fromhex(frame), (card, int(number)))
        except OSError as error:
            print(error)
"""


@pytest.fixture(name="card")
def make_card(kernel: Kernel) -> Kernel:
    """A card with a peer at its other end."""
    kernel.ip("link", "add", CARD, "type", "veth", "peer", "name", FAR)
    kernel.ip("link", "set", FAR, "up")
    kernel.ip("link", "set", CARD, "arp", "off", "up")
    kernel.ip("address", "add", "192.0.2.1/24", "dev", CARD)
    kernel.ip("address", "add", "2001:db8::1/64", "dev", CARD, "nodad")
    return kernel


def make_frame(way: str, target: str) -> str:
    """A UDP packet in its encapsulation, in hexadecimal."""
    address, port = target.split("/")
    source, destination = (
        ipaddress.ip_address(text).packed
        for text in (("2001:db8::1", address) if ":" in address else ("192.0.2.1", address))
    )
    packet = make_packet(source, destination, 17, (40000, int(port)), target.encode())
    between = ENVELOPES[way][1][6 if ":" in address else 4]
    if way == SESSION:
        # The two bytes before the protocol number are the length of what follows them (RFC 2516 4).
        between = f"{between[:12]}{len(packet) + 2:04x}{between[16:]}"
    return "02000000000b" + "02000000000a" + between + packet.hex()


def find_sent(kernel: Kernel, way: str) -> list[str]:
    """Send as psiphon-user to each port over both families; returns what comes out at the other end, up to the last."""
    targets = [f"{address}/{port}" for port in (OTHER, ALLOWED) for address in ("192.0.2.9", "2001:db8::9")]

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
        listener.bind((FAR, ALL_FRAMES))
        return listener

    uid = str(IDENTITY.uid)
    user = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"]
    python = ["--", sys.executable, "-I", "-c"]
    if way == BY_SOCKET:
        command = [*user, *python, SEND, *targets]
    else:
        raw = ["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"]
        frames = [make_frame(way, target) for target in targets]
        command = [*user, *raw, *python, SEND_FRAMES, CARD, str(ENVELOPES[way][0]), *frames]
    with kernel.host.call(listen) as listener:
        kernel.host.run(command)
        # Frames keep their order: what has not come before the last one was not sent.
        listener.settimeout(60)
        seen = b""
        while targets[-1].encode() not in seen:
            seen += listener.recv(4096)
        return [target for target in targets if target.encode() in seen]


def build_layers() -> dict[str, Table]:
    """The layers by name, each as it would guard this card, but without an owner."""
    devices = parse_names(CARD)
    links = Links(tun_index=1, uplink=InterfaceName(CARD), wires=devices)
    egress = build_egress_guard(IDENTITY, devices)
    assert egress is not None
    tables = {
        "base": build_base_table(Policy(state=State.OPEN, identity=IDENTITY, links=links)),
        "guard": build_wire_guard(IDENTITY),
        "egress": egress,
        "frames": build_frame_guard(IDENTITY, devices),
    }
    return {name: replace(table, flags="") for name, table in tables.items()}


@pytest.mark.requirement("R5")
@pytest.mark.parametrize(
    ("layer", "way"),
    [
        *((layer, BY_SOCKET) for layer in ("base", "guard", "egress", "frames")),
        *((layer, way) for layer in ("egress", "frames") for way in ENVELOPES),
    ],
)
def test_of_the_core_two_ports_alone_leave_once_its_row_says_so(
    card: Kernel, monkeypatch: pytest.MonkeyPatch, layer: str, way: str
) -> None:
    both = find_sent(card, way)
    assert len(both) == 4, "without a layer all of it must be seen"
    card.nft(build_layers()[layer].render_replacement())
    assert find_sent(card, way) == both, "under the unchanged row all of it must be seen"
    narrowed = replace(permits.CORE, match=replace(permits.CORE.match, destination_ports=(ALLOWED, 80)))
    monkeypatch.setattr(permits, "CORE", narrowed)
    card.nft(build_layers()[layer].render_replacement())
    assert find_sent(card, way) == both[2:]
