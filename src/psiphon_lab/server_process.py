"""The stand-in server as the lab handles it: started on the server host, stopped, asked for its record."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.judge import Flow
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.world import World, wait_ready


class ServerProcess:
    """A stand-in server. `start` and `stop` may be called again: key, secret and entry stay the same.

    directory: the server's files, and what it tells: its server entries and flows.jsonl.
    """

    def __init__(
        self,
        host: Host,
        *,
        directory: Path,
        address: str = plan.SERVER4,
        address6: str = plan.SERVER6,
        port: int = plan.SERVER_PORT,
        region: str = "XX",
        ipv6: bool = True,
        allow_bogons: bool = True,
    ) -> None:
        self._host = host
        self._directory = directory
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = False
        self._argv = ["--address", address, "--address6", address6, "--port", str(port), "--region", region]
        self._argv += ["--directory", str(directory)]
        self._argv += [] if ipv6 else ["--no-ipv6"]
        self._argv += ["--allow-bogons"] if allow_bogons else []

    @property
    def entry(self) -> str:
        """The server entry, for TargetServerEntry."""
        return (self._directory / "server-entry.dat").read_text(encoding="ascii")

    @property
    def entry6(self) -> str:
        """The entry of the same server by its IPv6 address."""
        return (self._directory / "server-entry-ipv6.dat").read_text(encoding="ascii")

    @property
    def pid(self) -> int:
        """The server's process. Raises LabError if it does not run."""
        if self._child is None:
            raise LabError("the stand-in server does not run")
        return self._child.pid

    def start(self) -> None:
        """Start the server and wait until it listens."""
        self._directory.mkdir(parents=True, exist_ok=True)
        child = self._host.spawn_module("psiphon_lab.standin_server", *self._argv, stdout=subprocess.PIPE)
        wait_ready(child, "the stand-in server")
        self._child = child

    def keep(self) -> None:
        """Leave the server running when its block ends."""
        self._kept = True

    def end(self) -> None:
        """What the end of its block does."""
        if not self._kept:
            self.stop()

    def stop(self) -> None:
        """Kill the server: its connections are closed by the kernel."""
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
            self._child = None

    def read_flows(self) -> frozenset[Flow]:
        """The connections that the server has authenticated, by its own record.

        Not to be subtracted from each other: a later connection may have the ports of an earlier one. See `list_flows`.
        """
        return frozenset(self.list_flows())

    def list_flows(self) -> list[Flow]:
        """The same in their order, each connection once, also one that looks like an earlier one."""
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
    world: World, *, region: str = "XX", ipv6: bool = True, allow_bogons: bool = True
) -> Iterator[ServerProcess]:
    """A stand-in server on the world's server host, listening when the block begins."""
    directory = world.directory / "server"
    server = ServerProcess(world.server, directory=directory, region=region, ipv6=ipv6, allow_bogons=allow_bogons)
    server.start()
    try:
        yield server
    finally:
        server.end()
