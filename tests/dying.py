# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that dies between two system calls."""

from __future__ import annotations

import os
from collections.abc import Callable

EFFECTS = """
    mkdir open write fsync chmod fchmod fchown rename replace symlink unlink rmdir close fstat sendfile
""".split()


def die_at(number: int, work: Callable[[], object]) -> bool:
    """Do something in a process that dies at its n-th system call of a kind that matters; True if it finished."""
    child = os.fork()
    if child == 0:
        count = 0

        def guard(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == number:
                    os._exit(9)
                return real(*args, **options)

            return call

        for name in EFFECTS:
            setattr(os, name, guard(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001  nothing may return into the test from here
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 9}, "the work failed without being killed"
    return code == 0
