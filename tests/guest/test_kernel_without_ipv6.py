# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines booted with `ipv6.disable=1`: the rules load, the service opens IPv4, and nothing else leaves.

The kernel has the module and refuses everything about the family (Documentation/networking/ipv6.rst). What the tests on
network namespaces pretend is real here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.guest.service import GuestService

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.guest.guest import Card, Guest
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.probe import probe_specs
from psiphon_lab.probe_runner import NOBODY, unseen_probes
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.world import World

pytestmark = [pytest.mark.requirement("R7")]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclass(frozen=True)
class Bench:
    """A guest in the client's place: its card's cable ends in the client's host, which is but a bridge."""

    guest: Guest
    world: World
    server: ServerProcess


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("guest")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        server = stack.enter_context(run_server(world))
        client = world.client
        client.set_sysctls({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        client.run(["ip", "address", "flush", "dev", LAN_A.interface])
        client.run(["ip", "link", "set", LAN_A.interface, "address", "02:50:53:00:0f:01"])
        client.run(["ip", "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"])
        client.run(["ip", "link", "set", LAN_A.interface, "master", "switch"])
        client.run(["ip", "link", "set", "switch", "up"])
        guest = stack.enter_context(
            Guest(
                client,
                kernel,
                cards=[Card(tap="wire", mac=LAN_A.mac)],
                modules=(*NFT_MODULES, "nft_socket"),
                directory=directory,
                parameters=["ipv6.disable=1"],
            )
        )
        client.run(["ip", "link", "set", "wire", "master", "switch", "up"])
        guest.run(
            f"""
            set -e
            ip link set eth0 up
            ip address add {LAN_A.client4}/{LAN_A.prefix4} dev eth0
            ip route add default via {LAN_A.router4} dev eth0 proto dhcp metric 100
            echo "nameserver {LAN_A.router4}" >/etc/resolv.conf
            """
        )
        yield Bench(guest, world, server)


def test_it_has_no_ipv6(bench: Bench) -> None:
    assert "ipv6" not in bench.guest.run("ls /proc/sys/net").output.split()
    assert bench.guest.run("ip -6 rule", check=False).code != 0


def test_every_reviewed_ruleset_loads(bench: Bench) -> None:
    paths = sorted(GOLDEN.glob("*.nft"))
    assert len(paths) >= 11
    for path in paths:
        shutil.copy(path, bench.guest.exchange / path.name)
        bench.guest.run(f"nft -f /exchange/{path.name}")
    bench.guest.run("nft flush ruleset")


@pytest.mark.timeout(900)
def test_the_service_opens_ipv4_and_nothing_else_leaves(bench: Bench) -> None:
    service = GuestService(bench.guest, entry=bench.server.entry)
    specs = probe_specs(salt=1, label="root")
    mark = bench.world.mark()
    page = next(spec.id for spec in specs if spec.id == "root-tcp-ipv4-internet-plain")
    assert service.run_probes(specs, uid=0)[page] == LAN_A.client4, "the control: without the service it goes out"
    unseen = {spec.id for spec in unseen_probes(specs, bench.world.frames_since(mark)) if spec.family == 4}
    assert not unseen
    service.lock()
    service.start()
    assert service.wait_open()["ipv6_off"] == "absent"
    mark = bench.world.mark()
    specs = probe_specs(salt=2, label="root")
    assert service.run_probes(specs, uid=0)[page] == plan.SERVER4
    others = probe_specs(salt=3, label="user")
    service.run_probes(others, uid=NOBODY)
    frames = bench.world.frames_since(mark)
    assert len(unseen_probes([*specs, *others], frames)) == len(specs) + len(others)
    leaks = find_leaks(frames, world_evidence(bench.server.read_flows()))
    assert not leaks, [leak.text for leak in leaks[:10]]
