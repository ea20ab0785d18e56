# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A card that root renames to "lo" or to the TUN's name is a wire like any other, for each layer alone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.integration.kernel import open_kernel
from tests.integration.testbed import open_testbed
from tests.policies import IDENTITY

from psiphon_lab.addresses import LAN_A
from psiphon_lab.namespace import Host
from psiphon_lab.probe import probe_specs
from psiphon_lab.probe_runner import NOBODY, run_probes, unseen_probes
from psiphon_lab.world import World
from psiphon_vpn.cli.view import render_text
from psiphon_vpn.config import Settings
from psiphon_vpn.linux.features import probe_features
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.names import TUN_NAME
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

LO = replace(LAN_A, interface="lo")


def rename(client: Host, name: str = "lo") -> None:
    """Rename the card to loopback's name or the TUN's, as root may, and set it up again."""
    client.run(
        ["ip", "-batch", "-"],
        input="link set lo down\nlink set lo name lo0\nlink set lo0 up\n"
        f"link set eth0 down\nlink set eth0 name {name}\nlink set {name} up\n"
        f"addr replace {LAN_A.client4}/{LAN_A.prefix4} dev {name}\n"
        f"addr replace {LAN_A.client6}/{LAN_A.prefix6} dev {name} nodad\n"
        f"route replace default via {LAN_A.router4} dev {name} metric 100 proto dhcp\n"
        f"route replace default via {LAN_A.router6} dev {name} metric 100 proto ra\n",
    )


def _speaks_to_itself() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address, timeout=30):
            return True


def _only(table: Table, *chains: str) -> Table:
    """The table with only some of its hooks, and all chains that these may jump to."""
    return replace(table, chains=tuple(chain for chain in table.chains if not chain.hook or chain.name in chains))


def _layers(name: str = "lo") -> dict[str, Table | None]:
    base = build_base_table(Policy(state=State.LOCKED, identity=IDENTITY))
    guard = replace(build_wire_guard(IDENTITY), flags="")
    drop = build_drop_only(base)
    named = parse_names(name)
    frames = build_frame_guard(IDENTITY, named)
    assert frames is not None
    return {
        "nothing": None,
        "base table: output": _only(base, "output"),
        "base table: postrouting": _only(base, "postrouting"),
        "drop-only table: output": _only(drop, "output"),
        "drop-only table: postrouting": _only(drop, "postrouting"),
        "wire guard: output": _only(guard, "output"),
        "wire guard: postrouting": _only(guard, "postrouting"),
        "egress guard": build_egress_guard(IDENTITY, named),
        "frame guard": replace(frames, flags=""),
    }


@pytest.fixture(scope="module", params=["lo", TUN_NAME])
def called(request: pytest.FixtureRequest) -> Iterator[tuple[World, str]]:
    with World() as made:
        rename(made.client, request.param)
        yield made, request.param


@pytest.mark.requirement("R2", "R19", "B3", "B4")
@pytest.mark.parametrize("layer", _layers())
def test_each_layer_alone_takes_a_card_with_the_name_of_loopback_or_the_tun_for_a_wire(
    called: tuple[World, str], layer: str
) -> None:
    world, name = called
    table = _layers(name)[layer]
    client, salt = world.client, list(_layers()).index(layer) * 2
    if table is not None:
        client.run(["nft", "-f", "-"], input=table.render())
    try:
        mark, specs = world.mark(), []
        for number, (label, uid) in enumerate((("root", 0), ("user", NOBODY))):
            own = probe_specs(salt=salt + number, interface=name, label=label)
            specs += list(own)
            run_probes(client, own, uid=uid)
        unseen = unseen_probes(specs, world.frames_since(mark))
        assert len(unseen) == (0 if table is None else len(specs))
        assert client.call(_speaks_to_itself), "loopback itself"
    finally:
        client.run(["nft", "flush", "ruleset"])


@pytest.mark.requirement("R6", "R19")
def test_with_the_service_a_card_that_takes_the_name_of_loopback_leaks_nothing() -> None:
    with open_testbed() as testbed:
        # The reverse-path check knows loopback by its name, in the routing rules.
        testbed.world.client.set_sysctls({"ipv4/conf/all/rp_filter": 1})
        rename(testbed.world.client)
        testbed.probe(LO)
        status = testbed.machine.wait_state("OPEN")
        assert status["locked"] is True
        assert status["uplink"]["interface"] == "lo"
        testbed.probe(LO)
        port = Settings().socks_port
        testbed.world.client.call(lambda: socket.create_connection(("127.0.0.1", port), timeout=30).close())


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("called", ["within", 'a"b'])
def test_the_hook_of_the_egress_guard_is_found_whatever_loopback_is_called(called: str) -> None:
    """Before Linux 6.16 the kernel refuses a chain for a missing interface; later kernels accept it."""
    with open_kernel() as kernel:
        kernel.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        usual = kernel.host.call(lambda: asyncio.run(probe_features()))
        kernel.ip("link", "set", "lo", "down", "name", called)
        assert kernel.host.call(lambda: asyncio.run(probe_features())) == usual
        assert usual.egress_hook, "the positive control needs Linux 5.16"


@pytest.mark.requirement("R19")
def test_a_card_that_moves_into_another_network_namespace_is_reported_as_long_as_it_is_away() -> None:
    with open_testbed() as testbed:
        client, machine = testbed.world.client, testbed.machine
        argv = ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 120"]
        other = client.spawn(argv, stdout=subprocess.PIPE)
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"

        def moved() -> object:
            return (machine.read_status() or {}).get("moved_away")

        client.run(["ip", "link", "set", "eth0", "netns", str(other.pid)])
        machine.wait_for(lambda: moved() == ["eth0"], "the move in the status")
        assert "Beware:" in render_text(machine.read_status() or {})
        assert "eth0 now belongs to another network namespace" in machine.read_log()
        back = ["ip", "link", "set", "eth0", "netns", str(client.pid)]
        client.run(["nsenter", "--target", str(other.pid), "--net", *back])
        machine.wait_for(lambda: moved() == [], "its return in the status")
