"""A20: another user tries to pass for psiphon-user."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

from psiphon_lab.attacks._send import BOTH, ECHO
from psiphon_lab.hands import Shot
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.terms import Actor
from psiphon_lab.machine import LAB_UID
from psiphon_lab.probe import TARGETS

CLONE_NEWUSER = 0x10000000


def _send(shot: Shot, sock: socket.socket, target: str) -> None:
    sock.sendto(shot.data, (target, ECHO))


def _open(shot: Shot) -> socket.socket:
    sock = socket.socket(socket.AF_INET if shot.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", shot.source_port))
    return sock


def in_user_namespace(shot: Shot, *, target: str, uid: int) -> None:
    """Inside a user namespace the program has psiphon-user's number; the kernel knows better. One round only."""
    if shot.round:
        return
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            outside = os.geteuid()
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) == 0:
                Path("/proc/self/uid_map").write_text(f"{uid} {outside} 1", encoding="ascii")
                os.setuid(uid)
            with _open(shot) as sock:
                _send(shot, sock, target)
        os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def chown_socket(shot: Shot, *, target: str, uid: int) -> None:
    """fchown(2) on a socket changes the owner that routing rules ask for."""
    with _open(shot) as sock:
        with contextlib.suppress(OSError):
            os.fchown(sock.fileno(), uid, uid)
        _send(shot, sock, target)


def passed_socket(shot: Shot, *, target: str, uid: int) -> None:
    """A socket is made by one process and used by another, which got it as a message (SCM_RIGHTS)."""
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right, _open(shot) as sock:
        socket.send_fds(left, [b"x"], [sock.fileno()])
        _, descriptors, _, _ = socket.recv_fds(right, 1, 1)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptors[0])) as received:
                if os.geteuid() == 0:
                    os.setresuid(uid, uid, uid)  # psiphon-user itself uses the socket that root made
                _send(shot, received, target)
            os._exit(0)
        os.close(descriptors[0])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def claimed_credentials(shot: Shot, *, target: str, uid: int) -> None:
    """SO_MARK and SO_PRIORITY as the service's own packets might have them, and the file system's user alone."""
    with _open(shot) as sock:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack("I", 0x50530000))
        _send(shot, sock, target)


def run(arena: Arena) -> None:
    """User namespaces, changed owners, passed sockets, claimed marks."""
    for family in (4, 6):
        for by in BOTH:
            for function, name in (
                (in_user_namespace, "user namespace"),
                (chown_socket, "fchown"),
                (passed_socket, "passed socket"),
                (claimed_credentials, "mark"),
            ):
                arena.fire(function, by=by, family=family, name=f"{name} ipv{family} {by}",
                           target=TARGETS["internet"][family], uid=LAB_UID)  # fmt: skip


ATTACK = Attack(
    id="A20",
    name="passing for psiphon-user",
    reference="rules by uid; user namespaces (user_namespaces(7)), SCM_RIGHTS (unix(7)), fchown of sockets",
    plain="Only the tunnel program's own user may use the network card. Another user pretends to be it: inside a user "
    "namespace, by a changed owner of its socket, by a socket that was handed over, by a mark.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
