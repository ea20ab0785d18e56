# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The provider's line for a guest with the service: a VLAN on its card, or PPPoE over it, and the hosts outside.

The far end is in a network namespace of the guest, since this machine's kernel may have neither VLANs nor PPP. What is
captured, is captured outside of the guest, where the cables of its cards end.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.guest.service import GuestService

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.capture import Capture
from psiphon_lab.frames import Frame
from psiphon_lab.guest.guest import Card, Guest
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.judge import Evidence, judge_frames, world_evidence
from psiphon_lab.probe import ProbeSpec, probe_specs
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.world import World

OUT = "out"
MODULES = (*NFT_MODULES, "nft_socket", "sch_ingress", "cls_bpf", "8021q", "bridge", "veth", "pppoe", "ppp_async")
CARDS = {"wire": LAN_A.mac, "far": "02:50:53:00:0f:02", "line": "02:50:53:00:0f:03", OUT: "02:50:53:00:0f:04"}
"""The client's card, the trunk's far end, that end's way to the provider, and the client's second card."""
LINE4, FAR4 = "192.0.2.12", "192.0.2.11"
TAG = bytes.fromhex("81000023")
FLOW, CALL = "tunnel flow", "tunnel call"
PLUMBING = {"arp", "nd", "mld"}

# The access network: VLAN 35 is the provider's LAN; a PPPoE line, without a tag, leads there by an address of its own.
FAR = f"""
    set -e
    sysctl -qw net.ipv4.ping_group_range='0 2147483647'
    mkdir -p /run/netns /etc/ppp
    touch /etc/ppp/options /etc/ppp/pap-secrets /etc/ppp/chap-secrets
    ip netns add far
    ip link set eth1 netns far
    ip link set eth2 netns far
    ip link set eth3 netns far
    ip netns exec far sh -ec '
        sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1
        ip link add link eth1 name v1 type vlan id 35
        ip link add b1 type bridge mcast_snooping 0
        ip link set v1 master b1
        ip link set eth2 master b1
        for name in lo eth1 eth2 v1 b1; do ip link set $name up; done
        ip address add {FAR4}/25 dev b1
        ip route add default via {LAN_A.router4}
        sysctl -qw net.ipv4.conf.b1.proxy_arp=1'
    ip link set eth0 up
"""
VLAN = f"""
    set -e
    ip link add link eth0 name u0 type vlan id 35
    ip link set u0 up
    ip address add {LAN_A.client4}/{LAN_A.prefix4} dev u0
    ip address add {LAN_A.client6}/{LAN_A.prefix6} dev u0 nodad
    ip route add default via {LAN_A.router4} dev u0 proto dhcp metric 100
    ip -6 route add default via {LAN_A.router6} dev u0 proto ra metric 100
"""
NO_VLAN = "ip link del u0"
PPPOE = f"""
    ip netns exec far pppoe-server -F -I eth1 -L {FAR4} -R {LINE4} -N 1 -O /exchange/ppp.options \
        >/dev/null 2>&1 &
    echo $! >/run/server.pid
    pppd plugin pppoe.so eth0 unit 7 noauth nodetach noipv6 defaultroute >/exchange/pppd.log 2>&1 &
    echo $! >/run/client.pid
    for turn in $(seq 100); do ip route show default | grep -q ppp7 && exit 0; sleep 0.5; done
    cat /exchange/pppd.log; ip link; nft list table netdev psiphon_egress | grep counter; exit 1
"""
NO_PPPOE = """
    kill $(cat /run/client.pid)
    for turn in $(seq 100); do ip link show dev ppp7 >/dev/null 2>&1 || break; sleep 0.1; done
    kill $(cat /run/server.pid)
"""


