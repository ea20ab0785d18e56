"""A world with the real service on its client, for attacks: locked as an installation locks it, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.frames import Frame
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.trial import TunnelServer
from psiphon_lab.tunnel_ends import RealPrograms, open_tunnel
from psiphon_lab.world import World

Mark = dict[str, int]


@dataclass
class Stage:
    """World, server and machine. faults: the file that the stand-in core reads. begun: what ran before the lock."""

    world: World
    server: TunnelServer
    machine: Machine
    faults: Path
    begun: dict[str, Any] = field(default_factory=dict)

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Tell the stand-in core how to misbehave; nothing means well."""
        write_faults(self.faults, *faults)

    def lock(self) -> None:
        """What happens at boot: the base rules by plain nft, and the holder of the guards."""
        self.machine.boot_lock()
        self.machine.hold_guard()

    def record_since(self, mark: Mark) -> tuple[list[Frame], dict[str, int]]:
        """Frames in both directions since a mark, by time, and how many each capture lost; -1 where it broke off."""
        frames: list[Frame] = []
        dropped: dict[str, int] = {}
        for wire, capture in self.world.captures.items():
            try:
                frames += capture.frames_since(mark[wire])
                dropped[wire] = capture.dropped if capture.alive else -1
            except LabError:
                dropped[wire] = -1
        return sorted(frames, key=lambda frame: frame.time), dropped


@contextlib.contextmanager
def open_stage(directory: Path | None = None, real: RealPrograms | None = None) -> Iterator[Stage]:
    """A stage whose machine is not locked yet, with nothing of the service running. real: instead of the stand-ins."""
    with open_tunnel(real, directory=directory) as tunnel:
        world = tunnel.world
        if real is None:
            # No program of the client gets a port of the core's by chance; no attempt asks for one.
            world.client.set_sysctls({"ipv4/ip_local_reserved_ports": f"{CORE_PORTS.start}-{CORE_PORTS.stop - 1}"})
        else:
            # A real core gets its ports from the kernel. Attempts that call the server bind ports outside this range.
            world.client.set_sysctls({"ipv4/ip_local_port_range": f"{CORE_PORTS.start} {CORE_PORTS.stop - 1}"})
        with Machine(world, core=tunnel.core, entry=lambda: tunnel.server.entry) as machine:
            yield Stage(world, tunnel.server, machine, tunnel.faults)
