# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sends every kind of traffic against each layer of the lock alone, without the others.

`layers_table` has the expected results. Frames outside decide, for cells that say "stops" and for empty ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.frames import Frame
from psiphon_lab.layers_table import (
    ANSWERS,
    ARP,
    ARP_SETTINGS,
    BOUND,
    CONTAINER,
    FILTERS,
    FRAME,
    MACVLAN,
    MOVED,
    PLAIN,
    POSTROUTING,
    RAW,
    REDIRECTED,
    ROUTING,
    STRAYS,
    TRAFFIC,
)
from psiphon_lab.leaktest.model import Trace
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import Host
from psiphon_lab.probe import ICMP, ProbeSpec, probe_specs
from psiphon_lab.probe_runner import NOBODY, RunningProbes, start_probes
from psiphon_lab.service_adapter import names
from psiphon_lab.service_adapter.single_layers import (
    ARP_SYSCTLS,
    SingleLayers,
    add_tun_addresses,
    make_tun,
    remove_filters,
)
from psiphon_lab.tun_device import attach_tun
from psiphon_lab.world import World

WIRES = (LAN_A.interface, LAN_B.interface)
SO_BINDTODEVICE = 25
LIMIT = 0.6
"""How long a probe waits for an answer, seconds. Only what it sends matters."""
SETTLE = 0.25
OPEN_PORT, CLOSED_PORT, REDIRECTED_PORT, DISCARD, ECHO = 8099, 8098, 8097, 9, 7
CHILD = {4: "192.0.2.78", 6: "2001:db8:a::78"}
CHILD_MAC = "02:50:53:00:0c:02"
STRAY = {4: "192.0.2.10", 6: "2001:db8:a::10"}
INTERNET = {4: plan.INTERNET4, 6: plan.INTERNET6}
HOST_ADDRESS = {4: LAN_A.client4, 6: LAN_A.client6}
NEIGHBOUR = {4: plan.NEIGHBOUR4, 6: plan.NEIGHBOUR6}
FAMILIES = (4, 6)


@dataclass(frozen=True)
class Shot:
    """One attempt, and how to recognise its frames. into_tunnel: they are expected in the TUN, not on a wire."""

    name: str
    trace: Trace
    into_tunnel: bool = False


