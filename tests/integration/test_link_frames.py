# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames in the form of the link's plumbing, from a macvlan container or a user's groups, beside the real plumbing.

At the card a container's frames have no owner, so only form, length and addresses can be checked. Each frame is first
seen outside without the lock.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab import packet_builder
from psiphon_lab.addresses import LAN_A
from psiphon_lab.frames import decode_ip
from psiphon_lab.judge import judge_frame, world_evidence
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.sending import send_bytes
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

CARD, MAC = "mv0", "02:50:53:00:0c:07"
RS, NS, NA, MLD1, MLD2 = 133, 135, 136, 131, 143
OWN6, OWN4 = "2001:db8:a::77", "192.0.2.77"
ROUTER_MAC = packet_builder.BROADCAST_MAC  # any router on the link may take it
Frame = Callable[[bytes], bytes]
"""Makes a frame around six bytes."""


def discovery(kind: int, target: str, rest: Callable[[bytes], bytes], *, source: str = OWN6) -> Frame:
    return lambda token: packet_builder.ip_frame(
        ROUTER_MAC, MAC, packet_builder.icmp_packet(source, target, kind, bytes(4) + rest(token), hop_limit=255)
    )


def option(token: bytes) -> bytes:
    return b"\x01\x01" + token


def about(address: str) -> Callable[[bytes], bytes]:
    return lambda token: packet_builder.pack_address(address) + option(token)


def report(kind: int, group: str, body: Callable[[bytes], bytes], *, to: str = "") -> Frame:
    def make(token: bytes) -> bytes:
        source, target = packet_builder.pack_address("fe80::77"), packet_builder.pack_address(to or group)
        data = b"\x3a\0\x05\x02\0\0\x01\0" + bytes([kind, 0, 0, 0]) + bytes(4) + body(token)
        head = struct.pack("!IHBB16s16s", 6 << 28, len(data), 0, 1, source, target)
        return packet_builder.frame("33:33:00:00:00:01", MAC, 0x86DD, head + data)

    return make


def arp(operation: int, sender: str, target: str, *, tail: bytes = b"", kind: int = 1, mac: bytes = b"") -> Frame:
    def make(token: bytes) -> bytes:
        head = struct.pack("!HHBBH", kind, 0x0800, 6, 4, operation)
        body = (
            head + token + packet_builder.pack_address(sender) + (mac or bytes(6)) + packet_builder.pack_address(target)
        )
        return packet_builder.frame(packet_builder.BROADCAST_MAC, MAC, 0x0806, body + tail)

    return make


def eapol(body: Callable[[bytes], bytes]) -> Frame:
    return lambda token: packet_builder.frame("01:80:c2:00:00:1f", MAC, 0x888E, body(token))


def ipv6(first: int, length: int, data: bytes, *, source: str = OWN6, target: str = plan.NEIGHBOUR6) -> bytes:
    """An IPv6 packet from fields of its header: the next header, and the payload length that it claims (RFC 8200)."""
    head = struct.pack("!IHBB", 6 << 28, length, first, 255)
    return head + packet_builder.pack_address(source) + packet_builder.pack_address(target) + data


def behind(first: int, header: Callable[[bytes], bytes]) -> Frame:
    """A solicitation behind an extension header of eight bytes, without the option: so the length stays the same."""

    def make(token: bytes) -> bytes:
        data = header(token) + bytes([NS, 0, 0, 0]) + bytes(4) + packet_builder.pack_address(OWN6)[:8]
        return packet_builder.frame(ROUTER_MAC, MAC, 0x86DD, ipv6(first, len(data), data))

    return make


def says_length(length: int) -> Frame:
    def make(token: bytes) -> bytes:
        data = bytes([NS, 0, 0, 0]) + bytes(4) + packet_builder.pack_address(OWN6) + option(token)
        return packet_builder.frame(ROUTER_MAC, MAC, 0x86DD, ipv6(58, length, data))

    return make


