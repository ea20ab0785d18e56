"""Why the core gets no tunnel, from its notices and from what is known without sending anything."""

import errno
from datetime import UTC, datetime
from typing import Final

from psiphon_vpn.core import events as notices
from psiphon_vpn.core.flaws import CoreFlaw
from psiphon_vpn.core.process import CoreError
from psiphon_vpn.service.reasons import Reason

FAULTS: Final[dict[type[notices.CoreEvent], Reason]] = {
    notices.PortInUse: Reason.PORT_IN_USE,
    notices.UpstreamProxyError: Reason.UPSTREAM_PROXY,
    notices.ConfigRejected: Reason.BAD_CONFIG,
    notices.TunDeviceFailed: Reason.TUN_FAILED,
}
STORE_FAULTS: Final = {"held": Reason.DATASTORE, "disk": Reason.DISK, "broken": Reason.DATASTORE_BROKEN}
UNFIT: Final = {"region": Reason.REGION, "protocols": Reason.PROTOCOLS, "proxy": Reason.TARGET_AND_PROXY}
FLAWS: Final[dict[CoreFlaw, Reason]] = {
    CoreFlaw.NOT_INSTALLED: Reason.CORE_NOT_INSTALLED,
    CoreFlaw.MISMATCH: Reason.CORE_MISMATCH,
    CoreFlaw.BAD_RECORD: Reason.CORE_RECORD,
    CoreFlaw.SEALING: Reason.CORE_SEALING,
}
NO_CANDIDATES: Final = frozenset({Reason.NO_SERVER_LIST, Reason.REGION, Reason.PROTOCOLS})
MAX_SKEW_SECONDS: Final = 600.0
"""A smaller error of the clock harms nothing."""
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""This program is younger: a clock that shows an earlier time has lost its battery."""


class CauseFinder:
    """Reads the notices of one core.

    Args:
        egress_region: the country that the user asked for, or "".
        target: the user named the only server to use. The core does not count it among its candidates.
    """

    def __init__(self, egress_region: str, *, target: bool = False) -> None:
        self._region = egress_region
        self._target = target
        self._regions: tuple[str, ...] = ()
        self._fault: Reason | None = None

    def hear(self, notice: notices.CoreEvent) -> bool:
        """Take a notice; returns whether `fault` changed."""
        before = self._fault
        match notice:
            case notices.AvailableEgressRegions(regions):
                self._regions = regions
            case notices.CandidateServers() if self._target:
                pass
            case notices.CandidateServers(0):
                self._fault = self._explain_no_candidates()
            case notices.CandidateServers() if self._fault in NO_CANDIDATES:
                self._fault = None
            case notices.Tunnels(count) if count > 0:
                self._fault = None
            case notices.DatastoreError(why):
                self._fault = STORE_FAULTS[why]
            case notices.TargetUnfit(what):
                self._fault = UNFIT[what]
            case _ if type(notice) in FAULTS:
                self._fault = FAULTS[type(notice)]
            case _:
                pass
        return self._fault is not before

    @property
    def fault(self) -> Reason | None:
        """What is wrong, according to the core's notices."""
        return self._fault

    def _explain_no_candidates(self) -> Reason:
        # A core that knows no region knows no server, whichever region the user wants.
        if not self._regions:
            return Reason.NO_SERVER_LIST
        if self._region and self._region not in self._regions:
            return Reason.REGION
        return Reason.PROTOCOLS


def explain_failed_start(error: CoreError) -> Reason:
    """Why a core could not be started."""
    if error.flaw is not None:
        return FLAWS.get(error.flaw, Reason.CORE_MISSING)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EROFS, errno.EDQUOT}:
        return Reason.DISK
    return Reason.CORE_MISSING


def find_cause(*, now: datetime, skew: float | None, portal: bool, ipv4: bool = True, taken: bool = False) -> Reason:
    """Why no server answers, as far as this machine knows.

    Args:
        now: this machine's clock.
        skew: seconds that it is ahead of the last server that answered.
        portal: the network announced a sign-in page.
        taken: whether the network has the tunnel's own addresses.
        ipv4: whether the network has IPv4. psiphon-tunnel-core also dials servers with known IPv6 addresses.
    """
    if taken:
        return Reason.SUBNET_TAKEN
    if portal:
        return Reason.CAPTIVE_PORTAL
    if now < EARLIEST or (skew is not None and abs(skew) > MAX_SKEW_SECONDS):
        return Reason.CLOCK
    return Reason.SLOW if ipv4 else Reason.NO_IPV4
