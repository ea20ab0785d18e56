"""What can be wrong with a tunnel core that is to be installed or started: a code for programs, a line for people."""

import enum

from psiphon_vpn.errors import UserError


class CoreFlaw(enum.StrEnum):
    """Every flaw there is."""

    NOT_INSTALLED = "not_installed"
    """No core was ever installed, or its record is gone."""
    BAD_RECORD = "bad_record"
    """The record cannot be read, is not root's, or can be written by others: nothing can be checked against it."""
    UNREADABLE = "unreadable"
    """The file is not there, cannot be read, or is no regular file."""
    TOO_LARGE = "too_large"
    NOT_ELF = "not_elf"
    WRONG_ARCHITECTURE = "wrong_architecture"
    MISMATCH = "mismatch"
    """The content is not what was pinned, given or recorded."""
    UNPINNED = "unpinned"
    """Nothing says what the content should be."""
    OLDER = "older"
    NO_PREVIOUS = "no_previous"
    """There is nothing to go back to."""
    UNSUPPORTED = "unsupported"
    """The official distribution has nothing for this processor."""
    DISK = "disk"
    """No room, or the file system refuses."""
    BUSY = "busy"
    """Another installation is under way."""
    SEALING = "sealing"
    """The kernel does not let a sealed copy be executed."""


class CoreFlawError(UserError):
    """A core that is not installed or not started, with the flaw by name."""

    def __init__(self, flaw: CoreFlaw, what: str, why: str, next_step: str) -> None:
        super().__init__(what, why, next_step)
        self.flaw = flaw
