# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests on a bridge like libvirt's: what they get, what is refused, and that no card lets them out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_B
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.namespace import Host
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

BRIDGE, HOST_ADDRESS, GUEST_ADDRESS = "virbr0", "192.168.122.1", "192.168.122.77"
TOKEN = b"frame-of-a-guest-"
FROM_HOST, FROM_GUEST = TOKEN + b"host", TOKEN + b"guest"
QUESTION = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(bytes.fromhex('123401000001000000000000') + b'\\x03www\\x03lab\\x07example\\0\\0\\1\\0\\1', ('{address}', 53))
try:
    print('answered' if s.recvfrom(512) else '')
except OSError as error:
    print(type(error).__name__)
"""
CALL = """
import socket
try:
    with socket.create_connection(("{address}", {port}), 5) as s:
        s.sendall(b'x')
        print('connected')
except OSError as error:
    print(type(error).__name__)
"""
SHOUT = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(20):
    try:
        s.sendto({token!r}, ('{address}', 4000 + number))
    except OSError as error:
        pass
"""


def ask(host: Host, code: str, **values: object) -> str:
    return host.run([sys.executable, "-I", "-c", code.format(**values)], check=False).stdout.strip()


class Guests:
    """The client with a bridge, a guest on it, and a DHCP server and resolver for guests."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed, self.client, self.guest = testbed, testbed.world.client, testbed.world.container
        directory = testbed.world.directory / "dns"
        directory.mkdir()
        self._log = directory / "log"
        for line in (
            "addr flush dev ctr0", f"link add {BRIDGE} type bridge forward_delay 0", f"link set ctr0 master {BRIDGE}",
            f"addr add {HOST_ADDRESS}/24 dev {BRIDGE}", f"link set {BRIDGE} up", "link set ctr0 up",
        ):  # fmt: skip
            self.client.run(["ip", *line.split()])
        self.client.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        # If br_netfilter is loaded, the IP hooks would see bridged frames as well.
        for name in ("iptables", "ip6tables", "arptables"):
            self.client.run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}=0"], check=False)
        for line in (
            "addr flush dev eth0", f"addr add {GUEST_ADDRESS}/24 dev eth0", f"route add default via {HOST_ADDRESS}",
        ):  # fmt: skip
            self.guest.run(["ip", *line.split()])
        self._children = [
            self.client.spawn(
                ["dnsmasq", "-k", "--conf-file=/dev/null", "--bind-interfaces", f"--interface={BRIDGE}",
                 "--except-interface=lo", f"--dhcp-leasefile={directory}/leases", f"--pid-file={directory}/pid",
                 "--dhcp-range=192.168.122.2,192.168.122.60", "--user=root", "--log-dhcp", "--no-ping",
                 "--log-facility=-",
                 "--address=/www.lab.example/203.0.113.80", "--no-resolv"],
                stdout=self._open_log(), stderr=subprocess.STDOUT,
            ),
            self.guest.spawn(
                [sys.executable, "-m", "http.server", "8000", "--bind", GUEST_ADDRESS],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ),
        ]  # fmt: skip
        wait_until(lambda: b"DHCP, IP range" in self._log.read_bytes(), "the guests' server")
        wait_until(lambda: ask(self.guest, CALL, address=GUEST_ADDRESS, port=8000) == "connected", "the guest's page")

    def _open_log(self) -> int:
        return os.open(self._log, os.O_WRONLY | os.O_CREAT, 0o600)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()

    def ask_for_address(self) -> int:
        """The number of a guest's requests for an address that the server on this machine has received."""
        before = self._log.read_bytes().count(b"DHCPDISCOVER(")
        self.guest.run(["timeout", "5", "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "1", "-T", "1",
                        "-s", "/bin/true"], check=False)  # fmt: skip
        return self._log.read_bytes().count(b"DHCPDISCOVER(") - before

    def look(self) -> dict[str, bool]:
        """What passes between this machine and its guest."""
        return {
            "host to guest": ask(self.client, CALL, address=GUEST_ADDRESS, port=8000) == "connected",
            "names of the host": ask(self.guest, QUESTION, address=HOST_ADDRESS) == "answered",
            "address of the host": self.ask_for_address() > 0,
        }


@pytest.fixture(scope="module")
def guests() -> Iterator[Guests]:
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        made = Guests(testbed)
        try:
            # The positive control: without the lock all of this works, and what is sent is seen on the card.
            assert made.look() == {"host to guest": True, "names of the host": True, "address of the host": True}
            assert count_tokens(made) == {FROM_HOST, FROM_GUEST}
            testbed.machine.boot_lock()
            testbed.machine.hold_guard()
            testbed.machine.start_daemon()
            testbed.machine.wait_state("OPEN")
            testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
            yield made
        finally:
            made.close()


def count_tokens(guests: Guests) -> set[bytes]:
    """Make the second card a port of the bridge, send from both sides to nobody, and count what the card let out."""
    client, card = guests.client, LAN_B.interface
    client.run(["ip", "link", "set", card, "up"])
    guests.testbed.world.set_carrier(LAN_B, up=True)
    mark = guests.testbed.world.mark()
    nobody = "192.168.122.200"
    client.run(["ip", "link", "set", card, "master", BRIDGE])
    try:
        # Add the neighbours, so that nothing waits for ARP. Not earlier: a bridge forgets them when it gets a port.
        for host, device in ((client, BRIDGE), (guests.guest, "eth0")):
            host.run(["ip", "neigh", "replace", nobody, "lladdr", "02:50:53:00:0c:99", "dev", device])
        for _ in range(5):
            ask(client, SHOUT, address=nobody, token=FROM_HOST)
            ask(guests.guest, SHOUT, address=nobody, token=FROM_GUEST)
            time.sleep(0.1)
    finally:
        client.run(["ip", "link", "set", card, "nomaster"])
    frames = guests.testbed.world.frames_since(mark)
    leaks = [
        verdict.frame
        for verdict in judge_frames(frames, world_evidence(guests.testbed.server.read_flows()))
        if not verdict.innocent and TOKEN in verdict.frame.data
    ]
    return {token for token in (FROM_HOST, FROM_GUEST) if any(token in frame.data for frame in leaks)}


def test_this_machine_and_its_guests_do_not_reach_each_other(guests: Guests) -> None:
    assert guests.look() == {"host to guest": False, "names of the host": False, "address of the host": False}


def test_a_guest_with_a_fixed_address_reaches_pages_and_names_through_the_tunnel(guests: Guests) -> None:
    """What `diagnose` advises works."""
    guests.testbed.machine.wait_state("OPEN")
    assert ask(guests.guest, CALL, address=plan.INTERNET4, port=7) == "connected"
    assert ask(guests.guest, QUESTION, address="203.0.113.53") == "answered"


def test_a_card_that_joins_the_bridge_lets_no_frame_of_host_or_guest_out(guests: Guests) -> None:
    assert count_tokens(guests) == set()
    guests.testbed.machine.wait_state("OPEN")
