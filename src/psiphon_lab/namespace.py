"""Lab hosts: network, mount and host-name namespaces held by an anchor process (see anchor.py).

Nothing here changes the machine: no named namespace, no file under /etc, no route. A host ends with its context
manager or with the process that made it, whichever ends first.
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

T = TypeVar("T")
Stream = IO[Any] | int | None

PATIENCE = 60.0
"""How long the laboratory waits for anything, seconds: a limit is only for what never comes. See waiting.py."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The laboratory itself failed (not what it tests)."""


class Host:
    """One machine of the laboratory. Made by `open_host`; every method needs it to be open."""

    def __init__(self, name: str, anchor: subprocess.Popen[bytes], resolv_conf: Path) -> None:
        self.name = name
        self._anchor = anchor
        self._resolv_conf = resolv_conf
        self._children: list[subprocess.Popen[Any]] = []
        self._kept = False

    @property
    def pid(self) -> int:
        """The anchor process, as the lab's own pid namespace numbers it."""
        return self._anchor.pid

    @property
    def netns_path(self) -> str:
        """The network namespace, as setns(2) and pyroute2 accept it."""
        return f"/proc/{self._anchor.pid}/ns/net"

    def set_resolv_conf(self, text: str) -> None:
        """Replace the host's /etc/resolv.conf. In place: the file is bind-mounted, a rename would not be seen."""
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
        """The whole command line that runs `argv` on this host; Popen's pid is the program's own pid.

        uid/gid: None stays root. ambient, bounding: capability names as setpriv(1) writes them ("net_admin");
        bounding None leaves the set as it is, () empties it.
        """
        full = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--"]
        if cwd is not None:
            full += ["env", f"--chdir={cwd}", "--"]
        identity = setpriv_argv(
            uid=uid, gid=gid, groups=groups, ambient=ambient, bounding=bounding, no_new_privs=no_new_privs
        )
        return [*full, *identity, *map(str, argv)]

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
        """Start a program on this host. It is killed with the host, whatever it has forked too."""
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
        child = subprocess.Popen(
            full,
            env=clean_environment() if env is None else dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
        self._children.append(child)
        return child

    def spawn_module(self, module: str, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """`spawn` for a Python module of this project, with this interpreter."""
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
        """Run a program on this host to its end. Raises LabError on a failure (if check) or after `timeout` seconds."""
        full = self.command(argv, **identity)
        try:
            done = subprocess.run(
                full,
                env=clean_environment() if env is None else dict(env),
                input="" if input is None else input,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}: no end within {timeout} s: {shlex.join(full)}") from error
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: rc {done.returncode}: {shlex.join(full)}\n{done.stdout}{done.stderr}")
        return done

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread that has entered this host's network namespace.

        Sockets made in it stay in that namespace, and /proc/sys/net is the host's. The file system stays the lab's.
        pyroute2's IPRoute makes one socket per thread, so use it up inside `function`; never hand it out.
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
            except BaseException as error:  # noqa: BLE001 - carried over to the caller
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
        """Write sysctls by their path below /proc/sys/net, for example {"ipv4/ip_forward": 1}."""

        def inside() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")

        self.call(inside)

    def get_sysctl(self, name: str) -> str:
        """Read one sysctl by its path below /proc/sys/net."""
        return self.call(lambda: Path("/proc/sys/net", name).read_text(encoding="ascii").strip())

    def keep(self) -> None:
        """Let the host outlive the lab's process. It then ends when its anchor gets SIGTERM."""
        if self._anchor.stdin is not None and not self._kept:
            self._anchor.stdin.write(b"keep\n")
            self._anchor.stdin.close()
            self._kept = True

    def begin_close(self) -> None:
        """Ask the anchor to end; `close` waits. Split so that a world's hosts end side by side."""
        if self._anchor.stdin is not None and not self._anchor.stdin.closed:
            self._anchor.stdin.close()

    def close(self) -> None:
        """End the host and everything that runs on it."""
        if self._kept:
            return
        self.begin_close()
        try:
            self._anchor.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._anchor.kill()
            self._anchor.wait()
        for child in self._children:
            try:
                child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                # nsenter on its way in: it was on no host yet when the anchor swept, and would hold this one alive.
                child.kill()
                child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def begin_host(name: str, *, directory: Path, expose: Sequence[Path] = (), remove: Path | None = None) -> Host:
    """Start a host's anchor without waiting for it: call `finish_host` next. See `open_host`.

    remove: a directory that the anchor removes when it ends, so that not even a killed lab leaves files.
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
    script = Path(__file__).with_name("anchor.py")
    anchor = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), json.dumps(settings)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    return Host(name, anchor, resolv_conf)


def finish_host(host: Host) -> Host:
    """Wait until the anchor stands in its namespaces and bring `lo` up. Raises LabError with the kernel's reason."""
    pipe = host._anchor.stdout
    assert pipe is not None
    answer = pipe.readline().decode(errors="replace").strip()
    pipe.close()
    if answer != "ready":
        host.close()
        raise LabError(f"host {host.name} did not start: {answer or 'the anchor ended'} (are you root?)")
    host.netlink(lambda ipr: ipr.link("set", index=1, state="up"))
    return host


@contextlib.contextmanager
def open_host(name: str, *, directory: Path, expose: Sequence[Path] = ()) -> Iterator[Host]:
    """A host as a context manager.

    directory: the host's files (its resolv.conf), readable by all. expose: paths that ordinary users on this
    host must reach though they lie below a private directory.
    """
    host = begin_host(name, directory=directory, expose=expose)
    try:
        yield finish_host(host)
    finally:
        host.close()
