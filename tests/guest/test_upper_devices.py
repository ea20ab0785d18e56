# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The egress guard of a card below other devices, with real ones in a kernel that has them.

What is captured, is captured outside of the guest, where its card's cable ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from psiphon_lab.capture import Capture
from psiphon_lab.frames import Frame
from psiphon_lab.guest.guest import Card, Guest
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import Host, open_host
from psiphon_lab.packet_builder import udp_packet
from psiphon_vpn.policy.guards import build_egress_guard
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.traffic_control import Filter, build_program
from psiphon_vpn.policy.values import InterfaceName

IDENTITY = Identity(uid=LAB_UID, gid=LAB_UID)
MODULES = (
    *NFT_MODULES,
    "sch_ingress",
    "cls_bpf",
    "8021q",
    "bridge",
    "bonding",
    "macvlan",
    "ipvlan",
    "veth",
    "pppoe",
    "ppp_async",
)
CARD, FAR_CARD = "02:50:53:00:0a:10", "02:50:53:00:0a:11"
OWN4, OWN6 = "198.51.100.2", "2001:db8:51::2"
THERE4, THERE6 = "198.51.100.1", "2001:db8:51::1"
ON_LINK = OnLink(
    own_ipv4=(ipaddress.IPv4Address(OWN4),),
    networks_ipv4=(ipaddress.IPv4Network("198.51.100.0/24"),),
    networks_ipv6=(ipaddress.IPv6Network("2001:db8:51::/64"),),
)


NOBODY_THERE4, NOBODY_THERE6 = "198.51.100.77", "2001:db8:51::77"
PORT, TCP_PORT = 4242, 61234

CORE = {"core ipv4", "core ipv6", "core tcp"}
PLUMBING = {"dhcp", "arp", "neighbour discovery"}
OTHERS = {"user ipv4", "user ipv6", "raw"}
PPP_CORE = {"core ipv4", "core tcp"}
PPP_OTHERS = {"user ipv4", "raw", "dhcp"}


_PROGRAM = build_program(Filter.MARKED)
PUT_FILTER = (
    "{ tc qdisc add dev eth0 clsact 2>/dev/null || true; } && tc filter replace dev eth0 egress protocol all pref 1 "
    f"handle 1 bpf direct-action bytecode '{len(_PROGRAM)},{','.join(' '.join(map(str, step)) for step in _PROGRAM)}'"
)
"""The filter behind the guard requires the guard's mark: accepted packets must keep it down to the card."""


@dataclass(frozen=True)
class Upper:
    """A device above the card. make: how, in shell; name: its name; tags: what is before the packet's type outside."""

    make: str
    tags: str = ""
    name: str = "u0"


_BRIDGE = "ip link add b0 type bridge; ip link set eth0 master b0; ip link set b0 up;"
_FILTERING = "ip link add b0 type bridge vlan_filtering 1; ip link set eth0 master b0; bridge vlan add dev eth0 vid 35;"
_BOND = "ip link set eth0 down; ip link add b0 type bond mode active-backup; ip link set eth0 master b0;"
UPPERS = {
    "none": Upper("true", name="eth0"),
    "vlan": Upper("ip link add link eth0 name u0 type vlan id 35", "81000023"),
    "vlan-802.1ad": Upper("ip link add link eth0 name u0 type vlan proto 802.1ad id 35", "88a80023"),
    "qinq": Upper(
        "ip link add link eth0 name o0 type vlan proto 802.1ad id 100; ip link set o0 up;"
        "ip link add link o0 name u0 type vlan id 35",
        "88a8006481000023",
    ),
    "qinq-802.1q": Upper(
        "ip link add link eth0 name o0 type vlan id 100; ip link set o0 up;ip link add link o0 name u0 type vlan id 35",
        "8100006481000023",
    ),
    "vlan-on-bridge": Upper(f"{_BRIDGE} ip link add link b0 name u0 type vlan id 35", "81000023"),
    "bridge-with-vlans": Upper(f"{_FILTERING} bridge vlan add dev b0 vid 35 self pvid untagged", "81000023", "b0"),
    "vlan-on-bond": Upper(f"{_BOND} ip link set b0 up; ip link add link b0 name u0 type vlan id 35", "81000023"),
    "macvlan": Upper("ip link add link eth0 name u0 type macvlan mode bridge"),
    "ipvlan": Upper("ip link add link eth0 name u0 type ipvlan mode l2"),
}

