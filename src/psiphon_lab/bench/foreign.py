# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Another program that changes rules: `python -m psiphon_lab.bench.foreign RATE SECONDS`, in the client's namespaces.

Each commit makes or deletes a table of its own, by nf_tables' netlink messages (<linux/netfilter/nf_tables.h>), so that
many are possible in a second. It prints how many there were.
"""

from __future__ import annotations

import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, DELTABLE = 0xA00, 0xA02
REQUEST, ACK, CREATE = 0x1, 0x4, 0x400
NFPROTO_INET = 1
NFT_SUBSYSTEM = 10
NAME = b"stranger\0"
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def build_commit(kind: int) -> bytes:
    """A transaction that makes or deletes the table."""
    attribute = struct.pack("=HH", 4 + len(NAME), 1) + NAME  # NFTA_TABLE_NAME
    attribute += bytes(-len(attribute) % 4)
    group = _FAMILY.pack(0, 0, socket.htons(NFT_SUBSYSTEM))
    flags = REQUEST | ACK | (CREATE if kind == NEWTABLE else 0)
    return (
        _message(BATCH_BEGIN, REQUEST, 1, group)
        + _message(kind, flags, 2, _FAMILY.pack(NFPROTO_INET, 0, 0) + attribute)
        + _message(BATCH_END, REQUEST, 3, group)
    )


def commit_often(rate: float, seconds: float) -> int:
    """Commit so often for so long; how often that was. Raises OSError if the kernel refuses."""
    done = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        begin = time.monotonic()
        while (now := time.monotonic() - begin) < seconds or done % 2:
            due = done / rate
            if due > now:
                time.sleep(due - now)
            sock.send(build_commit(DELTABLE if done % 2 else NEWTABLE))
            error = struct.unpack_from("=i", sock.recv(65536), _HEADER.size)[0]
            if error:
                raise OSError(-error, "the kernel refused the commit")
            done += 1
    return done


def main() -> int:
    """Command line entry."""
    sys.stdout.write(f"{commit_often(float(sys.argv[1]), float(sys.argv[2]))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