def in_session(code: int, tail: Callable[[bytes], bytes], *, source: str = "fe80::77") -> Frame:
    """A solicitation in a PPPoE session (RFC 2516 4)."""

    def make(token: bytes) -> bytes:
        data = bytes([NS, code, 0, 0]) + bytes(4) + packet_builder.pack_address("fe80::1") + tail(token)
        packet = ipv6(58, len(data), data, source=source, target="fe80::1")
        return packet_builder.frame(
            ROUTER_MAC, MAC, 0x8864, struct.pack("!HHHH", 0x1100, 7, len(packet) + 2, 0x57) + packet
        )

    return make


GROUP = "ff02::1:ff12:3456"
HELD_BY_FORM: dict[str, Frame] = {
    "a long solicitation": discovery(NS, plan.INTERNET6, lambda t: bytes(16) + b"\x0e\x51" + t * 108),
    "a long advertisement": discovery(NA, plan.INTERNET6, lambda t: bytes(16) + b"\x0e\x51" + t * 108),
    "a long router solicitation": discovery(RS, plan.INTERNET6, lambda t: b"\x0e\x51" + t * 108),
    "a router solicitation to the internet": discovery(RS, plan.INTERNET6, option),
    "a solicitation with two options": discovery(NS, plan.NEIGHBOUR6, lambda t: bytes(16) + option(t) * 2),
    "a solicitation with an unknown option": discovery(NS, plan.NEIGHBOUR6, lambda t: bytes(16) + b"\x63\x01" + t),
    "an advertisement with a nonce": discovery(NA, plan.NEIGHBOUR6, lambda t: bytes(16) + b"\x0e\x01" + t),
    "a solicitation to a wide group": discovery(NS, "ff0e::1", about(OWN6)),
    "a solicitation behind options for each hop": behind(0, lambda t: b"\x3a\0" + t),
    "a solicitation behind options for its target": behind(60, lambda t: b"\x3a\0" + t),
    "a solicitation behind a routing header": behind(43, lambda t: b"\x3a\0\x04\0" + t[2:]),
    "a solicitation in a fragment": behind(44, lambda t: b"\x3a\0\0\0" + t[2:]),
    "a solicitation that says it is shorter": says_length(5),
    "a solicitation that says it is nothing": says_length(0),
    "a solicitation in a session with a code": in_session(9, option),
    "a solicitation in a session with an unknown option": in_session(0, lambda t: b"\x63\x01" + t),
    "a report of version 2": report(MLD2, GROUP, lambda t: b"\x04\0\0\0" + t.ljust(16), to="ff02::16"),
    "a report of another group": report(MLD1, "ff02::fb", lambda t: packet_builder.pack_address("ff02::fb")[:10] + t),
    "a farewell": report(132, GROUP, lambda t: t.rjust(16, b"\xff"), to="ff02::2"),
    "a report with more in it": report(MLD1, GROUP, lambda t: packet_builder.pack_address(GROUP) + t),
    "ARP with a body": arp(1, OWN4, plan.NEIGHBOUR4, tail=b"body" * 25),
    "ARP with padding": arp(1, OWN4, plan.NEIGHBOUR4, tail=bytes(18)),
    "ARP of another hardware": arp(1, OWN4, plan.NEIGHBOUR4, kind=7),
    "reverse ARP": arp(3, OWN4, plan.NEIGHBOUR4),
    "ARP that tells what it asks for": arp(1, OWN4, plan.NEIGHBOUR4, mac=b"secret"),
    "EAPOL with a body": eapol(lambda t: t * 100),
    "EAPOL in its form": eapol(lambda t: b"\x01\0\0\x06" + t),
}
HELD_BY_ADDRESS: dict[str, Frame] = {
    "a solicitation to the internet": discovery(NS, plan.INTERNET6, about(plan.INTERNET6)),
    "an advertisement to the internet": discovery(
        NA, plan.INTERNET6, lambda t: packet_builder.pack_address(OWN6) + b"\x02\x01" + t
    ),
    "a solicitation about an address of elsewhere": discovery(NS, GROUP, about("2001:db8:dead:beef::1")),
    "a solicitation from elsewhere": discovery(NS, plan.NEIGHBOUR6, about(plan.NEIGHBOUR6), source="2001:db8:dead::1"),
    "a solicitation in a session from elsewhere": in_session(0, option, source="2001:db8:dead::1"),
    "a report of a group that is none of ours": report(
        MLD1, GROUP, lambda t: packet_builder.pack_address(GROUP)[:13] + packet_builder.pack_address(GROUP)[13:]
    ),
    "ARP from another address than ours": arp(1, OWN4, plan.NEIGHBOUR4),
    "ARP about an address of elsewhere": arp(1, LAN_A.client4, plan.INTERNET4),
}
_numbers = iter(range(1, 100000))


