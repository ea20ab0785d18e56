# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A20: another user impersonates psiphon-user."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.machine import LAB_UID
from psiphon_lab.probe import TARGETS
from psiphon_lab.sending import BOTH, ECHO
from psiphon_lab.service_adapter.names import CORE_MARK

CLONE_NEWUSER = 0x10000000


def _send(shot: Shot, sock: socket.socket, target: str) -> None:
    sock.sendto(shot.data, (target, ECHO))


def _open(shot: Shot) -> socket.socket:
    sock = socket.socket(socket.AF_INET if shot.family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", shot.source_port))
    return sock


def in_user_namespace(shot: Shot, *, target: str, uid: int) -> None:
    """Inside a user namespace the program has psiphon-user's uid; outside the kernel sees its own. One round only."""
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
    """fchown(2) on a socket changes the owner that routing rules match."""
    with _open(shot) as sock:
        with contextlib.suppress(OSError):
            os.fchown(sock.fileno(), uid, uid)
        _send(shot, sock, target)


def passed_socket(shot: Shot, *, target: str, uid: int) -> None:
    """One process makes a socket and passes it to another, which uses it (SCM_RIGHTS)."""
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
    """SO_MARK with the mark of the service's own packets."""
    with _open(shot) as sock:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack("I", CORE_MARK))
        _send(shot, sock, target)


def run(trial: Trial) -> None:
    """User namespaces, changed owners, passed sockets, copied marks."""
    for family in (4, 6):
        for by in BOTH:
            for function, name in (
                (in_user_namespace, "user namespace"),
                (chown_socket, "fchown"),
                (passed_socket, "passed socket"),
                (claimed_credentials, "mark"),
            ):
                trial.fire(function, by=by, family=family, name=f"{name} ipv{family} {by}",
                           target=TARGETS["internet"][family], uid=LAB_UID)  # fmt: skip


ATTACK = Attack(
    id="A20",
    name="impersonating psiphon-user",
    reference="rules by uid; user namespaces (user_namespaces(7)), SCM_RIGHTS (unix(7)), fchown of sockets",
    summary="Only the tunnel program's own user may use the network card. Another user pretends to be that user: in a "
    "user namespace, by changing the owner of a socket, with a socket that was passed on, with a mark.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload",
    control="the same packets without the lock",
    run=run,
)
