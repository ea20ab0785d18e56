# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes archives that a kernel unpacks as its initial file system."""

from __future__ import annotations

import gzip
import io
import stat


class Archive:
    """A cpio archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._stream = io.BytesIO()
        self._inode = 0

    def _add(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (head, data):
            self._stream.write(part + b"\0" * (-len(part) % 4))

    def add_file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a file; its directory must be there, in this archive or in one before."""
        self._add(name, stat.S_IFREG | mode, data)

    def add_directory(self, name: str) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        """The archive, compressed."""
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(self._stream.getvalue(), compresslevel=1)
