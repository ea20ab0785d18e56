# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What traffic control moves past all tables, and how much of it the filter at the card's own traffic control stops.

Here tc(8) installs the filter's program, to try it beside other filters and without its guards;
`tests/integration/test_traffic_service.py` shows how the service keeps it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.layers_alone import FAMILIES, HOST_ADDRESS, INTERNET, SO_BINDTODEVICE, Scene
from psiphon_lab.machine import LAB_UID
from psiphon_lab.world import World
from psiphon_vpn.linux.tcx import count_programs
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Identity, Links, Policy, State
from psiphon_vpn.policy.onlink import NOTHING, OnLink
from psiphon_vpn.policy.traffic_control import Filter, Instruction, build_program
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.lab]

WIRE = LAN_A.interface
IDENTITY = Identity(uid=LAB_UID, gid=LAB_UID)
WIRES = parse_names(LAN_A.interface, LAN_B.interface)
TIMES = 20
ECHO, SO_MARK = 7, 36
MARK = names.ACCEPTED_BIT
SETS_MARK = f" meta mark set meta mark or {MARK:#x} accept"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
OTHER = {4: plan.CONTAINER_GATEWAY4, 6: plan.CONTAINER_GATEWAY6}
GATEWAY = {4: LAN_A.router4, 6: LAN_A.router6}
SOURCES, MARKED = Filter.SOURCES, Filter.MARKED
CORE, TUNNEL, CONTAINER = "core", "mirror of the TUN", "redirect of a container"
LOOP, SELF, PAIR = "redirect of lo", "redirect of lo, one address to itself", "redirect of lo, between two addresses"
TUNNEL_PROTOCOLS = (TUNNEL, LOOP, SELF, PAIR, CONTAINER)
_OK = 0
"""TC_ACT_OK of linux/pkt_cls.h: accept, without running further filters."""
ACCEPT_ALL: tuple[Instruction, ...] = ((0x06, 0, 0, _OK),)


