# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops the stand-in server on the server host, and reads its record."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.judge import Flow
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.world import World, wait_ready

PROGRAM = ("psiphon_lab.standin_server",)


class ServerProcess:
    """A stand-in server. `start` and `stop` may be called again: key, secret and entry stay the same.

    directory: for the server's files, among them its server entries and flows.jsonl. region: if not the place's.
    """

    def __init__(
        self,
        host: Host,
        *,
        directory: Path,
        place: plan.Place = plan.FIRST_PLACE,
        region: str | None = None,
        ipv6: bool = True,
        allow_bogons: bool = True,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._host = host
        self._directory = directory
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = False
        self.place = place
        self._argv = ["--address", place.address4, "--address6", place.address6, "--region", region or place.region]
        self._argv += ["--port", str(plan.SERVER_PORT), "--tls-port", str(plan.SERVER_TLS_PORT)]
        self._argv += ["--directory", str(directory)]
        self._argv += [] if ipv6 else ["--no-ipv6"]
        self._argv += ["--allow-bogons"] if allow_bogons else []

    @property
    def entry(self) -> str:
        """The server entry, for TargetServerEntry."""
        return (self._directory / "server-entry.dat").read_text(encoding="ascii")

    @property
    def entry6(self) -> str:
        """The entry of the same server with its IPv6 address."""
        return (self._directory / "server-entry-ipv6.dat").read_text(encoding="ascii")

    @property
    def pid(self) -> int:
        """The server's process id. Raises LabError if it does not run."""
        if self._child is None:
            raise LabError("the stand-in server does not run")
        return self._child.pid

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._directory.mkdir(parents=True, exist_ok=True)
        child = self._host.spawn_module(*self._program, *self._argv, stdout=subprocess.PIPE)
        wait_ready(child, "the stand-in server")
        self._child = child

    def keep(self) -> None:
        """Leave the server running when its block ends."""
        self._kept = True

    def end(self) -> None:
        """Stop the server, unless it is kept."""
        if not self._kept:
            self.stop()

    def stop(self) -> None:
        """Kill the server; the kernel closes its connections."""
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
            self._child = None

    def read_flows(self) -> frozenset[Flow]:
        """The connections that the server has authenticated, from its own record.

        A later connection may have the ports of an earlier one, so do not subtract such sets: see `list_flows`.
        """
        return frozenset(self.list_flows())

    def list_flows(self) -> list[Flow]:
        """The same in order, with every connection, even if it has the ports of an earlier one."""
        path = self._directory / "flows.jsonl"
        flows: list[Flow] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            fields = json.loads(line)
            flows.append(
                Flow(
                    protocol=6,
                    client=fields["client"],
                    client_port=fields["client_port"],
                    server=fields["server"],
                    server_port=fields["server_port"],
                )
            )
        return flows


@contextlib.contextmanager
def run_server(
    world: World,
    *,
    place: plan.Place = plan.FIRST_PLACE,
    region: str | None = "XX",
    ipv6: bool = True,
    allow_bogons: bool = True,
    program: Sequence[str] = PROGRAM,
) -> Iterator[ServerProcess]:
    """A stand-in server on one of the world's server hosts, listening when the block begins.

    region: None for the place's. program: another module than the stand-in server's, and its first arguments.
    """
    directory = world.directory / place.host
    server = ServerProcess(
        world.hosts[place.host],
        directory=directory,
        place=place,
        region=region,
        ipv6=ipv6,
        allow_bogons=allow_bogons,
        program=program,
    )
    server.start()
    try:
        yield server
    finally:
        server.end()