@dataclass(frozen=True)
class Bench:
    """A guest that is on, and the captures of its cards' cables."""

    guest: Guest
    server: ServerProcess
    wire: Capture
    out: Capture
    service: GuestService

    def evidence(self) -> Evidence:
        return world_evidence(self.server.read_flows(), core_ports=plan.CORE_PORTS)

    def probe(self, *, salt: int, interface: str) -> tuple[list[ProbeSpec], dict[str, str]]:
        """Both batteries: what was tried, and what each was answered."""
        specs: list[ProbeSpec] = []
        answers: dict[str, str] = {}
        for number, (label, uid) in enumerate((("root", 0), ("user", NOBODY))):
            battery = probe_specs(salt=2 * salt + number, interface=interface, label=label)
            answers |= self.service.run_probes(battery, uid=uid)
            specs += battery
        return specs, answers


@contextlib.contextmanager
def uplink(bench: Bench, make: str, end: str) -> Iterator[None]:
    """Have an uplink while the block runs."""
    try:
        bench.guest.run(make)
        yield
    finally:
        bench.guest.run(end, check=False)


@contextlib.contextmanager
def open_bench(kernel: Kernel, directory: Path) -> Iterator[Bench]:
    """A guest with the far end of its line, without a lock and without an uplink."""
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        server = stack.enter_context(run_server(world))
        client = world.client
        client.set_sysctls({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        client.run(["ip", "address", "flush", "dev", LAN_A.interface])
        client.run(["ip", "link", "set", LAN_A.interface, "address", "02:50:53:00:0f:01"])
        for bridge in ("trunk", "switch"):
            client.run(["ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0"])
            client.run(["ip", "link", "set", bridge, "up"])
        client.run(["ip", "link", "set", LAN_A.interface, "master", "switch"])
        cards = [Card(tap=tap, mac=mac) for tap, mac in CARDS.items()]
        guest = stack.enter_context(Guest(client, kernel, cards=cards, modules=MODULES, directory=directory))
        for tap, bridge in (("wire", "trunk"), ("far", "trunk"), ("line", "switch")):
            client.run(["ip", "link", "set", tap, "master", bridge, "up"])
        client.run(["ip", "link", "set", OUT, "up"])
        wire = stack.enter_context(Capture(client, "wire", wire=LAN_A.name))
        out = stack.enter_context(Capture(client, OUT, wire=OUT))
        (guest.exchange / "ppp.options").write_text("noauth\n")
        guest.run(FAR)
        service = GuestService(guest, entry=server.entry, settings={"ipv6_probe": [plan.INTERNET6]})
        yield Bench(guest, server, wire, out, service)


def untag(frames: Iterable[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Those of the VLAN, without their tag, and all others."""
    inside: list[Frame] = []
    others: list[Frame] = []
    for frame in frames:
        if frame.data[12:16] == TAG:
            inside.append(replace(frame, data=frame.data[:12] + frame.data[16:]))
        else:
            others.append(frame)
    return inside, others


def open_sessions(frames: Iterable[Frame]) -> tuple[list[Frame], list[Frame], Counter[str]]:
    """What PPPoE sessions carry, as frames; all others; how many frames keep the line itself (RFC 2516, RFC 1661)."""
    inside: list[Frame] = []
    others: list[Frame] = []
    line: Counter[str] = Counter()
    for frame in frames:
        data, kind = frame.data, frame.data[12:14]
        inner = {b"\x00\x21": b"\x08\x00", b"\x00\x57": b"\x86\xdd"}.get(data[20:22])
        if kind == b"\x88\x64" and inner is not None:
            inside.append(replace(frame, data=data[:12] + inner + data[22:]))
        elif kind == b"\x88\x63" or (kind == b"\x88\x64" and data[20] in (0x80, 0xC0)):
            line.update(["line"] if frame.from_client else [])
        else:
            others.append(frame)
    return inside, others, line


def judge(frames: Iterable[Frame], evidence: Evidence) -> Counter[str]:
    """How many frames that came out of the guest are innocent of which kind. There must be no leak."""
    verdicts = judge_frames(frames, evidence)
    leaks = [verdict.text for verdict in verdicts if verdict.is_leak]
    assert not leaks, leaks[:10]
    return Counter(str(verdict.innocent) for verdict in verdicts)


def check_evidence(capture: Capture) -> None:
    assert not capture.dropped
    assert capture.alive