SENDER = """
import contextlib, os, socket, sys
name, core = sys.argv[1], int(sys.argv[2])
dhcp, raw = (bytes.fromhex(word) for word in sys.argv[3:5])
def send(who, uid):
    if os.fork() == 0:
        os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        for family, there, nobody in ((socket.AF_INET, "198.51.100.1", "198.51.100.77"),
                                      (socket.AF_INET6, "2001:db8:51::1", "2001:db8:51::77")):
            with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                version = "ipv4" if family == socket.AF_INET else "ipv6"
                sock.sendto(f"[{who} {version}]".encode(), (there, 4242))
                sock.sendto(b"whoever", (nobody, 4242))
        if uid == core:
            with socket.socket() as sock:
                sock.bind(("198.51.100.2", 61234)); sock.setblocking(False); sock.connect_ex(("198.51.100.1", 4242))
        os._exit(0)
    os.wait()
send("core", core)
send("user", 1000)
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
    sock.sendto(dhcp, (name, 0x0800, 0, 0, bytes([255] * 6)))
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
    for protocol in (0x0800, 0x8100, 0x8864):
        with contextlib.suppress(OSError): sock.sendto(raw, ("eth0", protocol))
"""


@dataclass(frozen=True)
class Bench:
    """A guest that is on, and the capture of its card's cable."""

    guest: Guest
    capture: Capture
    kernel: Kernel


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("guest")
    with contextlib.ExitStack() as stack:
        outside: Host = stack.enter_context(open_host("outside", directory=directory / "outside"))
        cards = [Card(tap="wire", mac=CARD), Card(tap="far", mac=FAR_CARD)]
        guest = stack.enter_context(Guest(outside, kernel, cards=cards, modules=MODULES, directory=directory))
        outside.run(["ip", "link", "add", "switch", "type", "bridge"])
        outside.run(["ip", "link", "set", "switch", "up"])
        for card in cards:
            outside.run(["ip", "link", "set", card.tap, "master", "switch", "up"])
        guest.run("mkdir -p /run/netns /etc/ppp; ip netns add far; ip link set eth1 netns far")
        capture = stack.enter_context(Capture(outside, "wire", wire="wire"))
        (guest.exchange / "sender.py").write_text(SENDER)
        guard = build_egress_guard(IDENTITY, (InterfaceName("eth0"),), on_link=ON_LINK)
        assert guard is not None
        (guest.exchange / "guard.nft").write_text(guard.render_replacement())
        yield Bench(guest, capture, kernel)


_END_LINE = """
    kill $(cat /run/client.pid)
    for turn in $(seq 100); do ip link show dev ppp7 >/dev/null 2>&1 || break; sleep 0.1; done
    kill $(cat /run/server.pid)
    ip netns exec far ip link del v7
"""


@contextlib.contextmanager
def made(bench: Bench, script: str, *, before: str = "") -> Iterator[None]:
    """Run a script that makes devices above eth0, and put away afterwards what is there. before: what to end first."""
    try:
        bench.guest.run(f"set -e\nip link set eth0 up\n{script}")
        yield
    finally:
        bench.guest.run(
            f"""
            {before}
            nft flush ruleset
            tc qdisc del dev eth0 clsact
            for name in u0 o0 b0; do ip link del $name; done
            ip addr flush dev eth0; ip neigh flush dev eth0 nud all; ip link set eth0 down
            """,
            check=False,
        )


def send_all(bench: Bench, name: str, head: str, *, guarded: bool) -> set[str]:
    """Send everything over a device once; what was seen outside. head: a raw frame's, from its type on, as hex."""
    dhcp = udp_packet("0.0.0.0", "255.255.255.255", (68, 67), b"[dhcp]")
    packet = udp_packet(OWN4, THERE4, (PORT, PORT), b"[raw]")
    raw = (FAR_CARD + CARD).replace(":", "") + head + packet.hex()
    mark = bench.capture.mark()
    load = f"nft -f /exchange/guard.nft && {PUT_FILTER}" if guarded else "true"
    bench.guest.run(f"{load} && python3 -S /exchange/sender.py {name} {LAB_UID} {dhcp.hex()} {raw}")
    tags = bytes.fromhex(head.partition("0800")[0].partition("8864")[0])
    return read_labels(bench.capture.frames_since(mark, settle=0.3), tags)


