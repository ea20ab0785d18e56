# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in memory (memfd_create(2)) for what another program reads or writes: no pipe that either side could block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """The descriptor of a file in memory with a content, at its beginning; closed at the end. Raises OSError."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        write_all(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
