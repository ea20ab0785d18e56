# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be wrong with a server list or a profile: a code for programs, a line for users."""

import enum

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _


class ListFlaw(enum.StrEnum):
    """Every possible flaw."""

    NONE_STORED = "none_stored"
    """There is no list."""
    NOT_FETCHED = "not_fetched"
    """No host gave one."""
    UNREADABLE = "unreadable"
    """The file does not exist, cannot be read, or is no regular file."""
    TRUNCATED = "truncated"
    """The end is missing."""
    DAMAGED = "damaged"
    """It begins like a list, and its content is not that of one."""
    NOT_A_LIST = "not_a_list"
    """Something else: a web page, JSON, a program."""
    WRONG_KEY = "wrong_key"
    """The list itself names another key than the profile's."""
    BAD_SIGNATURE = "bad_signature"
    """The list names the profile's key, and its signature is not made with it."""
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    """There is no server in it."""
    MALFORMED_ENTRY = "malformed_entry"
    """A server entry is malformed."""
    UNSIGNED = "unsigned"
    """Server entries that nobody has signed."""
    MUCH_SMALLER = "much_smaller"
    """It has far fewer servers than the list in use. A question: an old list is like that, and so is a false one."""
    SEEN_BEFORE = "seen_before"
    """It was in use earlier. A question: lists have no date, so nothing else shows that it is old."""
    OTHER_PROFILE = "other_profile"
    """It was verified with the key of another profile than the one in the configuration."""
    NO_PROFILE = "no_profile"
    """There is no such profile, or it cannot be trusted."""
    BAD_RECORD = "bad_record"
    """The record of a stored list cannot be trusted."""
    NO_PREVIOUS = "no_previous"
    """There is nothing to go back to."""
    CHECKER = "checker"
    """The programs that verify a list do not work here."""
    DISK = "disk"
    """No space, or the file system refuses."""
    BUSY = "busy"
    """Another command is changing the lists."""


QUESTIONS = frozenset({ListFlaw.MUCH_SMALLER, ListFlaw.SEEN_BEFORE})
"""Flaws that a user may decide to accept."""


class ListError(UserError):
    """A list or a profile is not used because of a flaw. Nothing has changed."""

    def __init__(self, flaw: ListFlaw, why: str, next_step: str, *, what: str | None = None) -> None:
        super().__init__(what or _("The server list is not used"), why, next_step)
        self.flaw = flaw


def advise_again() -> str:
    """What to do about a list that did not arrive whole, or is something else."""
    return _("Get it again, by another way if you can; the list in use stays in use.")
