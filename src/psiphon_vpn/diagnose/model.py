"""What a check is and what it says."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psiphon_vpn.diagnose.facts import Facts


def mark(message: str) -> str:
    """Mark a constant for the catalogue of translations; it is translated when it is shown."""
    return message


class Group(enum.StrEnum):
    """What a check is about, in the order in which it is shown."""

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


GROUP_TITLES: Final = {
    Group.LOCK: mark("The lock"),
    Group.ROUTES: mark("Routes"),
    Group.TUNNEL: mark("The tunnel and the service"),
    Group.DNS: mark("Names (DNS)"),
    Group.CORE: mark("The tunnel core"),
    Group.FILES: mark("Files and modes"),
    Group.UNITS: mark("Units of systemd"),
    Group.KERNEL: mark("The kernel and its tools"),
    Group.FIREWALLS: mark("Other firewalls and VPNs"),
    Group.CLOCK: mark("The clock"),
    Group.DISK: mark("Disk"),
    Group.LIVE: mark("Live probes"),
}


class Verdict(enum.StrEnum):
    """What a check found.

    WARNING is worth knowing and nothing wrong. SKIPPED does not apply here; the reason says why. UNKNOWN could not be
    told, and counts as wrong.
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
        next_step: what to do, when it is something else than the check usually says.
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


class Skip(Exception):
    """The check does not apply here; the text says why."""


class Unknowable(Exception):
    """What the check needs to know cannot be read; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        id: for programs, "group.what"; never reused for another meaning.
        title: what is so when all is well. Not translated yet.
        next_step: what to do when it fails. Not translated yet.
        decides: whether the machine is locked cannot be told without this check.
        run: looks, and says. Anything that it raises is caught.
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
    """Make a check out of a function; its group is what stands before the dot of `id`."""

    def make(function: Callable[[Facts], Outcome]) -> Check:
        group = Group(id.split(".", maxsplit=1)[0])
        return Check(id=id, group=group, title=title, next_step=next_step, run=function, decides=decides)

    return make


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check said in this run. Texts are translated."""

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

    That the lock could not be read is no reason to call the machine locked: 2 as well.
    """
    blind = {Verdict.UNKNOWN, Verdict.SKIPPED}
    if any(result.open or (result.check.decides and result.verdict in blind) for result in results):
        return EXIT_OPEN
    return EXIT_WRONG if any(result.wrong for result in results) else EXIT_GOOD
