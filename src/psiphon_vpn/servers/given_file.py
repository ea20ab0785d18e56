# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a file that a user named, or standard input: whole, bounded, and no device."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.servers.errors import ListError, ListFlaw

STDIN: Final = "-"


def read_given(name: str, *, high: int) -> bytes:
    """The content.

    Args:
        name: path of a regular file, or "-". A link is followed, since root typed it.
        high: greatest size in bytes.

    Raises:
        ListError: UNREADABLE or TOO_LARGE.
    """
    if name == STDIN:
        content = sys.stdin.buffer.read(high + 1)
    else:
        try:
            # Not waiting for a pipe, nor opening a device: opening one can have effects.
            if not stat.S_ISREG(Path(name).stat().st_mode):
                raise _unreadable(name, _("it is no regular file"))
            with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise _unreadable(name, _("it is no regular file"))
                content = file.read(high + 1)
        except OSError as error:
            raise _unreadable(name, error.strerror or str(error)) from error
    if len(content) > high:
        why = _("{path} is larger than {size} MiB").format(path=name, size=high >> 20)
        raise ListError(ListFlaw.TOO_LARGE, why, _("Give the path of the list itself."))
    return content


def _unreadable(name: str, why: str) -> ListError:
    text = _("{path}: {why}").format(path=name, why=why)
    return ListError(ListFlaw.UNREADABLE, text, _("Give the path of the list itself, or - for standard input."))