def read_labels(frames: list[Frame], tags: bytes) -> set[str]:
    """Which of what was sent is among the frames, each with its tags."""
    labels = set()
    for frame in frames:
        data = frame.data
        if not frame.from_client or data[12 : 12 + len(tags)] != tags:
            continue
        kind, packet = data[12 + len(tags) : 14 + len(tags)], data[14 + len(tags) :]
        if kind == b"\x88\x64":  # a session's head of six bytes, and the protocol inside
            kind, packet = {b"\x00\x21": b"\x08\x00"}.get(packet[6:8], b""), packet[8:]
        if kind in (b"\x08\x00", b"\x86\xdd"):
            labels |= {found[1].decode() for found in re.finditer(rb"\[([a-z0-9 ]+)\]", packet)}
        if kind == b"\x08\x00" and packet[9] == 6 and packet[20:22] == TCP_PORT.to_bytes(2, "big"):
            labels.add("core tcp")
        if kind == b"\x08\x06" and packet[24:28] == ipaddress.ip_address(NOBODY_THERE4).packed:
            labels.add("arp")
        if (
            kind == b"\x86\xdd"
            and packet[40:41] == b"\x87"
            and packet[48:64] == ipaddress.ip_address(NOBODY_THERE6).packed
        ):
            labels.add("neighbour discovery")
    return labels


@pytest.mark.requirement("R5", "R7", "B4")
@pytest.mark.parametrize("name", UPPERS)
def test_a_card_passes_packets_of_an_upper_device_only_from_psiphon_user(bench: Bench, name: str) -> None:
    upper = UPPERS[name]
    make = f"""
        {upper.make}
        ip link set {upper.name} up
        ip addr add {OWN4}/24 dev {upper.name}
        ip addr add {OWN6}/64 dev {upper.name} nodad
        ip neigh replace {THERE4} lladdr {FAR_CARD} dev {upper.name}
        ip neigh replace {THERE6} lladdr {FAR_CARD} dev {upper.name}
    """
    with made(bench, make):
        seen = send_all(bench, upper.name, f"{upper.tags}0800", guarded=False)
        assert seen == CORE | PLUMBING | OTHERS, "without a guard everything is seen"
        bench.guest.run("ip neigh flush nud failed; ip neigh flush nud incomplete", check=False)
        assert send_all(bench, upper.name, f"{upper.tags}0800", guarded=True) == CORE | PLUMBING


@pytest.mark.requirement("R5", "B4")
@pytest.mark.skipif(shutil.which("pppoe-server") is None, reason="pppoe-server is not installed")
@pytest.mark.parametrize("tags", ["", "81000007"], ids=["line", "line-in-a-vlan"])
def test_a_pppoe_line_comes_up_under_the_guard_and_carries_only_psiphon_users_packets(bench: Bench, tags: str) -> None:
    if tags and bench.kernel.version.startswith("6.1."):
        # Tried: without the guard the line comes up; with it pppd's first frame is dropped (send(2) fails with
        # ENOBUFS).
        pytest.skip("a known limit: Linux 6.1 shows rules no link-layer header of what pppd sends by this VLAN device")
    name, far = ("o0", "v7") if tags else ("eth0", "eth1")
    vlan = (
        "ip link add link eth0 name o0 type vlan id 7; ip link set o0 up;"
        "ip netns exec far sh -c 'ip link add link eth1 name v7 type vlan id 7; ip link set v7 up'"
    )
    (bench.guest.exchange / "ppp.options").write_text("noauth\n")
    script = f"""
        touch /etc/ppp/options /etc/ppp/pap-secrets /etc/ppp/chap-secrets
        ip netns exec far ip link set eth1 up
        {vlan if tags else "true"}
        nft -f /exchange/guard.nft
        ip netns exec far pppoe-server -F -I {far} -L {THERE4} -R {OWN4} -N 1 -O /exchange/ppp.options >/dev/null 2>&1 &
        echo $! >/run/server.pid
        pppd plugin pppoe.so {name} unit 7 noauth nodetach noipv6 nodefaultroute >/exchange/pppd.log 2>&1 &
        echo $! >/run/client.pid
        for turn in $(seq 40); do ip -4 addr show dev ppp7 2>/dev/null | grep -q {OWN4} && exit 0; sleep 0.5; done
        cat /exchange/pppd.log; ip link; nft list table netdev psiphon_egress | grep counter; exit 1
    """
    with made(bench, script, before=_END_LINE):
        assert send_all(bench, "ppp7", f"{tags}88641100000100230021", guarded=True) == PPP_CORE
        bench.guest.run("nft flush ruleset; tc qdisc del dev eth0 clsact")
        assert send_all(bench, "ppp7", f"{tags}88641100000100230021", guarded=False) == PPP_CORE | PPP_OTHERS
