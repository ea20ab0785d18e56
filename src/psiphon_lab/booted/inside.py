"""A booted system seen from the laboratory: programs are started in it as on any other host."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psiphon_lab.launch import setpriv_argv
from psiphon_lab.namespace import Host

SOURCE = Path("/opt/psiphon-vpn-lab/src")
"""Where the checkout's `src` is inside, read-only: for probes and the stand-in core, not for the installed program."""
PYTHON = "/usr/bin/python3"


class Inside(Host):
    """The inside of a container, by its first process. Needs neither machined nor D-Bus.

    What is started here ends with the container: it lives in its process namespace.
    """

    def __init__(self, name: str, leader: int) -> None:
        self.name = name
        self._leader = leader
        self._children: list[subprocess.Popen[Any]] = []
        self._kept = False

    @property
    def pid(self) -> int:
        """The container's process 1, as the lab numbers it."""
        return self._leader

    @property
    def netns_path(self) -> str:
        """The network namespace."""
        return f"/proc/{self._leader}/ns/net"

    @property
    def root(self) -> Path:
        """The container's files as the lab reaches them."""
        return Path(f"/proc/{self._leader}/root")

    @property
    def can_run_modules(self) -> bool:
        """Whether the checkout is still there: near the end of a shutdown it is unmounted.

        What would be started then could only make systemd wait for it.
        """
        return (self.root / SOURCE.relative_to("/") / "psiphon_vpn").is_dir()

    def command(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] = (),
        ambient: Sequence[str] = (),
        bounding: Sequence[str] | None = None,
        no_new_privs: bool = False,
        cwd: str | Path | None = None,
    ) -> list[str]:
        """The whole command line that runs `argv` inside; see `Host.command`. Popen's pid is nsenter's."""
        full = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        full += ["--", "env", f"--chdir={cwd or '/'}", "--unset=PYTHONPATH", "HOME=/root"]
        identity = setpriv_argv(
            uid=uid, gid=gid, groups=groups, ambient=ambient, bounding=bounding, no_new_privs=no_new_privs
        )
        return [*full, *identity, *map(str, argv)]

    def end(self) -> None:
        """Let go of what was started inside; called when the container has ended, and everything with it."""
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=2)
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def spawn_module(self, module: str, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """`spawn` for a Python module of this project, with the system's own interpreter."""
        return self.spawn(["env", f"PYTHONPATH={SOURCE}", PYTHON, "-B", "-m", module, *args], **options)
