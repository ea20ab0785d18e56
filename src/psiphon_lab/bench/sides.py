# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sides of every comparison: the bare core and the service, each in a world of its own, equal to the other's.

Both worlds are open at the same time, so the sides can be measured in turn without taking anything apart between two
rounds. The far end of the load runs in both.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from psiphon_lab import addresses as plan
from psiphon_lab.bare_core import BareCore
from psiphon_lab.machine import Machine
from psiphon_lab.pages import fetch_page
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.service_adapter import names
from psiphon_lab.tunnel_ends import RealPrograms, Tunnel, open_tunnel
from psiphon_lab.waiting import wait_ready
from psiphon_lab.world import World

LOAD = "psiphon_lab.bench.load"
WAKE_UPS = "wake-ups"
LOAD_SECONDS = 300.0


class Side(Protocol):
    """One side. device: what an application must be bound to so that it uses the tunnel; resolver: what it asks."""

    world: World
    device: str
    resolver: str

    def read_core(self) -> int:
        """The core's process id, once there is a tunnel."""


class Bare:
    """The bare core."""

    device = names.TUN_NAME
    resolver = plan.RESOLVER4

    def __init__(self, world: World, core: BareCore) -> None:
        self.world = world
        self.core = core

    def read_core(self) -> int:
        """The core's process id."""
        return self.core.pid


class Product:
    """The service."""

    device = ""
    resolver = plan.LAN_A.router4

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine

    def read_core(self) -> int:
        """The core's process id, once the service is open and pages come."""
        machine = self.machine
        status = machine.wait_state("OPEN")
        machine.wait_for(lambda: fetch_page(self.world.client) is not None, "a page")
        pid = status["core_pid"]
        assert isinstance(pid, int)
        return pid

    def restart(self) -> None:
        """Begin anew with another core, and without the delays that earlier openings caused."""
        self.machine.command("restart")
        self.read_core()


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both."""

    bare: Bare
    product: Product


@contextlib.contextmanager
def open_world(real: RealPrograms | None, *, load: bool = True) -> Iterator[Tunnel]:
    """A world with both ends of a tunnel and, if wanted, the far end of the load."""
    with open_tunnel(real, fast=True, captures=False) as tunnel:
        if load:
            far_end = tunnel.world.internet.spawn_module("psiphon_lab.bench.far_end", stdout=subprocess.PIPE)
            wait_ready(far_end, "the far end of the load")
        yield tunnel


@contextlib.contextmanager
def open_bare(real: RealPrograms | None) -> Iterator[Bare]:
    """A bare core with a tunnel."""
    with open_world(real) as tunnel, BareCore(tunnel.world, tunnel.core, tunnel.server.entry) as core:
        core.start()
        core.wait_tunnel()
        core.wait_page()
        yield Bare(tunnel.world, core)


@contextlib.contextmanager
def open_product(real: RealPrograms | None, *, load: bool = True) -> Iterator[Product]:
    """The service, with an open tunnel. Its daemon counts its wake-ups."""
    with open_world(real, load=load) as tunnel:
        entry = tunnel.server.entry
        with Machine(tunnel.world, core=tunnel.core, entry=lambda: entry) as machine:
            machine.program = ["-m", "psiphon_lab.counted_daemon", str(machine.state_dir / WAKE_UPS)]
            machine.boot_lock()
            machine.hold_guard()
            machine.start_daemon()
            product = Product(tunnel.world, machine)
            product.read_core()
            yield product


@contextlib.contextmanager
def open_sides(real: RealPrograms | None) -> Iterator[Sides]:
    """Both sides, open."""
    with open_bare(real) as bare, open_product(real) as product:
        yield Sides(bare=bare, product=product)


def _order(side: Side, kind: str, options: dict[str, Any]) -> list[str]:
    known = {"device": side.device, "resolver": side.resolver, "pid": side.read_core(), "family": 4}
    return [sys.executable, "-m", LOAD, kind, json.dumps({**known, **options})]


def run_load(side: Side, kind: str, **options: Any) -> dict[str, Any]:
    """Put a load of `load.py` on a side, as an ordinary user, and wait for its end. Raises LabError if it fails."""
    argv = _order(side, kind, options)
    found = side.world.client.run(argv, uid=NOBODY, gid=NOBODY, timeout=LOAD_SECONDS).stdout
    return dict(json.loads(found))


@contextlib.contextmanager
def hold_flows(side: Side, flows: int) -> Iterator[None]:
    """Have an application hold so many connections during the block."""
    argv = _order(side, "hold", {"flows": flows})
    child = side.world.client.spawn(argv, uid=NOBODY, gid=NOBODY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        wait_ready(child, f"{flows} connections", timeout=LOAD_SECONDS)
        yield
    finally:
        child.kill()
        child.wait()