class Bench:
    """An open machine with every table of the lock, for shots through its traffic control."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, world.client
        self.scene = Scene(world)
        self.number = 0
        self.know_neighbours()

    def know_neighbours(self) -> None:
        """Add all neighbour entries, so that no test depends on neighbour discovery under the lock."""
        world = self.world
        router = world.provider_a.run(["cat", "/sys/class/net/lan/address"]).stdout.strip()
        inside = self.client.run(["cat", "/sys/class/net/ctr0/address"]).stdout.strip()
        for family in FAMILIES:
            self.client.run(["ip", "neigh", "replace", GATEWAY[family], "lladdr", router, "dev", WIRE])
            option = ["ip", f"-{family}", "route", "show", "default"]
            gateway = world.container.run(option).stdout.split()[2]
            world.container.run(["ip", "neigh", "replace", gateway, "lladdr", inside, "dev", "eth0"])

    def lock(self, *, marking: bool = True, on_link: OnLink = NOTHING) -> None:
        """Load every table. marking: whether the guards mark what they accept. on_link: addresses that they know."""
        self.client.run(["nft", "flush", "ruleset"])
        links = Links(tun_index=self.scene.tun, uplink=WIRES[0], wires=WIRES, versions=FAMILIES, on_link=on_link)
        policy = Policy(state=State.OPEN, identity=IDENTITY, links=links)
        egress = build_egress_guard(IDENTITY, WIRES, on_link=on_link)
        assert egress is not None
        text = "".join(table.render(flags="") for table in (egress, build_frame_guard(IDENTITY, WIRES)))
        assert SETS_MARK in text
        text = text if marking else text.replace(SETS_MARK, " accept")
        for table in (build_base_table(policy), build_wire_guard(IDENTITY), build_arp_table()):
            text += table.render(flags="")
        self.client.run(["nft", "-f", "-"], input=text)
        for name in (names.LEASE_SET, names.LEASE_SET_IPV6):
            element = f"add element inet {names.BASE_TABLE} {name} {{ {names.TUN_NAME} timeout 600s }}"
            self.client.run(["nft", element])

    @contextlib.contextmanager
    def redirect(self, device: str, where: str, what: str) -> Iterator[None]:
        """Mirror or redirect everything that passes a device's traffic control to the card."""
        self.client.run(["tc", "qdisc", "add", "dev", device, "clsact"])
        for protocol, priority in (("ip", "1"), ("ipv6", "2")):
            self.client.run(["tc", "filter", "add", "dev", device, where, "protocol", protocol, "prio", priority, "u32",
                             "match", "u32", "0", "0", "action", "mirred", "egress", what, "dev", WIRE])  # fmt: skip
        try:
            yield
        finally:
            self.client.run(["tc", "qdisc", "del", "dev", device, "clsact"])

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Add a place for filters at the card's traffic control for the block."""
        self.client.run(["tc", "qdisc", "add", "dev", WIRE, "clsact"])
        try:
            yield
        finally:
            self.client.run(["tc", "qdisc", "del", "dev", WIRE, "clsact"], check=False)

    def put(self, program: tuple[Instruction, ...], *, before: int) -> None:
        """Put a filter there. before: its preference; the lowest comes first (tc(8))."""
        code = f"{len(program)}," + ",".join(" ".join(map(str, step)) for step in program)
        only = ["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"]
        daemon = ["setpriv", f"--reuid={LAB_UID}", f"--regid={LAB_UID}", "--clear-groups", *only]
        self.client.run([*daemon, "tc", "filter", "add", "dev", WIRE, "egress", "protocol", "all", "pref", str(before),
                         "bpf", "direct-action", "bytecode", code])  # fmt: skip

    def fire(self, kind: str, family: int, *, forged: int = 0) -> int:
        """Send datagrams; how many of them came out of the machine, each counted once. forged: root's own mark."""
        self.number += 1
        token = f"tc{self.number:05d}"
        target = {LOOP: LOOPBACK, SELF: HOST_ADDRESS, PAIR: OTHER}.get(kind, INTERNET)[family]
        source = HOST_ADDRESS[family] if kind == PAIR else ""
        mark = self.world.mark()
        host = self.world.container if kind == CONTAINER else self.client
        uid = LAB_UID if kind == CORE else 0 if forged else 65534
        device = names.TUN_NAME if kind == TUNNEL else ""
        argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-I", "-c", _SEND]
        host.run([*argv, str(family), device, source, target, token, str(forged)])
        frames = self.world.frames_since(mark)
        return sum(any(f"{token}.{n:03d}.".encode() in frame.data for frame in frames) for n in range(TIMES))

    def fire_redirected(self) -> dict[str, int]:
        """How many frames traffic control moves out of the machine, by kind and family."""
        ways = {
            TUNNEL: partial(self.redirect, names.TUN_NAME, "egress", "mirror"),
            LOOP: partial(self.redirect, "lo", "egress", "redirect"),
            SELF: partial(self.redirect, "lo", "egress", "redirect"),
            PAIR: partial(self.redirect, "lo", "egress", "redirect"),
            CONTAINER: partial(self.redirect, "ctr0", "ingress", "redirect"),
        }
        seen = {}
        for kind, way in ways.items():
            with way():
                seen[kind] = sum(self.fire(kind, family) for family in FAMILIES)
        return seen

    def fire_core(self) -> int:
        """How many of the core's datagrams leave, by family."""
        return sum(self.fire(CORE, family) for family in FAMILIES)


def _attach_tcx(index: int, verdict: int) -> int:
    """Attach a program with the same verdict for every frame, by bpf(2); it ends with the descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    bpf = {"x86_64": 321, "aarch64": 280}[platform.machine()]

    def call(command: int, attributes: bytes) -> int:
        made = libc.syscall(bpf, command, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes))
        if made < 0:
            raise OSError(ctypes.get_errno(), "bpf")
        return int(made)

    # r0 = verdict; exit. Then union bpf_attr for BPF_PROG_LOAD, type SCHED_CLS, and for BPF_LINK_CREATE, TCX_EGRESS.
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    places = (ctypes.addressof(code), ctypes.addressof(licence))
    program = call(5, struct.pack("<IIQQIIQII16sII", 3, 2, *places, 0, 0, 0, 0, 0, b"", 0, 47))
    try:
        return call(28, struct.pack("<IIII48x", program, index, 47, 0))
    finally:
        os.close(program)


_SEND = f"""
import socket, sys
family, device, source, target, token, mark = sys.argv[1:]
for number in range({TIMES}):
    with socket.socket({int(socket.AF_INET)} if family == "4" else {int(socket.AF_INET6)}, socket.SOCK_DGRAM) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, {SO_BINDTODEVICE}, device.encode() + bytes(1))
        if mark != "0":
            sock.setsockopt(socket.SOL_SOCKET, {SO_MARK}, int(mark))
        sock.bind((source, 0))
        try:
            sock.sendto(f"{{token}}.{{number:03d}}.".encode(), (target, {ECHO}))
        except PermissionError:
            pass
