# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual computer's system as a host of the laboratory, so that programs start in it as on any other host."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psiphon_lab.booted.booted_host import SystemHost
from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import LabError, Stream


class VirtualHost(SystemHost):
    """A system that is reached by its agent only.

    Args:
        name: for messages.
        ports: the agent's ports, connected. This takes them over.
    """

    def __init__(self, name: str, ports: Sequence[socket.socket]) -> None:
        self.name = name
        self._children: list[subprocess.Popen[Any]] = []
        self._kept = False
        self._lock = threading.Lock()
        self._ports: list[tuple[socket.socket, subprocess.Popen[bytes] | None]] = [(port, None) for port in ports]

    @property
    def pid(self) -> int:
        """It has none: no process of the laboratory's computer is in it. Raises LabError."""
        raise LabError(f"{self.name} is a virtual computer: it has no process here")

    @property
    def netns_path(self) -> str:
        """It has none. Raises LabError."""
        raise LabError(f"{self.name} is a virtual computer: its network is in no namespace here")

    @property
    def can_run_modules(self) -> bool:
        """Always: the agent stays until the end of a shutdown."""
        return True

    def _enter(self, cwd: str | Path | None) -> list[str]:
        return ["env", f"--chdir={cwd}", "--"] if cwd is not None else []

    def _start(
        self,
        full: Sequence[str],
        env: Mapping[str, str] | None,
        *,
        stdin: Stream,
        stdout: Stream,
        stderr: Stream,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """See `Host._start`. Popen's pid is that of a process here, which passes the program's streams on.

        Raises LabError if too many run.
        """
        environment = {**(clean_environment() if env is None else env), "HOME": "/root"}
        environment.pop("PYTHONPATH", None)
        request = json.dumps({"argv": list(full), "env": environment, "cwd": "/"})
        with self._lock:
            number, port = self._find_port()
            os.set_inheritable(port.fileno(), False)
            argv = [sys.executable, "-S", "-m", "psiphon_lab.vm.channel", str(port.fileno()), request]
            descriptors = (port.fileno(), *pass_fds)
            child = super()._start(argv, None, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=descriptors)
            self._ports[number] = (port, child)
        self._children = [other for other in self._children if other.poll() is None]
        return child

    def _find_port(self) -> tuple[int, socket.socket]:
        for number, (port, child) in enumerate(self._ports):
            if child is None or child.poll() is not None:
                return number, port
        raise LabError(f"{self.name}: all {len(self._ports)} ports are in use")

    def hang_up(self) -> None:
        """End the processes here that pass streams on: the system has lost what it ran."""
        with self._lock:
            for _port, child in self._ports:
                if child is not None and child.poll() is None:
                    child.kill()
                    child.wait()

    def end(self) -> None:
        """Close the ports."""
        self.hang_up()
        for port, _child in self._ports:
            port.close()
        for child in self._children:
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
