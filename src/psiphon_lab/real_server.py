"""A real psiphond on the world's server host, handled like the stand-in: started, stopped, asked for its flows.

The program is the user's; nothing of it is part of this project. Its own `generate` makes keys and configuration.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.capture import Capture
from psiphon_lab.judge import Flow
from psiphon_lab.namespace import LabError
from psiphon_lab.server_evidence import find_answered_flows
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.run import CLEAN_ENV

NEEDED_COMMANDS = ("iptables", "ip6tables")
EGRESS = "eth0"
STOP_SECONDS = 8.0


class RealServer:
    """A running psiphond."""

    def __init__(self, world: World, program: Path) -> None:
        self._world = world
        self._program = program
        self._directory = world.directory / "psiphond"
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = False
        # Outside server and client: on the backbone's end of the server's cable.
        self._capture = Capture(world.backbone, "server", wire="server")

    @property
    def entry(self) -> str:
        """The server entry, for TargetServerEntry."""
        return (self._directory / "server-entry.dat").read_text(encoding="ascii").strip()

    @property
    def pid(self) -> int:
        """Leader of its process group: psiphond is a parent that watches a child."""
        if self._child is None:
            raise LabError("psiphond does not run")
        return self._child.pid

    def read_flows(self) -> frozenset[Flow]:
        """The connections on which psiphond itself has sent data, from the server's wire.

        An OSSH server says nothing to a stranger: it answers only to who knows its key.
        """
        frames = self._capture.frames_since()
        if self._capture.dropped:
            raise LabError("the capture at the server lost frames: nothing can be concluded from it")
        return find_answered_flows(frames, server=(plan.SERVER4,), ports=(plan.SERVER_PORT,))

    def start(self) -> None:
        """Generate what psiphond needs, allow the laboratory's addresses, start it and wait until it listens."""
        self._directory.mkdir(parents=True, exist_ok=True)
        generate = ["-ipaddress", plan.SERVER4, "-protocol", f"OSSH:{plan.SERVER_PORT}", "generate"]
        self._world.server.run([self._program, *generate], cwd=self._directory)
        path = self._directory / "psiphond.config"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"RunPacketTunnel": True, "PacketTunnelEgressInterface": EGRESS, "AllowBogons": True}
        path.write_text(json.dumps(config), encoding="utf-8")
        log = (self._directory / "psiphond.log").open("ab")
        with log:
            self._child = self._world.server.spawn(
                [self._program, "run"], cwd=self._directory, stdout=log, stderr=log, env=CLEAN_ENV
            )
        wait_until(self._listens, "psiphond listens")

    def _listens(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            said = (self._directory / "psiphond.log").read_text(encoding="utf-8", errors="replace")
            raise LabError(f"psiphond ended with code {self._child.returncode}: {said[-600:]}")
        return f":{plan.SERVER_PORT}" in self._world.server.run(["ss", "-Hltn"], check=False).stdout

    def keep(self) -> None:
        """Leave psiphond running when its block ends."""
        self._kept = True

    def end(self) -> None:
        """What the end of its block does."""
        if not self._kept:
            self.stop()
        self._capture.stop()

    def stop(self) -> None:
        """End psiphond in order: killed, its child would stay behind."""
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=STOP_SECONDS)
            self._child = None


@contextlib.contextmanager
def run_real_server(world: World, program: Path) -> Iterator[RealServer]:
    """A real psiphond, listening when the block begins.

    Raises:
        UserError: what psiphond itself needs is not there.
    """
    missing = [name for name in NEEDED_COMMANDS if shutil.which(name, path=CLEAN_ENV["PATH"]) is None]
    if missing:
        raise UserError(
            _("The demonstration with a real server cannot start"),
            _("psiphond needs {names}").format(names=", ".join(missing)),
            _("Install the package 'iptables'."),
        )
    server = RealServer(world, program)
    try:
        server.start()
        yield server
    finally:
        server.end()