def give_macvlan(world: World) -> None:
    """A child of the card, as `docker network create -d macvlan -o parent=eth0` gives it to a container."""
    container = world.container
    world.client.run(
        ["ip", "link", "add", CARD, "link", LAN_A.interface, "address", MAC, "type", "macvlan", "mode", "bridge"]
    )
    world.client.run(["ip", "link", "set", CARD, "netns", str(container.pid)])
    container.set_sysctls({f"ipv6/conf/{CARD}/disable_ipv6": 1})  # so that its kernel sends nothing itself
    container.run(["ip", "link", "set", CARD, "up"])


def find_seen(world: World, frames: dict[str, Frame]) -> set[str]:
    """Send each frame from the container; returns the names of those that left the client."""
    made = {}
    for name, make in frames.items():
        token = b"\x02" + b"k%04d" % next(_numbers)
        made[name] = make(token)
    mark = world.mark()

    def send_all() -> None:
        for data in made.values():
            try:
                send_bytes(CARD, data)
            except OSError:
                continue

    world.container.call(send_all)
    time.sleep(0.2)
    heard = {frame.data for frame in world.frames_since(mark)}
    return {name for name, data in made.items() if data in heard}


@pytest.mark.requirement("R7", "R19", "B4")
def test_a_macvlan_container_gets_nothing_out_in_the_form_of_the_links_plumbing() -> None:
    with open_testbed() as testbed:
        world, machine = testbed.world, testbed.machine
        give_macvlan(world)
        everything = HELD_BY_FORM | HELD_BY_ADDRESS
        assert not find_seen(world, everything), "all layers, open"
        machine.command("stop")
        machine.wait_state("LOCKED")
        assert not find_seen(world, everything), "all layers, locked"
        machine.release_guard()
        assert not find_seen(world, everything), "the egress guard without the frame guard"
        machine.stop_daemon()
        world.client.run(["nft", "flush", "ruleset"])
        testbed.remove_card_filter()
        assert find_seen(world, everything) == set(everything), "the positive control"
        machine.hold_guard()
        assert not find_seen(world, HELD_BY_FORM), "the frame guard alone"
        # What remains, as SECURITY.md says: a frame in the exact form, while there is no egress guard.
        assert find_seen(world, HELD_BY_ADDRESS) == set(HELD_BY_ADDRESS)


JOIN = {
    "a group whose name is text": "ff3e::7365:6372:6574:776f:7264",
    "a group of the link": "ff02::1234:5678:9abc",
    "a solicited-node group": "ff02::1:ffab:cdef",
}


JOIN_GROUPS = f"""
import socket, struct, time
index = socket.if_nametoindex("{LAN_A.interface}")
socks = []
for group in {list(JOIN.values())!r}:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                    socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index))
    socks.append(sock)
pack = lambda address: struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0).ljust(128, b"\\0")
source = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
wanted = pack(socket.inet_pton(socket.AF_INET6, "ff3e::4321")) + pack(b"ALICE-READS-THIS")
source.setsockopt(socket.IPPROTO_IPV6, 46, struct.pack("@I4x", index) + wanted)  # MCAST_JOIN_SOURCE_GROUP
time.sleep(0.6)  # the kernel tells of them in its own time, within the interval that is set, and nobody that it did
for sock in (*socks, source):
    sock.close()
time.sleep(0.3)  # and of their end
"""
"""What an ordinary user may do: join groups, and sources in a group, on a card."""


