# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a real psiphond on the world's server host, with the same interface as the stand-in.

The program is the user's, and no part of this project. `psiphond generate` makes keys and configuration.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.capture import Capture
from psiphon_lab.judge import Flow
from psiphon_lab.namespace import LabError
from psiphon_lab.server_entry import set_region
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

    def __init__(self, world: World, program: Path, place: plan.Place, ports: Mapping[str, int]) -> None:
        self.place = place
        self._world = world
        self._host = world.hosts[place.host]
        self._program = program
        self._ports = ports
        self._directory = world.directory / f"psiphond-{place.host}"
        self._child: subprocess.Popen[bytes] | None = None
        self._kept = False
        # Outside both server and client: on the backbone's end of the server's cable.
        self._capture = Capture(world.backbone, place.port, wire=place.port)

    @property
    def entry(self) -> str:
        """The server entry, for TargetServerEntry."""
        return set_region((self._directory / "server-entry.dat").read_text(encoding="ascii"), self.place.region)

    @property
    def pid(self) -> int:
        """Leader of its process group: psiphond is a parent process that supervises a child."""
        if self._child is None:
            raise LabError("psiphond does not run")
        return self._child.pid

    def read_flows(self) -> frozenset[Flow]:
        """The connections on which psiphond itself has sent data, as the server's wire shows.

        An OSSH server answers only clients that know its key.
        """
        frames = self._capture.frames_since()
        if self._capture.dropped:
            raise LabError("the capture at the server lost frames: nothing can be concluded from it")
        return find_answered_flows(frames, server=(self.place.address4,), ports=tuple(self._ports.values()))

    def start(self) -> None:
        """Generate keys and configuration, allow the laboratory's addresses, start psiphond and wait for it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        generate = ["-ipaddress", self.place.address4]
        for protocol, port in self._ports.items():
            generate += ["-protocol", f"{protocol}:{port}"]
        self._host.run([self._program, *generate, "generate"], cwd=self._directory)
        path = self._directory / "psiphond.config"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"RunPacketTunnel": True, "PacketTunnelEgressInterface": EGRESS, "AllowBogons": True}
        # The core believes what a server says of itself, and would forget its region.
        own = config.get("OwnEncodedServerEntries") or {}
        config["OwnEncodedServerEntries"] = {tag: set_region(entry, self.place.region) for tag, entry in own.items()}
        path.write_text(json.dumps(config), encoding="utf-8")
        log = (self._directory / "psiphond.log").open("ab")
        with log:
            self._child = self._host.spawn(
                [self._program, "run"], cwd=self._directory, stdout=log, stderr=log, env=CLEAN_ENV
            )
        wait_until(self._listens, "psiphond listens")

    def _listens(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            said = (self._directory / "psiphond.log").read_text(encoding="utf-8", errors="replace")
            raise LabError(f"psiphond ended with code {self._child.returncode}: {said[-600:]}")
        listening = self._host.run(["ss", "-Hlntu"], check=False).stdout
        return all(f"{self.place.address4}:{port} " in listening for port in self._ports.values())

    def keep(self) -> None:
        """Leave psiphond running when its block ends."""
        self._kept = True

    def end(self) -> None:
        """Stop psiphond, unless it is kept, and end the capture."""
        if not self._kept:
            self.stop()
        self._capture.stop()

    def stop(self) -> None:
        """End psiphond with SIGTERM: after SIGKILL its child would keep running."""
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=STOP_SECONDS)
            self._child = None


@contextlib.contextmanager
def run_real_server(
    world: World, program: Path, *, place: plan.Place = plan.FIRST_PLACE, ports: Mapping[str, int] | None = None
) -> Iterator[RealServer]:
    """A real psiphond, listening when the block begins.

    Args:
        world: where it is.
        program: the psiphond.
        place: which server of the world it is.
        ports: by protocol; without any, only OSSH.

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
    server = RealServer(world, program, place, ports or {"OSSH": plan.SERVER_PORT})
    try:
        server.start()
        yield server
    finally:
        server.end()
