# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lab hosts: network, mount and host-name namespaces, held by a host process (`host_process.py`).

Nothing here changes the machine: no named namespace, no file below /etc, no route. A host ends with its context manager
or with the process that made it, whichever ends first.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from psiphon_lab.launch import clean_environment, python_paths, setpriv_argv
from psiphon_lab.pace import PACE

T = TypeVar("T")
Stream = IO[Any] | int | None

PATIENCE = 60.0 * PACE
"""How long the laboratory waits for anything, seconds. A limit matters only for what never comes: see waiting.py."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The laboratory itself failed, not what it tests."""


class Host:
    """One host of the laboratory, made by `open_host`. Its methods work only while it is open."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], resolv_conf: Path) -> None:
        self.name = name
        self._process = process
        self._resolv_conf = resolv_conf
        self._children: list[subprocess.Popen[Any]] = []
        self._kept = False

    @property
    def pid(self) -> int:
        """Process id of the host process, in the lab's own pid namespace."""
        return self._process.pid

    @property
    def netns_path(self) -> str:
        """Path of the network namespace, for setns(2) and pyroute2."""
        return f"/proc/{self._process.pid}/ns/net"

    def set_resolv_conf(self, text: str) -> None:
        """Overwrite the host's /etc/resolv.conf in place: it is bind-mounted, so the host would not see a rename."""
        self._resolv_conf.write_text(text, encoding="ascii")

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
        """The command line that runs `argv` on this host; Popen's pid is the program's own pid.

        uid, gid: None for root. ambient, bounding: capability names as setpriv(1) writes them ("net_admin"); bounding
        None leaves the set unchanged, () empties it.
        """
        identity = setpriv_argv(
            uid=uid, gid=gid, groups=groups, ambient=ambient, bounding=bounding, no_new_privs=no_new_privs
        )
        return [*self._enter(cwd), *identity, *map(str, argv)]

    def _enter(self, cwd: str | Path | None) -> list[str]:
        """What stands before a program's command line, so that it runs on this host."""
        entered = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--"]
        return entered if cwd is None else [*entered, "env", f"--chdir={cwd}", "--"]

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
        """Start a command line of `command`."""
        return subprocess.Popen(
            full,
            env=clean_environment() if env is None else dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )

    def spawn(
        self,
        argv: Sequence[str | Path],
        *,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] = (),
        ambient: Sequence[str] = (),
        bounding: Sequence[str] | None = None,
        no_new_privs: bool = False,
        env: Mapping[str, str] | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        cwd: str | Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a program on this host. It ends with the host, and so does everything that it forks."""
        full = self.command(
            argv,
            uid=uid,
            gid=gid,
            groups=groups,
            ambient=ambient,
            bounding=bounding,
            no_new_privs=no_new_privs,
            cwd=cwd,
        )
        child = self._start(full, env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds)
        self._children.append(child)
        return child

    def spawn_module(self, module: str, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a Python module of this project with this interpreter; see `spawn`."""
        return self.spawn([sys.executable, "-m", module, *args], **options)

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | None = None,
        check: bool = True,
        timeout: float = PATIENCE,
        env: Mapping[str, str] | None = None,
        **identity: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host and wait. Raises LabError if it fails (if check) or after `timeout` seconds."""
        full = self.command(argv, **identity)
        pipe = subprocess.PIPE
        with self._start(full, env, stdin=pipe, stdout=pipe, stderr=pipe) as child:
            try:
                out, err = child.communicate((input or "").encode(), timeout=timeout)
            except subprocess.TimeoutExpired as error:
                child.kill()
                raise LabError(f"{self.name}: no end within {timeout:g} s: {shlex.join(full)}") from error
            except BaseException:
                child.kill()
                raise
        texts = (stream.decode(errors="replace") for stream in (out, err))
        done = subprocess.CompletedProcess(full, child.returncode, *texts)
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: rc {done.returncode}: {shlex.join(full)}\n{done.stdout}{done.stderr}")
        return done

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread that has entered this host's network namespace.

        Sockets that it makes stay in that namespace, and /proc/sys/net is the host's. The file system is the lab's.
        pyroute2's IPRoute makes one socket per thread: use it only inside `function`, and do not return it.
        """
        outcome: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                fd = os.open(self.netns_path, os.O_RDONLY)
                try:
                    if _libc.setns(fd, _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                finally:
                    os.close(fd)
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller
                failure.append(error)

        thread = threading.Thread(target=inside, name=f"lab-{self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def netlink(self, function: Callable[[Any], T]) -> T:
        """Run `function(ipr)` with a pyroute2 IPRoute inside this host's network namespace."""
        from pyroute2 import IPRoute

        def inside() -> T:
            with IPRoute() as ipr:
                return function(ipr)

        return self.call(inside)

    def set_sysctls(self, values: Mapping[str, str | int]) -> None:
        """Write sysctls, by path below /proc/sys/net, for example {"ipv4/ip_forward": 1}."""

        def inside() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")

        self.call(inside)

    def get_sysctl(self, name: str) -> str:
        """Read a sysctl, by path below /proc/sys/net."""
        return self.call(lambda: Path("/proc/sys/net", name).read_text(encoding="ascii").strip())

    def keep(self) -> None:
        """Let the host outlive the lab's process. It then ends when its host process gets SIGTERM."""
        if self._process.stdin is not None and not self._kept:
            self._process.stdin.write(b"keep\n")
            self._process.stdin.close()
            self._kept = True

    def wait_for_end(self) -> None:
        """Wait until the process of a kept host has ended."""
        self._process.wait(timeout=PATIENCE)

    def begin_close(self) -> None:
        """Have the host process end; `close` waits for it. So a world's hosts end at the same time."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def close(self) -> None:
        """End the host and everything on it."""
        if self._kept:
            return
        self.begin_close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in self._children:
            try:
                child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                # An nsenter that had not entered yet when the host process killed the others. It would keep the
                # namespaces alive.
                child.kill()
                child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def begin_host(name: str, *, directory: Path, expose: Sequence[Path] = (), remove: Path | None = None) -> Host:
    """Start a host process without waiting for it; call `finish_host` next. See `open_host`.

    remove: a directory that the host process removes when it ends, so that even a killed lab leaves no files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text("# no resolver\n", encoding="ascii")
    resolv_conf.chmod(0o644)
    settings = {
        "name": name.replace("_", "-"),
        "resolv_conf": str(resolv_conf),
        "scratch": str(directory / "overlay"),
        "expose": [str(path) for path in (*python_paths(), *expose)],
        "remove": None if remove is None else str(remove),
    }
    script = Path(__file__).with_name("host_process.py")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), json.dumps(settings)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    return Host(name, process, resolv_conf)


def finish_host(host: Host) -> Host:
    """Wait until the host process has its namespaces, and set `lo` up. Raises LabError with the kernel's reason."""
    pipe = host._process.stdout
    assert pipe is not None
    answer = pipe.readline().decode(errors="replace").strip()
    pipe.close()
    if answer != "ready":
        host.close()
        raise LabError(f"host {host.name} did not start: {answer or 'its process ended'} (are you root?)")
    host.netlink(lambda ipr: ipr.link("set", index=1, state="up"))
    return host


@contextlib.contextmanager
def open_host(name: str, *, directory: Path, expose: Sequence[Path] = ()) -> Iterator[Host]:
    """A host, as a context manager.

    directory: for the host's files (its resolv.conf); everybody can read it. expose: paths that ordinary users on this
    host must reach although they are below a private directory.
    """
    host = begin_host(name, directory=directory, expose=expose)
    try:
        yield finish_host(host)
    finally:
        host.close()
