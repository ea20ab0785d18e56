# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other DHCP and IPv6 clients than a network manager against real servers, through the lock.

dnsmasq at the provider; at the client dhclient for DHCP, the kernel for router advertisements. See test_networkd.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.testbed import Testbed, open_testbed
from tests.integration.transitions import list_ends

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.frames import decode_packet
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SCRIPT = """#!/bin/sh
# What a network manager does with a lease (dhclient-script(8)).
case "$reason" in
BOUND|RENEW|REBIND|REBOOT)
    ip addr replace "$new_ip_address/$new_subnet_mask" dev "$interface" valid_lft 120 preferred_lft 120
    for old in $(ip -4 -o addr show dev "$interface" | awk '{print $4}'); do
        [ "${old%/*}" = "$new_ip_address" ] || ip addr del "$old" dev "$interface"
    done
    ip route replace default via "$new_routers" dev "$interface" metric 100 proto dhcp ;;
EXPIRE|RELEASE|STOP) ip -4 addr flush dev "$interface" ;;
esac
"""
RENEW_SECONDS, REBIND_SECONDS = 3, 5
"""T1 and T2 (RFC 2131 4.4.5), as the server tells them; the lease itself is of two minutes, the least that it gives."""


def need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.fail(f"missing: {missing}; install the packages dnsmasq-base and isc-dhcp-client")


