# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A real systemd-networkd behind the lock gets, renews and rebinds addresses from DHCPv4, DHCPv6 and SLAAC.

Without a service manager, directly on the client. The network is private, as at home, so DHCPv4 is renewed by unicast.
dnsmasq gives DHCPv4 leases and advertises; its shortest DHCPv6 lease is too long for a test, so dhcpd gives those.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.frames import decode_packet
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.waiting import wait_until

NETWORKD = "/lib/systemd/systemd-networkd"
MISSING = [name for name in ("dnsmasq", "dhcpd", NETWORKD) if shutil.which(name) is None]
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}"),
]

HOME = "192.168.77.0/24"
ROUTER, EVERYBODY = "192.168.77.1", "255.255.255.255"
PREFIX = LAN_A.network6.partition("/")[0]
RENEW_SECONDS, REBIND_SECONDS = 3, 6
"""T1 and T2 of DHCPv4 (RFC 2131 4.4.5) and DHCPv6 (RFC 8415 14.2), as the servers tell them.

dnsmasq takes nothing below three seconds. networkd moves both by up to a second and may do neither where they meet.
"""
TEMPORARY_SECONDS = 4
"""So long a temporary address is preferred (RFC 8981); the kernel makes the next one two seconds before its end."""
NETWORK = (
    "[Match]\nName=eth0\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nIPv6PrivacyExtensions=yes\n"
    "[IPv6AcceptRA]\nDHCPv6Client=always\n"
)
# In its own mount namespace, and without waiting for udev, as in a container.
START = (
    "mkdir -p /run/systemd && mount -t tmpfs -o mode=755 tmpfs /run/systemd && cd /run/systemd && "
    'mkdir -p network netif/links netif/leases netif/lldp && cp "$1" network/50-eth0.network && '
    f"chown -R systemd-network netif && mount -o remount,ro /sys && exec {NETWORKD}"
)


class Home:
    """A home router on provider A's end of the cable. Each DHCPv6 server that it starts is a different one."""

    def __init__(self, testbed: Testbed) -> None:
        self._host = testbed.world.provider_a
        self._directory = testbed.world.directory / "home"
        self._directory.mkdir()
        self._dnsmasq: subprocess.Popen[bytes] | None = None
        self._dhcp6: subprocess.Popen[bytes] | None = None
        self._servers = 0
        for host in (testbed.world.backbone, testbed.world.internet):
            host.run(["ip", "route", "add", HOME, "via", plan.BACKBONE_A4])
        self._host.run(["ip", "address", "add", f"{ROUTER}/24", "dev", "lan"])

    def lend(self, first: int) -> None:
        """Lease IPv4 addresses from this one on, and advertise the router and the prefix."""
        _end(self._dnsmasq)
        argv = [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--bind-interfaces",
            "--interface=lan", f"--log-facility={self._directory / 'dnsmasq.log'}", "--pid-file=", "--no-ping",
            "--dhcp-authoritative", f"--dhcp-leasefile={self._directory}/leases-{first}",
            f"--dhcp-range=192.168.77.{first},192.168.77.{first + 3},2m", f"--dhcp-option=3,{ROUTER}",
            f"--dhcp-option-force=58,{RENEW_SECONDS}", f"--dhcp-option-force=59,{REBIND_SECONDS}",
            "--enable-ra", "--ra-param=lan,4,60", f"--dhcp-range={PREFIX},ra-only,64,2m",
        ]  # fmt: skip
        self._dnsmasq = self._host.spawn(argv, stderr=subprocess.DEVNULL)

    def lend6(self) -> str:
        """Replace the DHCPv6 server by another, which leases another address of the same prefix; returns it."""
        _end(self._dhcp6)
        self._servers += 1
        address = f"{PREFIX}d6{self._servers:02x}"
        at = self._log6.with_suffix("")
        config, leases = at.with_suffix(".conf"), at.with_suffix(".leases")
        config.write_text(
            f"default-lease-time 60; preferred-lifetime 60; dhcp-cache-threshold 0; authoritative;\n"
            f"option dhcp-renewal-time {RENEW_SECONDS}; option dhcp-rebinding-time {REBIND_SECONDS};\n"
            f"server-duid LL ethernet 02:50:53:00:00:{self._servers:02x};\n"
            f"subnet6 {LAN_A.network6} {{ range6 {address} {address}; }}\n"
        )
        leases.touch()
        # Give it paths of its own, or it would use the machine's.
        argv: list[str | Path] = ["dhcpd", "-6", "-d", "-f", "--no-pid", "-cf", config, "-lf", leases, "lan"]
        with self._log6.open("wb") as log:
            self._dhcp6 = self._host.spawn(argv, stdout=subprocess.DEVNULL, stderr=log)
        wait_until(lambda: b"Server starting service" in self._log6.read_bytes(), "the DHCPv6 server")
        return address

    def count(self, words: str) -> int:
        """How often dnsmasq's log has these words."""
        log = self._directory / "dnsmasq.log"
        return log.read_text().count(words) if log.exists() else 0

    def count6(self, kind: str) -> int:
        """The number of messages of this kind to this DHCPv6 server, without those for another server."""
        text = self._log6.read_text()
        return text.count(f"{kind} message from") - text.count(f"Discarding {kind} from")

    @property
    def _log6(self) -> Path:
        return self._directory / f"dhcp6-{self._servers}.log"

    @contextlib.contextmanager
    def deaf_to_unicast(self) -> Iterator[None]:
        """Have the router ignore DHCP to its own address."""
        rule = f"udp dport 67 ip daddr {ROUTER} counter drop"
        self._host.run(
            ["nft", "add table ip deaf { chain input { type filter hook input priority 0; " + rule + "; }; }"]
        )
        try:
            yield
        finally:
            self._host.run(["nft", "delete", "table", "ip", "deaf"])