class Scene:
    """A world whose client has one layer at a time, or none, and the traffic that is sent against it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client: Host = world.client
        self._salt = 0
        self.client.call(lambda: make_tun(LAB_UID))
        self.tun = int(self.client.run(["cat", f"/sys/class/net/{names.TUN_NAME}/ifindex"]).stdout)
        self._tun_reader = self.client.call(lambda: attach_tun(names.TUN_NAME))
        self.client.call(lambda: add_tun_addresses(self.tun))
        self._layers = SingleLayers(uid=LAB_UID, wires=WIRES, tun_index=self.tun)
        # So that a packet that is bound to the TUN is routed into it in any case.
        for option in ("-4", "-6"):
            self.client.run(["ip", option, "route", "add", "default", "dev", names.TUN_NAME, "metric", "9000"])
        self._listeners = [self.client.call(partial(_listen, family)) for family in FAMILIES]
        self._link = self.world.neighbour.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
        for family in FAMILIES:
            # So that answers need no neighbour discovery first.
            self.world.neighbour.run(
                ["ip", "neigh", "replace", HOST_ADDRESS[family], "lladdr", LAN_A.mac, "dev", "eth0"]
            )
            self.client.run(["ip", "neigh", "replace", NEIGHBOUR[family], "lladdr", self._link, "dev", LAN_A.interface])
        self._add_child()

    def close(self) -> None:
        """Close sockets and the TUN; the rest ends with the world."""
        for listener in self._listeners:
            listener.close()
        with contextlib.suppress(OSError):
            os.close(self._tun_reader)

    def _add_child(self) -> None:
        container, pid = self.world.container, str(self.world.container.pid)
        self.client.run(["ip", "link", "add", "mv0", "link", LAN_A.interface, "address", CHILD_MAC, "type", "macvlan"])
        self.client.run(["ip", "link", "set", "mv0", "netns", pid])
        # The laboratory makes its frames. Otherwise the container's kernel would send reports of groups at any time.
        container.set_sysctls({"ipv6/conf/mv0/disable_ipv6": "1"})
        container.run(["ip", "link", "set", "mv0", "up"])

    # -- layers -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def layer(self, name: str | None) -> Iterator[None]:
        """Have one layer alone; None: no layer, for the positive control."""
        self.client.run(["nft", "flush", "ruleset"])
        try:
            if name == ROUTING:
                self.client.call(self._layers.add_routing)
            elif name == ARP_SETTINGS:
                self.client.set_sysctls(ARP_SYSCTLS)
            elif name == TRAFFIC:
                self._load(self._layers.render_marking_guard())
                self.client.call(self._layers.add_filters)
            elif name is not None:
                self._load(self._layers.render(name))
            yield
        finally:
            self.client.run(["nft", "flush", "ruleset"])
            self.client.set_sysctls(dict.fromkeys(ARP_SYSCTLS, "0"))
            self.client.call(remove_filters)
            # So that the kernel stops looking for neighbours for packets that were sent here.
            self.client.run(["ip", "neigh", "flush", "nud", "incomplete", "dev", LAN_A.interface], check=False)
            if name == ROUTING:
                for version, priority in self._layers.list_rules():
                    self.client.run(["ip", f"-{version}", "rule", "del", "priority", str(priority)])

    def _load(self, rules: str) -> None:
        self.client.run(["nft", "-f", "-"], input=rules)

    # -- traffic ------------------------------------------------------------------------------------------------------

    def find_seen(
        self, kinds: Collection[str], layer: str | None
    ) -> tuple[dict[str, list[str]], set[str], list[Frame]]:
        """Fire all shots of some kinds against a layer at once.

        Returns:
            The names of the shots by kind, the names of those that were seen outside, and all frames from the client
            while the layer was there.
        """
        mark = self.world.mark()
        self._drain_tunnel()
        ways: dict[str, Callable[[], list[Shot]]] = {
            RAW: self._send_raw,
            FRAME: self._send_frames,
            MACVLAN: self._send_child_frames,
            CONTAINER: self._send_from_container,
            ANSWERS: self._ask_from_outside,
            MOVED: self._send_moved,
            REDIRECTED: self._send_redirected,
            ARP: self._ask_for_tunnel,
            STRAYS: partial(self._send_strays, layer),
        }
        running, shots = self._start_probes(kinds)
        for kind in (kind for kind in ways if kind in kinds and kind != STRAYS):
            shots[kind] = ways[kind]()
        for probes in running:
            probes.collect()
        time.sleep(SETTLE)
        frames = self.world.frames_since(mark)
        # The last one loads other rules. Frames from then on say nothing about the layer: between two loads the kernel
        # may repeat its answer to a connection from outside.
        if STRAYS in kinds:
            shots[STRAYS] = ways[STRAYS]()
            time.sleep(SETTLE)
        inside = self._drain_tunnel()

        def came_through(shot: Shot) -> bool:
            if shot.into_tunnel:
                return any(shot.trace.token in packet for packet in inside)
            return any(shot.trace.matches(frame) for frame in frames)

        seen = {shot.name for group in shots.values() for shot in group if came_through(shot)}
        return {kind: [shot.name for shot in group] for kind, group in shots.items()}, seen, frames

    def _number(self) -> int:
        self._salt += 1
        return self._salt

    def _shot(self, what: str, family: int, *, tunnel: bool = False, answers: bool = False) -> tuple[Shot, bytes, int]:
        """A shot with a unique token and source port."""
        number = self._number()
        token, port = f"alone{number:07d}".encode(), 31_000 + number % 1000
        trace = Trace(token=token, target_port=port) if answers else Trace(token=token, source_port=port)
        return Shot(f"{what} ipv{family}", trace, tunnel), token, port

    def _start_probes(self, kinds: Collection[str]) -> tuple[list[RunningProbes], dict[str, list[Shot]]]:
        """Start probes as root and as a user, unbound and bound to the card."""
        wanted = {kind: bound for kind, bound in ((PLAIN, False), (BOUND, True)) if kind in kinds}
        shots: dict[str, list[Shot]] = {kind: [] for kind in wanted}
        running = []
        for label, uid in (("root", 0), ("user", NOBODY)) if wanted else ():
            every = probe_specs(salt=self._number() % 300, interface=LAN_A.interface, label=label)
            specs = [spec for spec in every if bool(spec.interface) in wanted.values()]
            running.append(start_probes(self.client, specs, uid=uid, limit=LIMIT))
            for kind, bound in wanted.items():
                shots[kind] += [Shot(spec.id, _trace(spec)) for spec in specs if bool(spec.interface) == bound]
        return running, shots

    def _send_raw(self) -> list[Shot]:
        """Send whole packets as root, with the machine's own and with another source."""
        shots = []
        for family in FAMILIES:
            for what, source in (("own source", HOST_ADDRESS[family]), ("other source", CHILD[family])):
                shot, token, port = self._shot(what, family)
                packet = packet_builder.udp_packet(source, INTERNET[family], (port, DISCARD), token)
                _quietly(self.client, partial(_send_packet, family, packet))
                shots.append(shot)
        return shots

    def _frame(self, family: int, mac: str, source: str, token: bytes, port: int) -> bytes:
        packet = packet_builder.udp_packet(source, INTERNET[family], (port, DISCARD), token)
        return packet_builder.ip_frame(packet_builder.BROADCAST_MAC, mac, packet)

    def _send_frames(self) -> list[Shot]:
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("frame", family)
            data = self._frame(family, LAN_A.mac, HOST_ADDRESS[family], token, port)
            _quietly(self.client, partial(_send_frame, LAN_A.interface, data))
            shots.append(shot)
        return shots

    def _send_child_frames(self) -> list[Shot]:
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("child", family)
            data = self._frame(family, CHILD_MAC, CHILD[family], token, port)
            _quietly(self.world.container, partial(_send_frame, "mv0", data))
            shots.append(shot)
        return shots

    def _send_from_container(self) -> list[Shot]:
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("container", family)
            _quietly(self.world.container, partial(_send_datagram, family, INTERNET[family], ECHO, token, port))
            shots.append(shot)
        return shots

    def _ask_from_outside(self) -> list[Shot]:
        """Send packets from a neighbour to an open port and closed ones, and a ping. Answers go to the shot's port."""
        shots = []
        for family in FAMILIES:
            source, target = NEIGHBOUR[family], HOST_ADDRESS[family]
            for what in ("open TCP port", "closed TCP port", "closed UDP port", "ping"):
                shot, token, port = self._shot(what, family, answers=True)
                if "TCP" in what:
                    there = OPEN_PORT if what.startswith("open") else CLOSED_PORT
                    question = packet_builder.tcp_packet(source, target, (port, there), packet_builder.SYN)
                elif what == "ping":
                    question = packet_builder.icmp_packet(source, target, 128 if family == 6 else 8, bytes(4) + token)
                else:
                    question = packet_builder.udp_packet(source, target, (port, CLOSED_PORT), token)
                packet = packet_builder.ip_frame(LAN_A.mac, self._link, question)
                _quietly(self.world.neighbour, partial(_send_frame, "eth0", packet))
                shots.append(shot)
        return shots

    def _send_moved(self) -> list[Shot]:
        """Send packets that are local in `output`, and that another program's DNAT then sends to the internet."""
        rules = f"ip daddr {HOST_ADDRESS[4]} udp dport 4444 dnat ip to {INTERNET[4]}:{ECHO}\n"
        rules += f"ip6 daddr {HOST_ADDRESS[6]} udp dport 4444 dnat ip6 to [{INTERNET[6]}]:{ECHO}\n"
        hook = "type nat hook output priority 50; policy accept;"
        self.client.run(["nft", "-f", "-"], input=f"table inet stranger {{\nchain moves {{\n{hook}\n{rules}}}\n}}\n")
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("moved", family)
            _quietly(self.client, partial(_send_datagram, family, HOST_ADDRESS[family], 4444, token, port))
            shots.append(shot)
        self.client.run(["nft", "delete", "table", "inet", "stranger"])
        return shots

    def _send_redirected(self) -> list[Shot]:
        """Have traffic control redirect packets between local programs, and of a container, to the card.

        One port only, because the other kinds are sent at the same time.
        """
        for device, where in (("lo", "egress"), ("ctr0", "ingress")):
            self.client.run(["tc", "qdisc", "add", "dev", device, "clsact"])
            for protocol, words, priority in (("ip", "ip", "1"), ("ipv6", "ip6", "2")):
                self.client.run(["tc", "filter", "add", "dev", device, where, "protocol", protocol, "prio", priority,
                                 "u32", "match", words, "dport", str(REDIRECTED_PORT), "0xffff", "action", "mirred",
                                 "egress", "redirect", "dev", LAN_A.interface])  # fmt: skip
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("redirected from lo", family)
            own = "127.0.0.1" if family == 4 else "::1"
            _quietly(self.client, partial(_send_datagram, family, own, REDIRECTED_PORT, token, port))
            shots.append(shot)
            shot, token, port = self._shot("redirected from a container", family)
            source = plan.CONTAINER4 if family == 4 else plan.CONTAINER6
            packet = packet_builder.udp_packet(source, INTERNET[family], (port, REDIRECTED_PORT), token)
            frame = packet_builder.ip_frame(packet_builder.BROADCAST_MAC, CHILD_MAC, packet)
            _quietly(self.world.container, partial(_send_frame, "eth0", frame))
            shots.append(shot)
        for device in ("lo", "ctr0"):
            self.client.run(["tc", "qdisc", "del", "dev", device, "clsact"])
        return shots

    def _ask_for_tunnel(self) -> list[Shot]:
        request = packet_builder.arp_request(self._link, plan.NEIGHBOUR4, names.TUN_IPV4)
        _quietly(self.world.neighbour, partial(_send_frame, "eth0", request))
        return [Shot("who has the tunnel's address", Trace(arp_sender=packet_builder.pack_address(names.TUN_IPV4)))]

    def _send_strays(self, layer: str | None) -> list[Shot]:
        """Send into the open TUN with another source: the server would then send all its answers there."""
        if layer in {FILTERS, POSTROUTING}:
            self.client.run(["nft", "flush", "ruleset"])
            self._load(self._layers.render(layer, is_open=True))
            for name in (names.LEASE_SET, names.LEASE_SET_IPV6):
                element = f"add element inet {names.BASE_TABLE} {name} {{ {names.TUN_NAME} timeout 60s }}"
                self.client.run(["nft", element])
        shots = []
        for family in FAMILIES:
            shot, token, port = self._shot("stray", family, tunnel=True)
            packet = packet_builder.udp_packet(STRAY[family], INTERNET[family], (port, DISCARD), token)
            _quietly(self.client, partial(_send_packet, family, packet, names.TUN_NAME))
            shots.append(shot)
        return shots

    def _drain_tunnel(self) -> list[bytes]:
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(os.read(self._tun_reader, 65536))
        return packets


def _trace(spec: ProbeSpec) -> Trace:
    return Trace(token=spec.token.encode(), source_port=0 if spec.kind == ICMP else spec.source_port)


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _listen(version: int) -> socket.socket:
    listener = socket.socket(_family(version), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST_ADDRESS[version], OPEN_PORT))
    listener.listen()
    return listener


def _quietly(host: Host, send: Callable[[], None]) -> None:
    """Try to send something on a host. A refusal is a valid outcome."""

    def inside() -> None:
        with contextlib.suppress(OSError):
            send()

    host.call(inside)


def _send_packet(version: int, packet: bytes, device: str = "") -> None:
    """Send a whole IP packet by a raw socket (raw(7)); with IPPROTO_RAW the header of IPv6 is included too."""
    with socket.socket(_family(version), socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode() + b"\0")
        sock.sendto(packet, (INTERNET[version], 0))


def _send_frame(device: str, data: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.sendto(data, (device, int.from_bytes(data[12:14], "big")))


def _send_datagram(version: int, target: str, port: int, token: bytes, source_port: int) -> None:
    with socket.socket(_family(version), socket.SOCK_DGRAM) as sock:
        sock.bind(("", source_port))
        sock.sendto(token, (target, port))
