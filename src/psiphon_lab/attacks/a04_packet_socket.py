# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A04: frames from a packet socket, which neither routes nor IP filters see."""

from __future__ import annotations

import mmap
import socket
import struct

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import EGRESS, Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import DISCARD, fire_frame, send_bytes

SOCKETS_ONLY = True  # see fork_server

EXPERIMENTAL, VLAN, PPPOE, LLDP = 0x88B5, 0x8100, 0x8864, 0x88CC
SOL_PACKET, PACKET_TX_RING = 263, 13
RING_FRAME, RING_BLOCK = 2048, 4096
TP_STATUS_SEND_REQUEST, TP_DATA = 1, 32  # struct tpacket_hdr, aligned (packet(7), packet_mmap)


def _packet(shot: Shot) -> bytes:
    source, target = (LAN_A.client4, plan.INTERNET4) if shot.family == 4 else (LAN_A.client6, plan.INTERNET6)
    return packet_builder.udp_packet(source, target, (shot.source_port, DISCARD), shot.data)


def cooked(shot: Shot, *, interface: str) -> None:
    """Send with SOCK_DGRAM: the kernel makes the frame's header."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        protocol = 0x0800 if shot.family == 4 else 0x86DD
        sock.sendto(_packet(shot), (interface, protocol, 0, 0, b"\xff" * 6))


def other_kind(shot: Shot, *, interface: str, ethertype: int) -> None:
    """Send a frame that is not IP."""
    tag = b"\0\x05\x08\x00" if ethertype == VLAN else b""
    send_bytes(interface, packet_builder.frame(packet_builder.BROADCAST_MAC, LAN_A.mac, ethertype, tag + _packet(shot)))


def disguised(shot: Shot, *, interface: str, protocol: int) -> None:
    """Send an IP packet that the kernel takes for ARP or EAPOL."""
    data = packet_builder.ip_frame(packet_builder.BROADCAST_MAC, LAN_A.mac, _packet(shot))
    send_bytes(interface, data, protocol=protocol)


def mapped(shot: Shot, *, interface: str) -> None:
    """Send a frame from a ring in memory that is shared with the kernel (PACKET_TX_RING)."""
    data = packet_builder.ip_frame(packet_builder.BROADCAST_MAC, LAN_A.mac, _packet(shot))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("IIII", RING_BLOCK, 1, RING_FRAME, 2))
        sock.bind((interface, 0x0800 if shot.family == 4 else 0x86DD))
        with mmap.mmap(sock.fileno(), RING_BLOCK) as ring:
            ring[TP_DATA : TP_DATA + len(data)] = data
            struct.pack_into("LI", ring, 0, TP_STATUS_SEND_REQUEST, len(data))
            sock.send(b"")


def run(trial: Trial) -> None:
    """Send raw and cooked frames, past the queues, from a ring, tagged, disguised, of unknown protocols."""
    for lan in trial.lans:
        wire = lan.interface
        for family in (4, 6):
            end = f"ipv{family} {wire}"
            fire_frame(trial, f"raw {end}", family, wire)
            fire_frame(trial, f"past the queue {end}", family, wire, bypass=True)
            for function, name in ((cooked, "cooked"), (mapped, "ring")):
                trial.fire(function, by=Actor.ROOT, family=family, name=f"{name} {end}", needs=EGRESS, interface=wire)
            for protocol, name in ((0x0806, "ARP"), (0x888E, "EAPOL")):
                trial.fire(disguised, by=Actor.ROOT, family=family, name=f"disguised as {name} {end}", needs=EGRESS,
                           interface=wire, protocol=protocol)  # fmt: skip
        for ethertype, name in ((EXPERIMENTAL, "experimental"), (VLAN, "VLAN"), (PPPOE, "PPPoE"), (LLDP, "LLDP")):
            trial.fire(other_kind, by=Actor.ROOT, family=4, name=f"{name} {wire}", needs=EGRESS, interface=wire,
                       ethertype=ethertype)  # fmt: skip


ATTACK = Attack(
    id="A04",
    name="raw frames",
    reference="packet(7); DHCP clients send this way",
    summary="A program with root's rights writes whole frames for the network card itself, past routes and IP rules.",
    actors=(Actor.ROOT,),
    recognised="by source port or a token in the frame",
    control="the same frames without the lock",
    run=run,
)
