# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A13: a neighbour looks for the tunnel's address."""

from __future__ import annotations

from typing import Any

from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A, NEIGHBOUR4, NEIGHBOUR6
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode, Trace
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import DISCARD, send_bytes
from psiphon_lab.service_adapter import names

SOCKETS_ONLY = True  # see fork_server

NEIGHBOUR_MAC = "02:50:53:00:0e:14"
FLAGS = {
    "SYN": packet_builder.SYN,
    "SYN+ACK": packet_builder.SYN | packet_builder.ACK,
    "RST": packet_builder.RST,
    "ACK": packet_builder.ACK,
}


def segment(shot: Shot, *, source: str, target: str, flags: int) -> None:
    """Send a TCP segment for an address of the tunnel to the machine's MAC address."""
    packet = packet_builder.tcp_packet(source, target, (shot.source_port, DISCARD), flags)
    send_bytes("eth0", packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def datagram(shot: Shot, *, source: str, target: str) -> None:
    """Send a UDP packet to a closed port: a "port unreachable" would give the machine away."""
    packet = packet_builder.udp_packet(source, target, (shot.source_port, 4), shot.data)
    send_bytes("eth0", packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def echo(shot: Shot, *, source: str, target: str) -> None:
    """Send a ping."""
    kind = 8 if shot.family == 4 else 128
    packet = packet_builder.icmp_packet(source, target, kind, bytes(4) + shot.data)
    send_bytes("eth0", packet_builder.ip_frame(LAN_A.mac, NEIGHBOUR_MAC, packet))


def ask_neighbour(shot: Shot, *, target: str) -> None:
    """Send a neighbour solicitation."""
    send_bytes("eth0", packet_builder.solicitation(NEIGHBOUR_MAC, NEIGHBOUR6, target))


def _answers(shot: Shot) -> Trace:
    # Answers go to the shot's source port, or quote its token.
    return Trace(token=shot.data, target_port=shot.source_port)


def _give_tunnel(trial: Trial) -> None:
    """Make a device with the tunnel's addresses, as a careless VPN would: in the control there is no service."""
    trial.run("ip", "tuntap", "add", names.TUN_NAME, "mode", "tun", check=True)
    trial.undo("ip", "link", "del", names.TUN_NAME)
    trial.run("ip", "link", "set", names.TUN_NAME, "up")
    trial.run("ip", "addr", "add", f"{names.TUN_IPV4}/24", "dev", names.TUN_NAME)
    trial.run("ip", "-6", "addr", "add", f"{names.TUN_IPV6}/64", "dev", names.TUN_NAME, "nodad")
    # Proxied, as on some machines that forward for containers; otherwise the kernel answers only for IPv4.
    trial.client.set_sysctls(
        {f"ipv6/conf/{LAN_A.interface}/proxy_ndp": 1, f"ipv6/neigh/{LAN_A.interface}/proxy_delay": 0}
    )
    trial.run("ip", "-6", "neigh", "add", "proxy", names.TUN_IPV6, "dev", LAN_A.interface)
    # The card receives the address's multicast group only if something on it has joined that group.
    trial.run("ip", "maddr", "add", "33:33:ff:00:00:01", "dev", LAN_A.interface)


def run(trial: Trial) -> None:
    """From the neighbour, send segments, datagrams, pings and a neighbour solicitation, and run a real arping."""
    neighbour = trial.testbed.world.neighbour
    if trial.mode is Mode.CONTROL:
        _give_tunnel(trial)
    for address, mac in ((LAN_A.client4, LAN_A.mac), (LAN_A.client6, LAN_A.mac)):
        neighbour.run(["ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0"], check=False)
    # So that answers need no neighbour discovery first.
    link = neighbour.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    for address in (NEIGHBOUR4, NEIGHBOUR6):
        trial.client.run(["ip", "neigh", "replace", address, "lladdr", link, "dev", LAN_A.interface], check=False)
    for family, source, target in ((4, NEIGHBOUR4, names.TUN_IPV4), (6, NEIGHBOUR6, names.TUN_IPV6)):
        place: dict[str, Any] = {"source": source, "target": target}
        for name, flags in FLAGS.items():
            if name != "RST":
                trial.fire(segment, by=Actor.NEIGHBOUR, family=family, name=f"{name} ipv{family}", trace=_answers,
                           flags=flags, **place)  # fmt: skip
        trial.fire(datagram, by=Actor.NEIGHBOUR, family=family, name=f"UDP ipv{family}", trace=_answers, **place)
        trial.fire(echo, by=Actor.NEIGHBOUR, family=family, name=f"ping ipv{family}", trace=_answers, **place)
    trial.fire(
        ask_neighbour, by=Actor.NEIGHBOUR, family=6, name="solicitation", target=names.TUN_IPV6,
        trace=lambda _: Trace(advertised=packet_builder.pack_address(names.TUN_IPV6)),
    )  # fmt: skip
    trial.note_shot(
        by=Actor.NEIGHBOUR, name="arping", family=4,
        trace=lambda _: Trace(arp_sender=packet_builder.pack_address(names.TUN_IPV4)),
    )  # fmt: skip
    trial.run("arping", "-c", "1", "-w", "1", "-I", "eth0", names.TUN_IPV4, host=neighbour)


ATTACK = Attack(
    id="A13",
    name="a neighbour probes for the tunnel",
    reference="CVE-2019-14899, MLLVD-CR-24-03",
    summary="Somebody on the same network tries addresses until the computer shows which one it has in the tunnel. "
    "With that address, connections inside the tunnel can be found and disturbed.",
    actors=(Actor.NEIGHBOUR,),
    recognised="by the port that the packet came from or the token that the answer quotes; ARP and neighbour "
    "discovery by the tunnel's address",
    control="the same packets to a machine with such a device and no lock",
    run=run,
    tools=("arping",),
)
