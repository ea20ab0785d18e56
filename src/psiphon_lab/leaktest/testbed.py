# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A world with the real service on its client, for attacks: locked as an installation locks it, or without a lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.frames import Frame
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.service_adapter.boot_lock import remove_filters
from psiphon_lab.service_adapter.names import TUN_NAME
from psiphon_lab.service_adapter.routing import list_rules
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.step import TunnelServer
from psiphon_lab.tunnel_ends import RealPrograms, open_tunnel
from psiphon_lab.world import World

Mark = dict[str, int]


@dataclass
class Outside:
    """What is outside the machine under test: the world with the captures, and the tunnel's server."""

    world: World
    server: TunnelServer

    def record_since(self, mark: Mark) -> tuple[list[Frame], dict[str, int]]:
        """Frames in both directions since a mark, by time, and how many each capture lost; -1 if it broke off."""
        frames: list[Frame] = []
        dropped: dict[str, int] = {}
        for wire, capture in self.world.captures.items():
            try:
                frames += capture.frames_since(mark[wire])
                dropped[wire] = capture.dropped if capture.alive else -1
            except LabError:
                dropped[wire] = -1
        return sorted(frames, key=lambda frame: frame.time), dropped

    def signal_server(self, number: int) -> None:
        """Send the server a signal, such as SIGSTOP or SIGCONT."""
        os.killpg(self.server.pid, number)


@dataclass
class Testbed(Outside):
    """With the machine in it. faults: the stand-in core's file. begun: by attack, what ran before the lock."""

    machine: Machine
    faults: Path
    begun: dict[str, Any] = field(default_factory=dict)

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Set the stand-in core's faults."""
        write_faults(self.faults, *faults)

    def lock(self) -> None:
        """Lock the machine as at boot: load the base rules with plain nft, and start the holder."""
        self.machine.boot_lock()
        self.machine.hold_guard()

    def unlock(self) -> None:
        """Take away everything of the service, as if there had been none since the machine was started."""
        client = self.world.client
        self.machine.kill_daemon()
        client.run(["ip", "link", "del", TUN_NAME], check=False)
        client.run(["nft", "flush", "ruleset"])
        self.machine.release_guard()
        client.call(remove_filters)
        for version, priority in sorted(list_rules(self.machine.identity)):
            client.run(["ip", f"-{version}", "rule", "del", "priority", str(priority)], check=False)


def reserve_core_ports(world: World) -> None:
    """Have the kernel give no other program of the client one of the stand-in core's ports. No shot binds one."""
    world.client.set_sysctls({"ipv4/ip_local_reserved_ports": f"{CORE_PORTS.start}-{CORE_PORTS.stop - 1}"})


@contextlib.contextmanager
def open_testbed(directory: Path | None = None, real: RealPrograms | None = None) -> Iterator[Testbed]:
    """A testbed whose machine has neither lock nor daemon yet. real: real programs instead of the stand-ins."""
    with open_tunnel(real, directory=directory) as tunnel:
        world = tunnel.world
        if real is None:
            reserve_core_ports(world)
        else:
            # A real core gets its ports from the kernel. Shots at the server bind ports outside this range.
            world.client.set_sysctls({"ipv4/ip_local_port_range": f"{CORE_PORTS.start} {CORE_PORTS.stop - 1}"})
        with Machine(world, core=tunnel.core, entry=lambda: tunnel.server.entry) as machine:
            yield Testbed(world, tunnel.server, machine, tunnel.faults)
