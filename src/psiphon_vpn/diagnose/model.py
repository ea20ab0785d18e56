# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks and their outcomes."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.diagnose.facts import Facts


def mark(message: str) -> str:
    """Mark a constant for the catalogue of translations; it is translated when it is shown."""
    return message


class Group(enum.StrEnum):
    """Subjects of checks, in the order in which they are shown."""

    LOCK = "lock"
    ROUTES = "routes"
    TUNNEL = "tunnel"
    DNS = "dns"
    CORE = "core"
    FILES = "files"
    UNITS = "units"
    KERNEL = "kernel"
    FIREWALLS = "firewalls"
    CLOCK = "clock"
    DISK = "disk"
    LIVE = "live"


RESTORE: Final = mark("Restore it: sudo psiphon-vpn setup (you can run it again at any time)")
"""For what acts on the system: `setup` puts it in place."""
INSTALL_AGAIN: Final = mark("Install it again, which opens nothing: psiphon-vpn help stranded says how")
"""For the program and its units: only a package or a clone has them."""
GROUP_TITLES: Final = {
    Group.LOCK: mark("The lock"),
    Group.ROUTES: mark("Routes"),
    Group.TUNNEL: mark("The tunnel and the service"),
    Group.DNS: mark("Names (DNS)"),
    Group.CORE: mark("The tunnel program"),
    Group.FILES: mark("Files and modes"),
    Group.UNITS: mark("Units of systemd"),
    Group.KERNEL: mark("The kernel and its tools"),
    Group.FIREWALLS: mark("Other firewalls and VPNs"),
    Group.CLOCK: mark("The clock"),
    Group.DISK: mark("Disk"),
    Group.LIVE: mark("Live probes"),
}


class Verdict(enum.StrEnum):
    """The verdict of a check.

    WARNING: worth knowing, but nothing is wrong. SKIPPED: does not apply here; the reason says why. UNKNOWN: could not
    be determined, and counts as wrong.
    """

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of a check.

    Attributes:
        reason: one line, translated.
        next_step: what to do, if that differs from the check's usual next step.
        open: traffic can leave this machine past the tunnel.
    """

    verdict: Verdict
    reason: str
    next_step: str | None = None
    open: bool = False


def ok(reason: str) -> Outcome:
    """All is well."""
    return Outcome(verdict=Verdict.OK, reason=reason)


def warn(reason: str, next_step: str | None = None) -> Outcome:
    """Worth knowing, nothing wrong."""
    return Outcome(verdict=Verdict.WARNING, reason=reason, next_step=next_step)


def fail(reason: str, next_step: str | None = None, *, is_open: bool = False) -> Outcome:
    """Something is wrong."""
    return Outcome(verdict=Verdict.FAILED, reason=reason, next_step=next_step, open=is_open)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        id: for programs, "group.what"; never reused for another meaning.
        title: true when all is well. Not translated yet.
        next_step: what to do if it fails. Not translated yet.
        decides: without this check it is unknown whether the machine is locked.
        run: the check itself. Anything that it raises is caught.
    """

    id: str
    group: Group
    title: str
    next_step: str
    run: Callable[[Facts], Outcome]
    decides: bool = False


def check(
    id: str, title: str, next_step: str, *, decides: bool = False
) -> Callable[[Callable[[Facts], Outcome]], Check]:
    """Make a function a check; its group is the part of `id` before the dot."""

    def make(function: Callable[[Facts], Outcome]) -> Check:
        group = Group(id.split(".", maxsplit=1)[0])
        return Check(id=id, group=group, title=title, next_step=next_step, run=function, decides=decides)

    return make


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a check in this run. Texts are translated."""

    check: Check
    verdict: Verdict
    reason: str
    next_step: str | None
    open: bool
    seconds: float

    @property
    def wrong(self) -> bool:
        """Whether it counts as wrong."""
        return self.verdict in {Verdict.FAILED, Verdict.UNKNOWN}


EXIT_GOOD, EXIT_WRONG, EXIT_OPEN = 0, 1, 2


def find_exit_code(results: tuple[Result, ...]) -> int:
    """Return 0 when nothing is wrong, 1 when something is wrong but the machine is locked, 2 when something is open.

    If the lock could not be read, the machine does not count as locked: 2 as well.
    """
    blind = {Verdict.UNKNOWN, Verdict.SKIPPED}
    if any(result.open or (result.check.decides and result.verdict in blind) for result in results):
        return EXIT_OPEN
    return EXIT_WRONG if any(result.wrong for result in results) else EXIT_GOOD