def find_reported(testbed: Testbed) -> set[str]:
    """The user's groups that a frame outside reports."""
    world = testbed.world
    # Have the second report come sooner than after up to ten seconds.
    intervals = ("mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval")
    world.client.set_sysctls({f"ipv6/conf/{LAN_A.interface}/{name}": 200 for name in intervals})
    mark = world.mark()
    world.client.run([sys.executable, "-I", "-c", JOIN_GROUPS], uid=NOBODY, gid=NOBODY)
    tokens = {name: packet_builder.pack_address(group) for name, group in JOIN.items()} | {
        "a source": b"ALICE-READS-THIS"
    }
    data = [frame.data for frame in world.frames_since(mark)]
    return {name for name, token in tokens.items() if any(token in one for one in data)}


@pytest.mark.requirement("R7", "R19")
def test_a_user_tells_the_local_network_nothing_by_the_groups_that_are_joined() -> None:
    with open_testbed() as testbed:
        assert not find_reported(testbed), "open"
        testbed.machine.command("stop")
        testbed.machine.wait_state("LOCKED")
        assert not find_reported(testbed), "locked"
        testbed.machine.stop_daemon()
        testbed.machine.release_guard()
        client = testbed.world.client
        client.run(["nft", "flush", "ruleset"])
        testbed.remove_card_filter()
        client.set_sysctls({"ipv6/conf/all/force_mld_version": 0})
        assert find_reported(testbed) == {*JOIN, "a source"}, "the positive control"
        testbed.machine.boot_lock()
        testbed.machine.hold_guard()
        assert not find_reported(testbed), "before there is a daemon, and before the kernel's setting is made"
        client.set_sysctls({"ipv6/conf/all/force_mld_version": 1})
        # Three bytes, as SECURITY.md says: only the egress guard knows which groups belong to this machine.
        assert find_reported(testbed) == {"a solicited-node group"}


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    with open_testbed() as made:
        yield made


def reports_of(world: World, mark: dict[str, int], group: str) -> bool:
    found = [decode_ip(frame.data) for frame in world.frames_since(mark)]
    return any(packet is not None and packet.protocol == 0 and packet.destination == group for packet in found)


@pytest.mark.requirement("R6", "R7")
def test_a_prefix_that_is_gained_is_known_to_the_guard_and_closes_nothing(testbed: Testbed) -> None:
    world, machine = testbed.world, testbed.machine
    machine.wait_state("OPEN")
    ends = testbed.watch_ends()
    # The kernel reports twice within this time, ms: a busy guard must learn the prefix before the last report.
    interval = {f"ipv6/conf/{LAN_A.interface}/mldv1_unsolicited_report_interval": 8000}
    world.client.set_sysctls(interval)
    mark = world.mark()
    world.client.run(["ip", "-6", "addr", "add", "2001:db8:1234:5678::9/64", "dev", LAN_A.interface])
    listing = ["nft", "list", "ruleset"]
    egress = ["nft", "list", "table", "netdev", "psiphon_egress"]
    machine.wait_for(lambda: "2001:db8:1234:5678::/64" in world.client.run(egress).stdout, "the prefix in the guard")
    machine.wait_for(lambda: reports_of(world, mark, "ff02::1:ff00:9"), "the kernel's report of its new group")
    text = world.client.run(listing).stdout
    base = text[text.index("table inet psiphon_filter") :]
    assert "2001:db8:1234:5678::/64" in base[: base.index("\n}")]
    # The new rules were read back, and the lease continued.
    testbed.let_it_renew(2)
    machine.wait_for(machine.lease_remains, "the lease")
    assert ends() == []
    # Remove what was added.
    world.client.run(["ip", "-6", "addr", "del", "2001:db8:1234:5678::9/64", "dev", LAN_A.interface])
    machine.wait_for(lambda: "2001:db8:1234:5678::" not in world.client.run(egress).stdout, "the prefix gone again")
    assert ends() == []
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R7")
def test_the_kernels_own_plumbing_goes_on(testbed: Testbed) -> None:
    world = testbed.world
    mark = world.mark()
    for family in ("-4", "-6"):
        world.client.run(["ip", family, "neigh", "flush", "dev", LAN_A.interface])
    assert testbed.page(4)
    world.neighbour.run(["ip", "-6", "neigh", "flush", "dev", "eth0"])
    world.neighbour.run(["ip", "-4", "neigh", "flush", "dev", "eth0"])

    def call() -> None:
        for family, address in ((socket.AF_INET, LAN_A.client4), (socket.AF_INET6, LAN_A.client6)):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"anybody there?", (address, 9))

    world.neighbour.call(call)

    def kinds() -> set[str]:
        verdicts = [judge_frame(one, world_evidence()) for one in world.frames_since(mark)]
        kernels = {str(one.innocent) for one in verdicts if one.frame.data[12:14] == b"\x08\x06"}
        found = [decode_ip(one.frame.data) for one in verdicts]
        return kernels | {str(one.payload[0]) for one in found if one is not None and one.protocol == 58}

    wait_until(lambda: {"arp", str(NA)} <= kinds(), "the kernel's answers")
    known = ipaddress.ip_address(LAN_A.router4)
    neighbours = world.client.run(["ip", "-4", "neigh", "show", "dev", LAN_A.interface]).stdout
    assert f"{known} lladdr" in neighbours