def _end(child: subprocess.Popen[bytes] | None) -> None:
    if child is not None:
        child.terminate()
        child.wait(timeout=60)


def solicit_router() -> None:
    """Send a router solicitation as network managers do (RFC 4861, 4.1): networkd sends one only when it starts."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(b"\x85" + bytes(7), ("ff02::2", 0, 0, socket.if_nametoindex("eth0")))


@dataclass
class Scene:
    """The client with networkd, at home. begin: the mark before the first frame."""

    testbed: Testbed
    home: Home
    begin: dict[str, int]

    def status(self) -> dict[str, Any]:
        status = self.testbed.machine.read_status()
        assert status is not None
        return status

    def addresses(self, *words: str) -> list[str]:
        """Addresses of the client that `ip` lists with these words."""
        shown = self.testbed.world.client.run(["ip", "-o", "address", "show", "dev", "eth0", "scope", "global"]).stdout
        return [line.split()[3].partition("/")[0] for line in shown.splitlines() if all(word in line for word in words)]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        self.testbed.machine.wait_for(condition, what)

    def prefix_lifetime(self) -> int:
        """How long the address from the advertisement is still valid, in seconds."""
        shown = self.testbed.world.client.run(["ip", "-6", "address", "show", "dev", "eth0", "mngtmpaddr"]).stdout
        return int(re.findall(r"valid_lft (\d+)sec", shown)[0])

    def requests(self, mark: dict[str, int]) -> set[str]:
        """The destinations of the client's DHCPv4 requests since a mark."""
        found = (decode_packet(frame.data[14:]) for frame in self.testbed.world.frames_since(mark))
        return {packet.destination for packet in found if packet is not None and packet.destination_port == 67}

    def renew(self) -> set[str]:
        """Wait until a DHCPv4 lease is acknowledged again; returns the destinations of the requests for it."""
        mark, before = self.testbed.world.mark(), self.home.count("DHCPACK")
        self.wait(lambda: self.home.count("DHCPACK") > before, "DHCPv4 renewed")
        return self.requests(mark)

    def assert_no_leak(self) -> None:
        """Judge every frame since `begin`."""
        evidence = world_evidence(self.testbed.server.read_flows(), claimed=(HOME,))
        leaks = find_leaks(self.testbed.world.frames_since(self.begin), evidence)
        assert not leaks, [leak.text for leak in leaks[:10]]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Networkd started behind the boot lock, before there is a daemon."""
    with open_testbed(start=False) as testbed:
        client = testbed.world.client
        client.run(["ip", "address", "flush", "dev", "eth0"])
        client.run(["ip", "link", "set", "eth0", "down"])
        client.set_sysctls(
            {"ipv6/conf/eth0/temp_prefered_lft": TEMPORARY_SECONDS, "ipv6/conf/eth0/max_desync_factor": 0}
        )
        made = Scene(testbed, Home(testbed), testbed.world.mark())
        made.home.lend(100)
        made.home.lend6()
        network = testbed.world.directory / "eth0.network"
        network.write_text(NETWORK)
        network.chmod(0o644)
        argv: list[str | Path] = ["unshare", "--mount", "sh", "-c", START, "sh", network]
        client.spawn(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield made


@pytest.mark.requirement("R2", "R7", "R19")
def test_addresses_by_dhcp_dhcpv6_and_advertisement_are_had_behind_the_boot_lock_before_there_is_a_daemon(
    scene: Scene,
) -> None:
    scene.wait(lambda: any(address.startswith("192.168.77.10") for address in scene.addresses()), "DHCPv4")
    scene.wait(lambda: f"{PREFIX}d601" in scene.addresses("/128"), "DHCPv6")
    scene.wait(lambda: bool(scene.addresses("mngtmpaddr")) and bool(scene.addresses("temporary")), "SLAAC")
    scene.assert_no_leak()
    scene.testbed.machine.start_daemon()
    scene.testbed.machine.wait_state("OPEN")
    assert scene.testbed.page() == plan.SERVER4


@pytest.mark.requirement("R6", "R7", "R19")
@pytest.mark.parametrize("state", ["open", "locked"])
def test_leases_are_renewed_and_rebound_and_addresses_of_the_prefix_change_without_a_transition(
    scene: Scene, state: str
) -> None:
    home, machine = scene.home, scene.testbed.machine
    machine.command("start" if state == "open" else "stop")
    before = machine.wait_state("OPEN" if state == "open" else "LOCKED")
    ends, lease = scene.testbed.watch_ends(), scene.addresses("192.168.77.")
    temporary = set(scene.addresses("temporary"))
    renewals6 = home.count6("Renew")
    assert any(scene.renew() == {ROUTER} for _ in range(3)), (
        "renewed by unicast, at the latest once the router listens again"
    )
    scene.wait(lambda: home.count6("Renew") > renewals6, "DHCPv6 renewed")
    mark, address6 = scene.testbed.world.mark(), home.lend6()
    with home.deaf_to_unicast():
        acks = home.count("DHCPACK")
        # In vain by unicast, then by broadcast.
        scene.wait(lambda: scene.requests(mark) == {ROUTER, EVERYBODY}, "DHCPv4 by broadcast")
        scene.wait(lambda: home.count("DHCPACK") > acks, "DHCPv4 rebound")
    scene.wait(lambda: home.count6("Rebind") > 0, "DHCPv6 rebound")
    scene.wait(lambda: address6 in scene.addresses(), "another address by DHCPv6")
    scene.wait(lambda: bool(set(scene.addresses("temporary")) - temporary), "another temporary address")
    scene.testbed.world.client.call(solicit_router)
    scene.wait(lambda: scene.prefix_lifetime() >= 118, "the prefix advertised anew")
    assert scene.addresses("192.168.77.") == lease
    after = machine.wait_state("OPEN" if state == "open" else "LOCKED")
    assert (ends(), after["core_pid"]) == ([], before["core_pid"])
    if state == "open":
        machine.wait_for(machine.lease_remains, "the lease")
    else:
        assert not machine.lease_remains()
    scene.assert_no_leak()


@pytest.mark.requirement("R6", "R19")
def test_another_address_by_dhcp_is_a_transition_and_ends_in_an_open_tunnel(scene: Scene) -> None:
    machine = scene.testbed.machine
    machine.command("start")
    before = machine.wait_state("OPEN")
    # A server that does not know the lease refuses to renew it.
    scene.home.lend(120)
    scene.wait(lambda: scene.addresses("192.168.77.12") != [], "another address")
    scene.wait(
        lambda: (now := scene.status())["state"] == "OPEN" and now["core_pid"] != before["core_pid"],
        "an open tunnel by another core",
    )
    assert scene.testbed.page() == plan.SERVER4
    assert {flow.client[:-1] for flow in scene.testbed.server.read_flows()} == {"192.168.77.10", "192.168.77.12"}
    scene.assert_no_leak()
