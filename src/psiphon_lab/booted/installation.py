# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Installs, uses and removes the service on a booted computer with the commands that a user types."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from psiphon_lab import addresses as plan
from psiphon_lab.booted.clone import PIP_CONF, copy_clone
from psiphon_lab.booted.computer import Computer
from psiphon_lab.booted.core_file import build_trampoline, render_launcher
from psiphon_lab.namespace import LabError
from psiphon_lab.service_adapter.daemon import render_settings
from psiphon_lab.service_adapter.installed import GROUP, SERVICE_UNIT, SETUP_SCRIPT, USER, Layout

CLONE: Final = "/usr/src/psiphon-vpn"
SETUP: Final = f"{CLONE}/{SETUP_SCRIPT}"
CORE: Final = "/usr/src/psiphon-tunnel-core"
_LAUNCHER: Final = "/opt/psiphon-vpn-lab/stand-in-core"
INSTALL_SECONDS: Final = 240.0
WAIT_SECONDS: Final = 60.0


class Installation:
    """The service on a computer.

    Args:
        computer: the computer; it may be off until a command runs.
        entry: the tunnel server's entry, for the configuration.
        core: a real psiphon-tunnel-core; None for the laboratory's stand-in.
    """

    def __init__(self, computer: Computer, *, entry: str, core: Path | None = None) -> None:
        self.computer = computer
        self._entry = entry
        self._core = core
        self.core_sha256 = ""

    def prepare(self) -> None:
        """Put on the disk what a user has before: a clone, a core's file, and a source of packages."""
        files = self.computer.files
        copy_clone(files / CLONE.lstrip("/"))
        (files / "etc/pip.conf").write_text(PIP_CONF)
        programs = {CORE: build_trampoline(_LAUNCHER), _LAUNCHER: render_launcher().encode()}
        if self._core is not None:
            programs = {CORE: self._core.read_bytes()}
        self.core_sha256 = hashlib.sha256(programs[CORE]).hexdigest()
        for path, content in programs.items():
            place = files / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            place.chmod(0o755)

    def run_setup(
        self, *arguments: str, check: bool = True, timeout: float = INSTALL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run the clone's setup script as root."""
        return self.computer.run([SETUP, *arguments], check=check, timeout=timeout)

    def install(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run `install` with the core's file, without questions. The server comes later: `configure`."""
        core = ("--core-file", CORE, "--sha256", self.core_sha256)
        return self.run_setup("install", *core, "--offline", "--yes", "--yes-cut-remote-sessions", *more)

    def configure(self, **settings: Any) -> None:
        """Write a configuration with the laboratory's server. The daemon reads it at the next `reload` or start."""
        values = {"ipv6_probe": [plan.INTERNET6], **settings}
        path = Layout().config
        self.computer.run(["tee", path], input=render_settings(values, entry=self._entry))
        self.computer.run(["chown", f"{USER}:{GROUP}", path])
        self.computer.run(["chmod", "600", path])

    def command(self, *arguments: str, check: bool = True, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run the installed program as root."""
        return self.computer.run([Layout().command, *arguments], check=check, timeout=timeout)

    def read_status(self) -> Mapping[str, Any]:
        """The output of `status --json`, empty if it is not valid."""
        done = self.command("status", "--json", check=False)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {}

    def wait_state(self, state: str, *, seconds: float = WAIT_SECONDS) -> Mapping[str, Any]:
        """Wait for a state of the daemon; returns the status. Raises LabError with the end of the log."""
        status: Mapping[str, Any] = {}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.read_status()
            if status.get("state") == state:
                return status
            time.sleep(0.25)
        raise LabError(f"not {state} within {seconds:g} s, but {status}\n{self.read_journal()}")

    def wait_open(self, *, seconds: float = WAIT_SECONDS) -> Mapping[str, Any]:
        """Wait until the tunnel is open for both families."""
        deadline = time.monotonic() + seconds
        status = self.wait_state("OPEN", seconds=seconds)
        while not status.get("ipv6") and time.monotonic() < deadline:
            time.sleep(0.25)
            status = self.read_status()
        if not status.get("ipv6"):
            raise LabError(f"no IPv6 through the tunnel: {status}")
        return status

    def read_journal(self, unit: str = SERVICE_UNIT, *, lines: int = 60) -> str:
        """The end of a unit's log."""
        argv = ["journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", unit]
        return self.computer.run(argv, check=False).stdout

    @property
    def files(self) -> Layout:
        """The installation's paths, as paths of the lab; available even while the computer is off."""
        return Layout(root=Path(self.computer.files))
