# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a tunnel in the laboratory: the stand-ins (test instruments), or real programs that a user provides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psiphon_lab import server_process, standin_core
from psiphon_lab.real_server import run_real_server
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.step import TunnelServer
from psiphon_lab.world import World

FAST_SERVER = ("psiphon_lab.bench.carrier", "server")
FAST_CORE = "psiphon_lab.bench.carrier core"
_REAL_WRAPPER = """#!/bin/sh
# A real psiphon-tunnel-core cannot simulate faults. This script can only make it end at once.
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
    """A world with a server that listens, and a core.

    Attributes:
        core: the program that the service starts as its core.
        faults: the file with the stand-in core's faults. With a real core it can only prevent the start.
    """

    world: World
    server: TunnelServer
    core: Path
    faults: Path


@contextlib.contextmanager
def open_tunnel(real: RealPrograms | None = None, *, fast: bool = False, **world_options: Any) -> Iterator[Tunnel]:
    """A world with both ends of a tunnel.

    Args:
        real: real programs instead of the stand-ins.
        fast: stand-ins that only carry (`bench/carrier.py`), if there are no real ones.
        world_options: for `World`.

    Raises:
        UserError: a program that psiphond needs is missing.
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
            far, near = (FAST_SERVER, FAST_CORE) if fast else (server_process.PROGRAM, standin_core.PROGRAM)
            server: TunnelServer = stack.enter_context(server_process.run_server(world, program=far))
            core = standin_core.write_core_wrapper(place, faults, program=near)
        else:
            server = stack.enter_context(run_real_server(world, real.server))
            core = place / "psiphon-tunnel-core"
            core.write_text(_REAL_WRAPPER.format(faults=faults, core=real.core), encoding="utf-8")
            core.chmod(0o755)
        yield Tunnel(world=world, server=server, core=core, faults=faults)
