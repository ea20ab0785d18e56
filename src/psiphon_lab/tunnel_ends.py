"""Both ends of a laboratory's tunnel: the stand-ins (test instruments), or real programs that a user brings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psiphon_lab.real_server import run_real_server
from psiphon_lab.server_process import run_server
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.trial import TunnelServer
from psiphon_lab.world import World

_REAL_WRAPPER = """#!/bin/sh
# A real psiphon-tunnel-core cannot be told to misbehave. This script can only make it end at once.
if grep -q '"exit"' '{faults}'; then exit 1; fi
exec '{core}' "$@"
"""


@dataclass(frozen=True, kw_only=True)
class RealPrograms:
    """A psiphon-tunnel-core and a psiphond."""

    core: Path
    server: Path


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """A world with a server that listens, and the program that is the core.

    Attributes:
        core: what the service starts.
        faults: the file that tells the stand-in core how to misbehave. It can only end a real core at its start.
    """

    world: World
    server: TunnelServer
    core: Path
    faults: Path


@contextlib.contextmanager
def open_tunnel(real: RealPrograms | None = None, **world_options: Any) -> Iterator[Tunnel]:
    """A world with both ends of a tunnel at hand.

    Args:
        real: real programs instead of the stand-ins.
        world_options: for `World`.

    Raises:
        UserError: what psiphond itself needs is not there.
    """
    with contextlib.ExitStack() as stack:
        expose = () if real is None else (real.core, real.server)
        world = stack.enter_context(World(expose=expose, **world_options))
        place = world.directory / "core"
        place.mkdir()
        place.chmod(0o755)
        faults = place / "faults.json"
        write_faults(faults)
        if real is None:
            server: TunnelServer = stack.enter_context(run_server(world))
            core = write_core_wrapper(place, faults)
        else:
            server = stack.enter_context(run_real_server(world, real.server))
            core = place / "psiphon-tunnel-core"
            core.write_text(_REAL_WRAPPER.format(faults=faults, core=real.core), encoding="utf-8")
            core.chmod(0o755)
        yield Tunnel(world=world, server=server, core=core, faults=faults)
