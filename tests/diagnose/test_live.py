# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`--live` sees what leaves, and says what it cannot see."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from tests.diagnose.scene import HealthyKernel, open_healthy_kernel
from tests.integration.testbed import open_testbed

from psiphon_lab.world import World
from psiphon_vpn.diagnose import live, live_probes
from psiphon_vpn.diagnose.model import EXIT_OPEN, Verdict, find_exit_code
from psiphon_vpn.policy.names import ACCEPTED_BIT

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R15", "R17")]

PACKET_QDISC_BYPASS = 20
MARKED = f"meta mark set meta mark or {ACCEPTED_BIT:#x} accept"
"""As the guards accept: the filter at the card's traffic control drops what lacks the mark."""


@pytest.fixture
def kernel() -> Iterator[HealthyKernel]:
    with open_healthy_kernel() as made:
        yield made


def test_a_locked_machine_shows_no_probe_and_the_watch_was_awake(kernel: HealthyKernel) -> None:
    report = kernel.host.call(lambda: live.run_live(("eth0",)))
    (wire,) = report.wires
    assert (wire.seen, wire.control, wire.lost) == ((), True, 0)
    (result,) = live.to_results(report)
    assert result.verdict is Verdict.OK


def test_without_a_lock_every_kind_of_probe_is_seen() -> None:
    # The positive control of the test above: a world with routers that answer, and no service at all.
    with World() as world:
        report = world.client.call(lambda: live.run_live(("eth0",)))
    (wire,) = report.wires
    missing = {one.probe.name for one in report.sent} - set(wire.seen)
    assert missing == set()
    (result,) = live.to_results(report)
    assert result.open
    assert find_exit_code((result,)) == EXIT_OPEN


def test_a_hole_for_one_user_is_seen(kernel: HealthyKernel) -> None:
    kernel.release_guard()
    for table in ("inet psiphon_filter output", "inet psiphon_filter postrouting"):
        kernel.nft(f"insert rule {table} meta skuid {live_probes.NOBODY} udp dport 443 accept\n")
    hole = f"meta skuid {live_probes.NOBODY} udp dport 443 {MARKED}"
    kernel.nft(f"insert rule netdev psiphon_egress frames {hole}\n")
    # Nobody answers here, so only the ARP request for the target is seen; it may name no address from elsewhere.
    kernel.nft(f"insert rule netdev psiphon_egress frames meta protocol arp {MARKED}\n")
    report = kernel.host.call(lambda: live.run_live(("eth0",)))
    assert report.wires[0].seen
    assert {name.split(", ")[0] for name in report.wires[0].seen} <= {"udp IPv4 of a user", "udp IPv6 of a user"}


def test_the_watch_says_so_when_it_sees_nothing_at_all(kernel: HealthyKernel) -> None:
    kernel.nft("insert rule netdev psiphon_egress frames meta protocol 0x0806 drop\n")
    report = kernel.host.call(lambda: live.run_live(("eth0",)))
    (result,) = live.to_results(report)
    assert result.verdict is Verdict.UNKNOWN
    assert find_exit_code((result,)) == 1


def count_frames(kernel: HealthyKernel, wire: str, marker: bytes, *, bypass: bool) -> int:
    """Send one raw frame from eth0; returns how many of it a packet socket on `wire` receives."""

    def inside() -> int:
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as watch,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender,
        ):
            watch.bind((wire, live.ETH_P_ALL))
            watch.settimeout(0.3)
            sender.bind(("eth0", 0))
            if bypass:
                sender.setsockopt(live.SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            with contextlib.suppress(OSError):
                sender.send(bytes(6) + b"\x02\0\0\0\0\1" + b"\x08\x00" + marker.ljust(60, b"\0"))
            count, deadline = 0, time.monotonic() + 0.3
            while time.monotonic() < deadline:
                try:
                    count += marker in watch.recv(2048)
                except TimeoutError:
                    break
            return count

    return kernel.host.call(inside)


def test_a_packet_socket_is_shown_a_frame_behind_the_egress_hook(kernel: HealthyKernel) -> None:
    kernel.release_guard()  # the frame guard would stop it too
    marker = b"behind-or-before"
    assert count_frames(kernel, "eth0", marker, bypass=False) == 0
    kernel.nft(f"insert rule netdev psiphon_egress frames {MARKED}\n")
    assert count_frames(kernel, "eth0", marker, bypass=False) == 1


def test_a_frame_around_the_queue_is_stopped_by_the_egress_hook_and_not_shown_to_the_watch(
    kernel: HealthyKernel,
) -> None:
    kernel.release_guard()  # the frame guard would stop it too
    marker = b"around-the-queue"
    assert count_frames(kernel, "far0", marker, bypass=True) == 0
    kernel.nft("insert rule netdev psiphon_egress frames accept\n")
    assert count_frames(kernel, "far0", marker, bypass=True) == 1
    assert count_frames(kernel, "eth0", marker, bypass=True) == 0


def test_an_open_tunnel_carries_the_plain_probes_and_no_wire_shows_one() -> None:
    with open_testbed() as testbed:
        mark = testbed.world.mark()
        report = testbed.world.client.call(lambda: live.run_live(("eth0",)))
        frames = testbed.world.frames_since(mark)
    assert report.wires[0].seen == ()
    assert report.wires[0].control
    # The frames are captured outside: the watch inside did not just miss them.
    assert not [frame for frame in frames if any(one.probe.token in frame.data for one in report.sent)]


@pytest.mark.parametrize("wires", [1, 3, 17])
def test_no_two_probes_have_the_same_target_while_there_are_enough(wires: int) -> None:
    """A request for a target's link-layer address has no token: only the target shows which probe it belongs to."""
    probes = live_probes.list_probes(tuple(f"eth{number}" for number in range(wires)), ())
    targets = [probe.target for probe in probes]
    assert len(set(targets)) == len(targets)


def test_where_there_are_more_probes_than_targets_none_goes_without_one() -> None:
    probes = live_probes.list_probes(tuple(f"eth{number}" for number in range(30)), ())
    assert {probe.target for probe in probes if probe.version == 4} == set(live_probes.TARGETS4)
