# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a failed try says something about this kernel, or only about this moment; and trying until it is decided.

A mechanism that only seems to be missing would be left out of the lock for as long as the daemon runs.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from secrets import SystemRandom
from typing import Final

from psiphon_vpn.run import CommandError

ATTEMPTS: Final = 5
PAUSE_SECONDS: Final = 0.2
"""After the first attempt."""
PASSING: Final = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Errors that say nothing about the kernel's mechanisms: the same may succeed a moment later."""


async def decide(attempt: Callable[[], Awaitable[bool]], *, what: str = "") -> bool:
    """Try until it is decided.

    Args:
        attempt: one try, which raises CommandError or OSError if it was disturbed.
        what: what is tried without a command, for the error.

    Raises:
        CommandError: it could not be decided.
    """
    for done, left in enumerate(reversed(range(ATTEMPTS))):
        try:
            return await attempt()
        except CommandError:
            if not left:
                raise
        except OSError as error:
            if not left:
                raise CommandError([what], error.strerror or str(error)) from error
        # Longer each time and never in step: another process may be trying the same and be disturbed by this one.
        await asyncio.sleep(PAUSE_SECONDS * 2**done * SystemRandom().uniform(0.5, 1.5))
    raise AssertionError("there is at least one attempt")


def is_refusal(error: CommandError) -> bool:
    """Whether nft, or the kernel through it, said no, rather than being disturbed."""
    if isinstance(error.__cause__, OSError):
        # It cannot be started at all, in whatever state the machine is.
        return error.__cause__.errno in {errno.ENOENT, errno.EACCES, errno.ENOEXEC}
    if error.returncode is None or error.returncode < 0:
        return False  # too slow, or killed
    return not was_disturbed(error.stderr)


def was_disturbed(said: str) -> bool:
    """Whether a program's message names a passing error."""
    return any(os.strerror(number) in said for number in PASSING)
