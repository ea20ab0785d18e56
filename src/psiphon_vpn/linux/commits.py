# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who committed what to the ruleset: the kernel's announcements, complete and in order, or known to be incomplete.

Every commit by any program makes a new generation (nf_tables_commit), and the lease is renewed for one generation only.
Other programs commit often: dnsmasq, fail2ban or crowdsec add elements to their own sets, many times a second. Such a
commit cannot change a rule. So a generation that differs from a verified one only by such commits is as good as the
verified one, if each of them was received from its first message to its last.

Anything else is not judged here: it has to be read back.
"""

import errno
from collections import deque
from collections.abc import Callable
from typing import Final

from psiphon_vpn.linux.nfnetlink import Generation, follow, open_generation_monitor, parse_generations

_LARGEST: Final = 1 << 16
_READS_AT_ONCE: Final = 64
_MOST_READS: Final = 4096
"""More than the socket's buffer holds: after so many, messages arrive faster than they are read."""
_HALF: Final = 1 << 31


def _distance(older: int, newer: int) -> int:
    """How many generations lie between two of them; the numbers start again after 2^32."""
    return (newer - older) & 0xFFFFFFFF


class CommitLog:
    """Which generations differ in nothing that matters here. Pure."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._since: int | None = None
        """The generation since which all commits were harmless, without a gap."""
        self._harmful = False
        self._untouched_since: int | None = None
        """The same for commits that touched no table of the service, whatever else they changed."""
        self._ours = False
        self._parts = 0
        """How many messages about tables were received of the commit that is being announced."""
        self._lost = False
        """Messages were lost, and the rest of what waited with them is not read yet."""

    @property
    def last(self) -> int | None:
        """The last generation that was announced."""
        return self._last

    @property
    def since(self) -> int | None:
        """The generation since which nothing that matters was committed, as far as is known."""
        return self._since

    def hear(self, generation: Generation) -> bool:
        """Take the next announcement. Returns whether it, or the end of its commit, may mean that a rule changed."""
        self._harmful = self._harmful or generation.harmful
        self._ours = self._ours or generation.ours
        self._parts += bool(generation.tables)
        if generation.number == 0:
            return generation.harmful  # more of the same commit follows
        harmful, self._harmful = self._harmful or not self._parts, False
        ours, self._ours = self._ours or not self._parts, False
        self._parts = 0
        complete = self._last is not None and generation.number == follow(self._last)
        if harmful or not complete:
            self._since = generation.number
        if ours or not complete:
            self._untouched_since = generation.number
        self._last = generation.number
        return harmful

    def lose(self) -> None:
        """Messages were lost. Those before them are still to be read, then perhaps the rest of a lost commit."""
        self._lost = True
        self._last = self._since = self._untouched_since = None

    def drain(self) -> None:
        """Nothing waits to be read. A commit that ends next may have lost its beginning, so it does not count."""
        if self._lost:
            self._lost = False
            self._last = self._since = self._untouched_since = None
            self._harmful = self._ours = True

    def covers(self, verified: int, now: int, *, ours_alone: bool = False) -> bool:
        """Whether everything between a generation that was verified and a later one was received and is harmless.

        ours_alone: whether it touched no table of the service, which is a weaker condition.
        """
        since = self._untouched_since if ours_alone else self._since
        if verified == now:
            return True
        if self._lost or self._last is None or since is None:
            return False
        known = _distance(since, verified) <= _distance(since, now) <= _distance(since, self._last)
        return known and _distance(verified, now) < _HALF


class Commits:
    """The announcements, read as they arrive, and at once when a caller needs them."""

    def __init__(self) -> None:
        self._socket = open_generation_monitor()
        self._log = CommitLog()
        self._untold: deque[Generation | None] = deque()
        self._on_untold: Callable[[], None] = lambda: None

    def fileno(self) -> int:
        """The descriptor, readable when something was announced."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()

    def call_when_untold(self, function: Callable[[], None]) -> None:
        """Set the function to call whenever something was read that `take` has not returned yet."""
        self._on_untold = function

    def take(self) -> list[Generation | None]:
        """What was announced since the last call, without what is harmless; None for each loss.

        Reads only so much at once: the descriptor stays readable while there is more.
        """
        self._read(_READS_AT_ONCE)
        told = list(self._untold)
        self._untold.clear()
        return told

    def find_equal(self, verified: int) -> int:
        """The last generation that differs in nothing that matters from one that was verified; at least that one."""
        if self._read(_MOST_READS) and self._untold:
            self._on_untold()
        last = self._log.last
        return last if last is not None and self._log.covers(verified, last) else verified

    def is_equal(self, verified: int, now: int) -> bool:
        """Whether nothing that matters was committed between a generation that was verified and a later one."""
        return verified == now or (self.find_equal(verified) != verified and self._log.covers(verified, now))

    def find_untouched(self, generation: int) -> int:
        """The last generation before which no table of the service was touched since a given one; at least that one.

        For a reading that was just made, and what follows it at once; not for one that was made long ago.
        """
        self.find_equal(generation)
        last = self._log.last
        return last if last is not None and self._log.covers(generation, last, ours_alone=True) else generation

    def is_untouched(self, generation: int, now: int) -> bool:
        """Whether no table of the service was touched between two generations, of which the second may be past."""
        if generation == now:
            return True
        self.find_equal(generation)
        return self._log.covers(generation, now, ours_alone=True)

    def find_origin(self, now: int) -> int:
        """The earliest known generation from which only harmless commits led to this one; its rules are the same."""
        self.find_equal(now)
        since = self._log.since
        return since if since is not None and self._log.covers(since, now) else now

    def _read(self, most: int) -> bool:
        """Read what waits. Returns whether anything did."""
        for count in range(most):
            try:
                data = self._socket.recv(_LARGEST)
            except BlockingIOError:
                self._log.drain()
                return count > 0
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._log.lose()
                self._untold.append(None)
                continue
            self._hear(data)
        return True

    def _hear(self, data: bytes) -> None:
        try:
            for generation in parse_generations(data):
                if self._log.hear(generation):
                    self._untold.append(generation)
        except Exception:
            self._log.lose()
            self._untold.append(None)
            raise
