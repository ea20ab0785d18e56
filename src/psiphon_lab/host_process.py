# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that holds one lab host's namespaces. `namespace.py` runs it as a script with `python -I -S`.

It lives exactly as long as the lab: standard input is a pipe, and the lab's process has the other end. When that
process ends for any reason, SIGKILL included, the kernel closes the pipe. The host process then kills everything in its
namespaces and exits, and the kernel removes the namespaces with every interface in them. So nothing has a name, and
nothing remains. (PR_SET_PDEATHSIG is not enough: it follows the *thread* that forked, and reaches children but not
grandchildren.)

It imports little, and only from the standard library: each host of each world pays its start-up time.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
SWEEP_ROUNDS = 50
SWEEP_PAUSE = 0.01

# The whole machine shares a resolver that answers on a Unix socket: hosts must not see it.
MASKED = ("/run/systemd/resolve", "/run/nscd", "/run/dbus")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Mount something. Raises OSError with the target's name."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def _provide_tun_device() -> None:
    """Give the host its own /dev/net/tun, which ordinary users may open (mode 0666), as udev does everywhere.

    Always its own: a test that removes the device would remove the machine's, which others use at the same time.
    """
    try:
        status = os.stat("/dev/net/tun")
    except FileNotFoundError:
        return
    mount("tmpfs", "/dev/net", "tmpfs", 0, "mode=755")
    os.mknod("/dev/net/tun", 0o666 | stat.S_IFCHR, status.st_rdev)
    os.chmod("/dev/net/tun", 0o666)  # noqa: S103 - as on every distribution


def _overlay(directory: str, scratch: str) -> None:
    """Mount a writable layer over a directory, so that a missing file can be created without changing the machine."""
    upper, work = os.path.join(scratch, "upper"), os.path.join(scratch, "work")
    os.makedirs(scratch, exist_ok=True)
    mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
    os.makedirs(upper)
    os.makedirs(work)
    mount("overlay", directory, "overlay", 0, f"lowerdir={directory},upperdir={upper},workdir={work}")


def _bind_resolv_conf(source: str, scratch: str) -> None:
    target = os.path.realpath("/etc/resolv.conf")
    if not os.path.exists(target):
        parent = os.path.dirname(target)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        if parent not in MASKED:
            _overlay(parent, scratch)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="ascii"):
            pass
    mount(source, target, None, MS_BIND)


def _blocking_ancestor(path: str) -> str | None:
    """The topmost directory above `path` that ordinary users may not search, or None."""
    parts = os.path.realpath(path).split("/")
    for end in range(2, len(parts)):
        directory = "/".join(parts[:end])
        if not os.stat(directory).st_mode & stat.S_IXOTH:
            return directory
    return None


def _expose(paths: list[str]) -> None:
    """Let every user reach `paths` even if a directory above them is private (Python under /root, for example).

    Only in this mount namespace: an empty directory covers the private one, and contains only the wanted paths under
    their old names. File modes do not change, and the rest of the private directory stays out of reach.
    """
    wanted: dict[str, dict[str, int]] = {}
    for path in paths:
        blocker = _blocking_ancestor(path)
        if blocker is not None:
            real = os.path.realpath(path)
            wanted.setdefault(blocker, {})[real] = os.open(real, os.O_PATH)
    for blocker, found in wanted.items():
        mount("tmpfs", blocker, "tmpfs", 0, "mode=755")
        for path, fd in sorted(found.items()):
            if os.path.exists(path):
                os.close(fd)  # inside a path that is mounted already
                continue
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.makedirs(path, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
            mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
            os.close(fd)


def enter_namespaces(settings: dict[str, Any]) -> None:
    """Move into new namespaces and set them up."""
    _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS), "unshare")
    socket.sethostname(settings["name"])
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("sysfs", "/sys", "sysfs")
    for directory in MASKED:
        if os.path.isdir(directory) and not os.path.islink(directory):
            mount("tmpfs", directory, "tmpfs", 0, "mode=755")
    _provide_tun_device()
    _bind_resolv_conf(settings["resolv_conf"], settings["scratch"])
    _expose(settings["expose"])


def sweep() -> None:
    """Kill every other process in this network or mount namespace."""
    own = (os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt"))
    for _ in range(SWEEP_ROUNDS):
        alive = False
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                namespaces = (os.readlink(f"/proc/{entry}/ns/net"), os.readlink(f"/proc/{entry}/ns/mnt"))
                if namespaces[0] == own[0] or namespaces[1] == own[1]:
                    os.kill(int(entry), signal.SIGKILL)
                    alive = True
            except OSError:
                continue  # a kernel thread, or it has ended
        if not alive:
            return
        time.sleep(SWEEP_PAUSE)


def watch_sigterm() -> int:
    """Have SIGTERM written to a pipe; returns the end to read.

    With a handler and signal.pause(), a signal could arrive between the interpreter's last check and the system call,
    and be lost: Python runs handlers between byte codes only.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return reading


def wait_for_end(owner: int, sigterm: int) -> None:
    """Return on SIGTERM, or when the owner's pipe ends; after the word "keep" on it, only on SIGTERM."""
    received = b""
    waiting = [owner, sigterm]
    while True:
        readable, _, _ = select.select(waiting, [], [])
        if sigterm in readable:
            return
        chunk = os.read(owner, 64)
        received += chunk
        if not chunk:
            if received != b"keep\n":
                return
            waiting = [sigterm]


def main(argv: list[str]) -> int:
    """Hold the namespaces until standard input ends (or, after the word "keep", until SIGTERM)."""
    settings = json.loads(argv[1])
    # Ctrl-C on a terminal reaches the whole foreground group, but the lab decides when its hosts end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sigterm = watch_sigterm()
    try:
        enter_namespaces(settings)
    except OSError as error:
        os.write(1, f"error {error}\n".encode())
        return 1
    os.write(1, b"ready\n")
    os.close(1)
    wait_for_end(0, sigterm)
    sweep()
    if settings.get("remove"):
        import shutil

        shutil.rmtree(settings["remove"], ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