HOSTAPD = """\
interface=port0
driver=wired
ieee8021x=1
eap_server=1
eap_user_file={users}
use_pae_group_addr=1
"""
SUPPLICANT = """\
ap_scan=0
network={
    key_mgmt=IEEE8021X
    eap=MD5
    identity="user"
    password="secret"
    eapol_flags=0
}
"""


@pytest.mark.skipif(
    not all(map(shutil.which, ("hostapd", "wpa_supplicant"))), reason="needs hostapd and wpa_supplicant"
)
@pytest.mark.requirement("R7")
def test_a_real_supplicant_logs_in_to_a_real_wired_network_through_the_lock(testbed: Testbed) -> None:
    """IEEE 802.1X with wpa_supplicant and hostapd, on a separate cable that the service guards like the others."""
    world, client = testbed.world, testbed.world.client
    far = world.neighbour
    client.run(["ip", "link", "add", "wire0", "type", "veth", "peer", "name", "port0"])
    client.run(["ip", "link", "set", "port0", "netns", str(far.pid)])
    client.run(["ip", "link", "set", "wire0", "up"])
    far.run(["ip", "link", "set", "port0", "up"])
    # A card leads out once it has a default route; this one has the worse metric.
    client.run(["ip", "addr", "add", "192.0.2.200/30", "dev", "wire0"])
    client.run(["ip", "route", "add", "default", "via", "192.0.2.201", "dev", "wire0", "metric", "4000"])
    egress = ["nft", "list", "table", "netdev", "psiphon_egress"]
    testbed.machine.wait_for(lambda: "wire0" in client.run(egress).stdout, "the guard of the new card")
    directory = world.directory / "dot1x"
    directory.mkdir()
    users, access, supplicant = (directory / name for name in ("users", "hostapd.conf", "wpa.conf"))
    users.write_text('"user" MD5 "secret"\n')
    access.write_text(HOSTAPD.format(users=users))
    supplicant.write_text(SUPPLICANT)
    children = [
        far.spawn(["hostapd", access], stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
        client.spawn(
            ["wpa_supplicant", "-D", "wired", "-i", "wire0", "-c", supplicant],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ),
    ]
    try:
        said = read_until(children[1], b"CTRL-EVENT-EAP-SUCCESS", seconds=20)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert b"CTRL-EVENT-EAP-SUCCESS" in said, said.decode()


def read_until(child: subprocess.Popen[bytes], word: bytes, *, seconds: float) -> bytes:
    """The output of a program up to a given word."""
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    said, deadline = b"", time.monotonic() + seconds
    while word not in said and time.monotonic() < deadline and child.poll() is None:
        said += child.stdout.read() or b""
        time.sleep(0.05)
    return said
