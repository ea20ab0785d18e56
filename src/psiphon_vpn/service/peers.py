# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is at the other end of a Unix socket, and what they may do."""

import dataclasses
import socket
import struct
from collections.abc import Collection
from typing import Final, Protocol

# Not in the socket module; asm-generic/socket.h, Linux 4.13 and later.
SO_PEERGROUPS: Final = 59
# The largest buffer that getsockopt takes: 256 groups. For a user in more groups only the primary group counts.
_GROUPS_BUFFER: Final = 1024


class _HasSockopt(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Credentials of the process that connected, at that time (unix(7), SO_PEERCRED)."""

    uid: int
    gids: frozenset[int]

    def may_change(self) -> bool:
        """Only root may change what the machine lets through."""
        return self.uid == 0

    def may_read(self, *, daemon_uid: int, gid: int, readers: Collection[int] = ()) -> bool:
        """Root, the daemon itself, the members of its group and the users on root's list may read."""
        return self.uid in (0, daemon_uid) or gid in self.gids or self.uid in readers


def read_peer(sock: _HasSockopt) -> Peer:
    """Ask the kernel who connected.

    Raises:
        OSError: the socket has no peer.
    """
    _pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BUFFER)
    except OSError:
        raw = b""
    groups = struct.unpack(f"{len(raw) // 4}I", raw[: len(raw) // 4 * 4])
    return Peer(uid=uid, gids=frozenset({gid, *groups}))
