# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to this machine from outside: all of them end when the lock closes.

The lock accepts only answers to psiphon-user from a wire, so an SSH session ends in the middle of a word. To miss no
session, this module combines three independent sources.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.run import CommandError, run

ESTABLISHED, LISTENING = "01", "0A"
"""States of TCP in /proc/net/tcp (include/net/tcp_states.h)."""
PROC: Final = Path("/proc")
MAX_PARENTS: Final = 64
MAX_SHOWN: Final = 4
OPTION: Final = "--yes-cut-remote-sessions"


@dataclass(frozen=True, kw_only=True, order=True)
class RemoteSession:
    """One connection from outside.

    Attributes:
        peer: address or name of the other side.
        how: what it is, for people.
    """

    peer: str
    how: str


class RemoteSessionsError(UserError):
    """Closing the lock would end connections from outside without agreement."""

    def __init__(self, sessions: Iterable[RemoteSession]) -> None:
        super().__init__(
            _("Nothing was changed"),
            describe_sessions(tuple(sessions)),
            _("Go to the machine itself, or accept it with {option}.").format(option=OPTION),
        )


def describe_sessions(sessions: tuple[RemoteSession, ...]) -> str:
    """One sentence that says which connections end."""
    shown = ", ".join(f"{session.peer} ({session.how})" for session in sessions[:MAX_SHOWN])
    if len(sessions) > MAX_SHOWN:
        shown += ", ..."
    text = ngettext(
        "closing the lock ends {count} connection from outside, perhaps the one you are using: {shown}",
        "closing the lock ends {count} connections from outside, perhaps the one you are using: {shown}",
        len(sessions),
    )
    return text.format(count=len(sessions), shown=shown)


def find_sessions(
    proc: Path = Path("/proc"), logins: Path = Path("/run/systemd/sessions")
) -> tuple[RemoteSession, ...]:
    """All connections from outside, as far as this machine knows. Never raises.

    Args:
        proc: the proc file system.
        logins: systemd-logind's sessions.
    """
    found = {*_read_ssh(proc, os.getpid()), *_read_logind(logins), *read_connections(proc)}
    if proc == PROC:
        found |= _read_who()
    unique: dict[str, RemoteSession] = {}
    for session in sorted(found):
        unique.setdefault(session.peer, session)
    return tuple(unique.values())


def _read_ssh(proc: Path, pid: int) -> set[RemoteSession]:
    """SSH_CONNECTION of this process or one of its parents: sudo does not pass it on."""
    for _step in range(MAX_PARENTS):
        if pid <= 0:
            break
        try:
            environment = (proc / str(pid) / "environ").read_bytes().split(b"\0")
            fields = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            break
        for variable in environment:
            name, _equals, value = variable.partition(b"=")
            if name == b"SSH_CONNECTION" and value.strip():
                return {RemoteSession(peer=_clean(value.split()[0]), how="SSH")}
        pid = int(fields[1]) if len(fields) > 1 and fields[1].isdecimal() else 0
    return set()


def _read_logind(directory: Path) -> set[RemoteSession]:
    """Sessions that systemd-logind knows to be remote (sd-login(3))."""
    found: set[RemoteSession] = set()
    try:
        files = sorted(directory.iterdir())
    except OSError:
        return found
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        if values.get("REMOTE") == "1" and values.get("STATE") != "closing":
            found.add(RemoteSession(peer=_clean(values.get("REMOTE_HOST", "?").encode()), how=_("logged in")))
    return found


def _read_who() -> set[RemoteSession]:
    """Sessions in utmp, by who(1): the host is in parentheses; a display or a multiplexer is not a host."""
    try:
        lines = run(["who"]).stdout.splitlines()
    except CommandError:
        return set()
    return parse_who(lines)


def parse_who(lines: Iterable[str]) -> set[RemoteSession]:
    """The remote sessions in the output of who(1)."""
    found = set()
    for line in lines:
        _head, opened, host = line.rstrip().removesuffix(")").partition(" (")
        if opened and host and not host.startswith((":", "tmux", "screen", "login screen")):
            found.add(RemoteSession(peer=_clean(host.encode()), how=_("logged in")))
    return found


def read_connections(proc: Path) -> set[RemoteSession]:
    """Established TCP connections to a port on which this machine listens."""
    rows: list[tuple[str, str, str]] = []
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        rows += [(fields[1], fields[2], fields[3]) for fields in (line.split() for line in lines) if len(fields) > 3]
    listening = {local.rpartition(":")[2] for local, _remote, state in rows if state == LISTENING}
    found = set()
    for local, remote, state in rows:
        port = local.rpartition(":")[2]
        if state != ESTABLISHED or port not in listening:
            continue
        peer = parse_address(remote.rpartition(":")[0])
        # A connection of this machine to itself never uses a wire, whatever the address.
        if not peer.is_loopback and local.rpartition(":")[0] != remote.rpartition(":")[0]:
            found.add(RemoteSession(peer=str(peer), how=_("TCP port {port}").format(port=int(port, 16))))
    return found


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an address of /proc/net/tcp: 32-bit words in this machine's byte order (net/ipv4/tcp_ipv4.c)."""
    words = bytes.fromhex(text)
    raw = b"".join(
        int.from_bytes(words[start : start + 4], "big").to_bytes(4, sys.byteorder) for start in range(0, len(words), 4)
    )
    if len(raw) == 4:
        return ipaddress.IPv4Address(raw)
    address = ipaddress.IPv6Address(raw)
    return address.ipv4_mapped or address


def _clean(value: bytes) -> str:
    return "".join(char if char.isprintable() else "?" for char in value.decode("utf-8", "replace"))
