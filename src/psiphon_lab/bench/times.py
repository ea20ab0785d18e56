# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the service takes to open, close and reopen: from the event to a page answered, or to closed; milliseconds.

A change of network counts from the kernel's announcement of it, anything else from the moment at which it is done.
While a time runs, the daemon is not asked for its status: that would delay it.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.announcements import Announcements
from psiphon_lab.bare_core import QUICK_SECONDS
from psiphon_lab.bench.sides import Product
from psiphon_lab.commit_watch import CommitWatch
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.service_adapter.daemon import build_quick_command
from psiphon_lab.service_adapter.kernel_events import iterate_messages
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

BYTE_CODE = "byte-code"
RTMGRP_IPV4_ROUTE = 0x40
RTM_NEWROUTE = 24
RT_TABLE_MAIN = 254
_ROUTE = struct.Struct("=BBBBB")
"""The beginning of struct rtmsg: family, length of the destination, of the source, type of service, table."""


def _open_route_monitor() -> socket.socket:
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    monitor.bind((0, RTMGRP_IPV4_ROUTE))
    return monitor


class RouteWatch(Announcements):
    """When the kernel announced a default route of IPv4, while the block runs. Times are of time.monotonic()."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, _open_route_monitor)
        self.announced: list[float] = []

    def receive(self, number: int, now: float, data: bytes) -> None:
        """Handle a message."""
        for kind, body in iterate_messages(data):
            if kind == RTM_NEWROUTE and len(body) >= _ROUTE.size:
                _family, length, _source, _service, table = _ROUTE.unpack_from(body)
                self.announced += [now] if (length, table) == (0, RT_TABLE_MAIN) else []


def move(world: World) -> None:
    """Move the client to the other provider, as when a cable is moved."""
    here, there = (LAN_A, LAN_B) if world.uplink is LAN_A else (LAN_B, LAN_A)
    world.disconnect_uplink(here)
    world.connect_uplink(there)


def replug(world: World) -> None:
    """Pull the cable, and put it in again."""
    here = world.uplink
    world.disconnect_uplink(here)
    world.connect_uplink(here)


def _wait_page(machine: Machine, commits: CommitWatch, begin: float) -> float:
    """The milliseconds from a moment to a page. Pages are asked for only when the lease is set."""
    machine.wait_for(lambda: commits.opened_after(begin, pid=machine.daemon_pid) is not None, "an open tunnel")
    wait_until(
        lambda: fetch_page(machine.client, seconds=QUICK_SECONDS) is not None,
        "a page",
        pause=0.005,
    )
    return (time.monotonic() - begin) * 1000


def _run_command(machine: Machine, word: str) -> subprocess.Popen[bytes]:
    argv = [*build_quick_command(machine.runtime_dir, machine.state_dir / BYTE_CODE), word]
    return machine.client.spawn(argv, stdout=subprocess.DEVNULL)


def _end_well(child: subprocess.Popen[bytes]) -> None:
    if child.wait() != 0:
        raise LabError("the command failed")


def measure_started(product: Product, *, command: bool) -> float:
    """From `start` to a page, of a service that was stopped.

    command: call the command as it is installed; otherwise only send what it sends.
    """
    machine = product.machine
    machine.command("stop")
    machine.wait_for(lambda: (machine.read_status() or {}).get("core_pid") is None, "the end of the core")
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        child = _run_command(machine, "start") if command else None
        if child is None:
            machine.command("start")
        took = _wait_page(machine, commits, begin)
        if child is not None:
            _end_well(child)
        return took


def measure_stopped(product: Product) -> float:
    """From the call of `stop` to the end of the core. The service is started again."""
    machine, pid = product.machine, product.read_core()
    begin = time.monotonic()
    child = _run_command(machine, "stop")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the core", pause=0.001)
    took = (time.monotonic() - begin) * 1000
    _end_well(child)
    machine.command("start")
    product.read_core()
    return took


def measure_killed(product: Product) -> float:
    """From the end of a killed core to a page by the next one."""
    machine, pid = product.machine, product.read_core()
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        os.kill(pid, 9)
        return _wait_page(machine, commits, begin)


def measure_changed(product: Product, change: Callable[[World], None]) -> float:
    """From the kernel's announcement of a new default route to a page."""
    machine = product.machine
    product.read_core()
    with CommitWatch(machine.client) as commits, RouteWatch(machine.client) as routes:
        begin = time.monotonic()
        change(product.world)
        took = _wait_page(machine, commits, begin)
        wait_until(lambda: bool(routes.announced), "the announcement of a default route")
        return took - (routes.announced[0] - begin) * 1000


def measure_closed(product: Product) -> float:
    """From the loss of the carrier to the daemon's next commit, which closes. The cable is put in again."""
    machine, world = product.machine, product.world
    product.read_core()
    here = world.uplink
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        world.disconnect_uplink(here)
        machine.wait_for(lambda: not machine.lease_remains(), "the end of the lease")
        lost = commits.first_loss()
        closed = commits.first_after(lost if lost is not None else begin, pid=machine.daemon_pid)
    world.connect_uplink(here)
    if lost is None or closed is None:
        raise LabError("no announcement that the link was lost, or that the tunnel closed")
    return (closed - lost) * 1000


def measure_woken(product: Product) -> float:
    """From the notice that the machine woke up, as psiphon-sleep.service sends it, to a page."""
    machine = product.machine
    product.read_core()
    machine.command("sleep-begins")
    wait_until(lambda: (machine.read_status() or {}).get("reason_code") == "sleeping", "sleep")
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        machine.command("sleep-ended")
        return _wait_page(machine, commits, begin)