"""
ALL, NONE = TIMES * len(FAMILIES), 0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with World() as world:
        made = Bench(world)
        yield made
        made.scene.close()


def test_traffic_control_carries_frames_past_every_table(bench: Bench) -> None:
    bench.lock()
    assert {kind: sum(bench.fire(kind, family) for family in FAMILIES) for kind in TUNNEL_PROTOCOLS} == dict.fromkeys(
        TUNNEL_PROTOCOLS, NONE
    ), "without a redirect the lock holds each of them"
    assert bench.fire_core() == ALL
    assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, ALL)


def test_a_filter_by_addresses_stops_only_what_bears_ours(bench: Bench) -> None:
    bench.lock()
    with bench.guarded():
        bench.put(build_program(SOURCES), before=1)
        assert bench.fire_core() == ALL
        assert bench.fire_redirected() == {TUNNEL: NONE, LOOP: NONE, SELF: ALL, PAIR: ALL, CONTAINER: ALL}


def test_a_filter_of_what_the_egress_guard_did_not_mark_stops_all_of_them(bench: Bench) -> None:
    # The mark is no reason to accept: without it a frame is dropped; a frame with it has passed the egress guard.
    bench.lock()
    with bench.guarded():
        bench.put(build_program(MARKED), before=1)
        assert bench.fire_core() == ALL, "the egress hook comes before traffic control"
        assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, NONE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("marking", "seen"), [(True, TIMES), (False, NONE)])
def test_the_link_works_as_long_as_the_egress_guard_marks(bench: Bench, family: int, marking: bool, seen: int) -> None:
    ipv4, ipv6 = (
        ipaddress.IPv4Interface(f"{LAN_A.client4}/{LAN_A.prefix4}"),
        ipaddress.IPv6Interface(f"{LAN_A.client6}/{LAN_A.prefix6}"),
    )
    on_link = OnLink(own_ipv4=(ipv4.ip,), networks_ipv4=(ipv4.network,), networks_ipv6=(ipv6.network,))
    bench.lock(marking=marking, on_link=on_link)
    with bench.guarded():
        bench.put(build_program(MARKED), before=1)
        bench.client.run(["ip", "neigh", "del", GATEWAY[family], "dev", WIRE], check=False)
        try:
            assert bench.fire(CORE, family) == seen, "the gateway is found by ARP or neighbour discovery"
        finally:
            bench.know_neighbours()


def test_root_can_forge_the_mark(bench: Bench) -> None:
    bench.lock()
    with bench.guarded(), bench.redirect("lo", "egress", "redirect"):
        bench.put(build_program(MARKED), before=1)
        assert sum(bench.fire(SELF, family, forged=MARK) for family in FAMILIES) == ALL


def test_that_filter_stops_the_core_too_if_no_guard_marks(bench: Bench) -> None:
    bench.lock(marking=False)
    with bench.guarded():
        bench.put(build_program(MARKED), before=1)
        assert bench.fire_core() == NONE


@pytest.mark.parametrize(("other", "seen"), [(1, ALL), (9, NONE)])
def test_of_two_filters_the_first_decides(bench: Bench, other: int, seen: int) -> None:
    bench.lock()
    with bench.guarded():
        bench.put(build_program(MARKED), before=5)
        bench.put(ACCEPT_ALL, before=other)
        assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, seen)


@pytest.mark.parametrize(("verdict", "seen"), [(_OK, ALL), (-1, NONE)])
def test_a_tcx_program_decides_before_every_filter(bench: Bench, verdict: int, seen: int) -> None:
    bench.lock()
    with bench.guarded():
        bench.put(build_program(MARKED), before=1)
        index = int(bench.client.run(["cat", f"/sys/class/net/{WIRE}/ifindex"]).stdout)
        assert bench.client.call(partial(count_programs, index)) == 0
        try:
            link = bench.client.call(partial(_attach_tcx, index, verdict))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("this kernel has no tcx (Linux 6.6)")
        try:
            assert bench.client.call(partial(count_programs, index)) == 1, "diagnose sees it"
            assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, seen)
        finally:
            os.close(link)


def test_whoever_takes_the_place_away_takes_the_filter_away(bench: Bench) -> None:
    bench.lock()
    with bench.guarded():
        bench.put(build_program(MARKED), before=1)
        bench.client.run(["tc", "qdisc", "replace", "dev", WIRE, "clsact"])
        assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, NONE), (
            "replaced by the same kind, it keeps its filters"
        )
        bench.client.run(["tc", "qdisc", "del", "dev", WIRE, "clsact"])
        assert bench.fire_redirected() == dict.fromkeys(TUNNEL_PROTOCOLS, ALL)