class Server:
    """dnsmasq on provider A's end of the cable."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self.directory = testbed.world.directory / "dhcp"
        self.directory.mkdir()
        self.log = self.directory / "dnsmasq.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, first: str) -> None:
        """Lease addresses from this one on, over DHCPv4 and DHCPv6, and advertise the router."""
        prefix6 = LAN_A.router6.rsplit("::", 1)[0]
        network = LAN_A.router4.rsplit(".", 1)[0]
        argv = [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--bind-interfaces",
            "--interface=lan", "--log-dhcp", f"--log-facility={self.log}", "--dhcp-authoritative",
            f"--dhcp-leasefile={self.directory}/leases-{first}", f"--pid-file={self.directory}/pid",
            f"--dhcp-range={network}.{first},{network}.{int(first) + 3},2m", f"--dhcp-option=3,{LAN_A.router4}",
            f"--dhcp-option-force=58,{RENEW_SECONDS}", f"--dhcp-option-force=59,{REBIND_SECONDS}", "--enable-ra",
            f"--dhcp-range={prefix6}::a00,{prefix6}::aff,slaac,64,2m", "--no-ping",
        ]  # fmt: skip
        self._child = self._testbed.world.provider_a.spawn(argv, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(timeout=60)
            self._child = None

    def count(self, words: str) -> int:
        """How often its log has these words."""
        return self.log.read_text().count(words) if self.log.exists() else 0


@contextlib.contextmanager
def run_client(testbed: Testbed, server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """dhclient on the client."""
    script = server.directory / "lease.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    config = server.directory / "dhclient.conf"
    config.write_text("request subnet-mask, routers, dhcp-renewal-time, dhcp-rebinding-time;\n")
    at = server.directory
    argv: list[str | Path] = ["dhclient", "-4", "-d", "-cf", config, "-sf", script, "-lf", at / "leases4"]
    child = testbed.world.client.spawn(
        [*argv, "-pf", at / "dhclient4", "eth0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.requirement("R6", "R19")
def test_a_lease_of_a_server_outside_the_private_ranges_is_not_lost_but_rebound_by_broadcast() -> None:
    """The wire guard allows no server outside the private ranges, so a renewal, which is unicast, never leaves."""
    need("dnsmasq", "dhclient")
    with open_testbed(start=False) as testbed:
        client, machine = testbed.world.client, testbed.machine
        client.run(["ip", "-4", "addr", "flush", "dev", "eth0"])
        client.run(["ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"])
        mark = testbed.world.mark()
        server = Server(testbed)
        server.start("100")
        machine.start_daemon()
        assert machine.wait_state("LOCKED")["reason_code"] == "no_uplink"
        with run_client(testbed, server):
            status = machine.wait_state("OPEN")
            first = server.count("DHCPACK")
            assert first >= 1, "the first lease came through the lock"
            machine.wait_for(lambda: server.count("DHCPACK") > first, "the lease, rebound while open")
            testbed.let_it_renew()
            after = testbed.read_status()
            assert (list_ends(machine.read_log()), after["core_pid"]) == ([], status["core_pid"]), "no transition"
            packets = [decode_packet(frame.data[14:]) for frame in testbed.world.frames_since(mark)]
            asked = {packet.destination for packet in packets if packet is not None and packet.destination_port == 67}
            assert asked == {"255.255.255.255"}
            assert testbed.page() == plan.SERVER4
        server.stop()
        testbed.assert_no_leak(mark)


@pytest.mark.requirement("R7", "R19")
def test_router_advertisements_and_dhcpv6_go_through_the_lock() -> None:
    need("dnsmasq", "dhclient")
    with open_testbed(start=False) as testbed:
        client, machine = testbed.world.client, testbed.machine
        machine.start_daemon()
        machine.command("stop")
        client.run(["ip", "-6", "route", "flush", "default"])
        client.run(["ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"])
        mark = testbed.world.mark()
        server = Server(testbed)
        server.start("100")

        def accept_advertisements() -> None:
            # The client forwards for its containers; with 2 it accepts advertisements all the same (ip-sysctl.rst).
            Path("/proc/sys/net/ipv6/conf/eth0/accept_ra").write_text("2")

        client.call(accept_advertisements)
        machine.wait_for(lambda: "proto ra" in client.run(["ip", "-6", "route", "show", "default"]).stdout, "a route")
        assert "mngtmpaddr" in client.run(["ip", "-6", "addr", "show", "dev", "eth0"]).stdout
        lease = server.directory / "dhclient6.leases"
        argv: list[str | Path] = [
            "dhclient",
            "-6",
            "-1",
            "-d",
            "-sf",
            "/bin/true",
            "-lf",
            lease,
            "-pf",
            server.directory / "dhclient6",
        ]
        asking = client.spawn([*argv, "eth0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            machine.wait_for(lambda: server.count("DHCPREPLY") >= 1, "an address from DHCPv6")
        finally:
            asking.kill()
            asking.wait()
        assert testbed.read_status()["locked"] is True
        server.stop()
        testbed.assert_no_leak(mark)


@pytest.mark.requirement("R1", "R19")
def test_the_allowance_for_dhcp_is_no_wider_than_the_clients_need() -> None:
    """From another user, to another address or from another port, the same packets do not leave."""

    def send(uid: int, source: int, target: str, port: int) -> str:
        code = (
            "import socket,sys\n"
            "s=socket.socket(socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')\n"
            "s.bind(('', int(sys.argv[1])))\n"
            "try:\n s.sendto(b'psiphon-dhcp-probe', (sys.argv[2], int(sys.argv[3]))); print('sent')\n"
            "except OSError as e: print(e.errno)\n"
        )
        argv = ["python3", "-c", code, str(source), target, str(port)]
        return client.run(argv, uid=uid, gid=uid, ambient=("net_bind_service",), bounding=("net_bind_service",)).stdout

    with open_testbed(start=False) as testbed:
        client = testbed.world.client
        mark = testbed.world.mark()
        for uid, source, target, port in (
            (65534, 68, "255.255.255.255", 67),
            (65534, 68, LAN_A.router4, 67),
            (0, 68, plan.INTERNET4, 67),
            (0, 68, "255.255.255.255", 53),
            (0, 1068, "255.255.255.255", 67),
            (0, 546, plan.INTERNET6, 547),
            (65534, 546, "ff02::1:2", 547),
            (0, 1546, "ff02::1:2", 547),
        ):
            send(uid, source, target, port)
        frames = [frame for frame in testbed.world.frames_since(mark) if b"psiphon-dhcp-probe" in frame.data]
        assert not frames
        send(0, 68, "255.255.255.255", 67)

        def came() -> int:
            return sum(b"psiphon-dhcp-probe" in frame.data for frame in testbed.world.frames_since(mark))

        wait_until(lambda: came() > 0, "the positive control: root, from 68 to 67, to everybody on this link")
        assert came() == 1
