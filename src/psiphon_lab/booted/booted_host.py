# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted system as a host of the laboratory, so that programs start in it as on any other host."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from psiphon_lab.namespace import Host

SOURCE = Path("/opt/psiphon-vpn-lab/src")
"""Path of the checkout's `src` in the container, read-only: for probes and the stand-in core, not for the service."""
PYTHON = "/usr/bin/python3"


class SystemHost(Host):
    """A whole Debian system, which runs this project's modules with its own interpreter."""

    def spawn_module(self, module: str, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a Python module of this project with the system's own interpreter; see `spawn`."""
        return self.spawn(["env", f"PYTHONPATH={SOURCE}", PYTHON, "-B", "-m", module, *args], **options)


class BootedHost(SystemHost):
    """A container, entered through its first process, without machined or D-Bus.

    Programs that start here end with the container, because they are in its process namespace.
    """

    def __init__(self, name: str, leader: int) -> None:
        self.name = name
        self._leader = leader
        self._children: list[subprocess.Popen[Any]] = []
        self._kept = False

    @property
    def pid(self) -> int:
        """The container's process 1, as a process id of the lab."""
        return self._leader

    @property
    def netns_path(self) -> str:
        """Path of the network namespace."""
        return f"/proc/{self._leader}/ns/net"

    @property
    def root(self) -> Path:
        """The container's root directory, as a path of the lab."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def can_run_modules(self) -> bool:
        """Whether the checkout is still mounted. Near the end of a shutdown it is not.

        A program that started then would only make systemd wait for it.
        """
        return (self.root / SOURCE.relative_to("/") / "psiphon_lab").is_dir()

    def _enter(self, cwd: str | Path | None) -> list[str]:
        """See `Host._enter`. Popen's pid is nsenter's."""
        full = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        return [*full, "--", "env", f"--chdir={cwd or '/'}", "--unset=PYTHONPATH", "HOME=/root"]

    def end(self) -> None:
        """Clean up after the container and everything in it has ended."""
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=2)
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
