# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be wrong with a tunnel core at installation or start: a code for programs, a line for users."""

import enum

from psiphon_vpn.errors import UserError


class CoreFlaw(enum.StrEnum):
    """Every possible flaw."""

    NOT_INSTALLED = "not_installed"
    """No core was ever installed, or its record is missing."""
    BAD_RECORD = "bad_record"
    """The record cannot be read, does not belong to root, or others can write to it: no check can rely on it."""
    UNREADABLE = "unreadable"
    """The file does not exist, cannot be read, or is no regular file."""
    TOO_LARGE = "too_large"
    NOT_ELF = "not_elf"
    WRONG_ARCHITECTURE = "wrong_architecture"
    MISMATCH = "mismatch"
    """The content differs from what was pinned, given or recorded."""
    UNPINNED = "unpinned"
    """The expected content is unknown."""
    OLDER = "older"
    NO_PREVIOUS = "no_previous"
    """There is nothing to go back to."""
    UNSUPPORTED = "unsupported"
    """The official distribution has no core for this processor."""
    DISK = "disk"
    """No space, or the file system refuses."""
    BUSY = "busy"
    """Another installation is running."""
    SEALING = "sealing"
    """The kernel does not allow a sealed copy to be executed."""


class CoreFlawError(UserError):
    """A core cannot be installed or started because of a flaw."""

    def __init__(self, flaw: CoreFlaw, what: str, why: str, next_step: str) -> None:
        super().__init__(what, why, next_step)
        self.flaw = flaw
