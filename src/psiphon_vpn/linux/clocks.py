# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the machine has slept, read from its own clocks: no service has to report it.

CLOCK_BOOTTIME counts while the machine sleeps, CLOCK_MONOTONIC does not (clock_gettime(2)). A timer that expires in the
far future reports a jump of the clock: the kernel cancels it on every jump, and also after a resume
(TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)). It costs nothing until then.
"""

import contextlib
import ctypes
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Final

LEAST_SLEEP_SECONDS: Final = 0.3
"""A shorter sleep cannot be distinguished from the time that passes between reading two clocks."""
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
FAR_FUTURE: Final = 1 << 33
"""Seconds since 1970: the year 2242. The kernel refuses to set a clock beyond 2232 (TIME_SETTOD_SEC_MAX, time64.h);
a later clock would make the timer expire again and again."""


def read_slept() -> float:
    """Seconds that the machine has slept since it was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def read_wall() -> datetime:
    """The wall clock, UTC. It may jump by years either way, so only messages for people may use it."""
    return datetime.now(UTC)


def read_running() -> float:
    """Seconds on a clock that only goes forward, also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Moment:
    """A moment, expressed by the wall clock as it was last set.

    Until `correct` is called it is expressed in the same way each time.
    """

    def __init__(self) -> None:
        self._at = read_running()
        self._told = read_wall()

    def tell(self) -> datetime:
        """When it was, UTC."""
        return self._told

    def correct(self) -> None:
        """The wall clock jumped: express the moment by the new time."""
        with contextlib.suppress(OverflowError):
            self._told = read_wall() - timedelta(seconds=read_running() - self._at)


class ServerClock:
    """What a server said the time is."""

    def __init__(self, said: datetime) -> None:
        self._said = said
        self._at = read_running()

    def measure_skew(self) -> float:
        """Seconds that this machine's clock is ahead of the server's now; negative when it is behind."""
        return (read_wall() - self._said).total_seconds() - (read_running() - self._at)


class SleepClock:
    """Reports each sleep once."""

    def __init__(self) -> None:
        self._known = read_slept()

    def take(self) -> bool:
        """Whether the machine has slept since the last call."""
        now = read_slept()
        slept = now - self._known > LEAST_SLEEP_SECONDS
        self._known = now
        return slept


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("it_interval", _Timespec), ("it_value", _Timespec)]


class JumpTimer:
    """A descriptor that is readable after the wall clock jumped, or the machine woke.

    Raises:
        OSError: the C library or the kernel has no such timer.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timerfd_create"):
            raise OSError("this C library has no timerfd_create")
        self._fd = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._arm()

    def fileno(self) -> int:
        """The descriptor."""
        return int(self._fd)

    def _arm(self) -> None:
        when = _Itimerspec(_Timespec(0, 0), _Timespec(FAR_FUTURE, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        # ECANCELED: the clock has jumped since; the timer is armed all the same.
        self._libc.timerfd_settime(self._fd, flags, ctypes.byref(when), None)

    def acknowledge(self) -> None:
        """Take note of the jump, and be ready for the next."""
        with contextlib.suppress(OSError):  # ECANCELED: that is the news
            os.read(self._fd, 8)
        self._arm()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
