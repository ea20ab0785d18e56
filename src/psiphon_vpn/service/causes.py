# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the core gets no tunnel, from its notices and from what is known without sending anything."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from psiphon_vpn.core import events as notices
from psiphon_vpn.core.flaws import CoreFlaw
from psiphon_vpn.core.process import CoreError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.servers.errors import ListFlaw
from psiphon_vpn.service.reasons import Reason

FAULTS: Final[dict[type[notices.CoreEvent], Reason]] = {
    notices.PortInUse: Reason.PORT_IN_USE,
    notices.UpstreamProxyError: Reason.UPSTREAM_PROXY,
    notices.ConfigRejected: Reason.BAD_CONFIG,
    notices.TunDeviceFailed: Reason.TUN_FAILED,
}
STORE_FAULTS: Final = {"held": Reason.DATASTORE, "disk": Reason.DISK, "broken": Reason.DATASTORE_BROKEN}
UNFIT: Final = {"region": Reason.REGION, "protocols": Reason.PROTOCOLS, "proxy": Reason.TARGET_AND_PROXY}
LIMITS: Final = ("LimitTunnelProtocols", "LimitTunnelDialPortNumbers", "UpstreamProxyURL")
"""Options of the core that exclude servers by their protocols or ports."""
LISTS: Final = ("RemoteServerListURLs", "ObfuscatedServerListRootURLs", "RemoteServerListUrl")
FLAWS: Final[dict[CoreFlaw, Reason]] = {
    CoreFlaw.NOT_INSTALLED: Reason.CORE_NOT_INSTALLED,
    CoreFlaw.MISMATCH: Reason.CORE_MISMATCH,
    CoreFlaw.BAD_RECORD: Reason.CORE_RECORD,
    CoreFlaw.SEALING: Reason.CORE_SEALING,
}
MAX_SKEW_SECONDS: Final = 600.0
"""A smaller error of the clock harms nothing."""
EARLIEST: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""This program is younger: a clock that shows an earlier time has lost its battery."""
MOST_TRIED: Final = 10_000
"""So many servers are told apart; the public network has a few thousand."""
ROUNDS_WITHOUT_DIAL: Final = 6
"""After a list arrived, the core says no more whether its servers may be used: it goes round them and dials none. It
reports the servers of its store up to twice in a round."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a core was started with, as far as it explains why there is no server.

    Attributes:
        region: the country that the user asked for, or "".
        target: the user named the only server to use. The core does not count it among its candidates.
        limited: settings exclude some protocols.
        lists: the core knows where to get a list of servers.
        lookup: the core may look names up outside the tunnel.
        flaw: why the core did not get the stored list; None if it did, or if there is none.
    """

    region: str = ""
    target: bool = False
    limited: bool = False
    lists: bool = False
    lookup: bool = False
    flaw: ListFlaw | None = None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a core said since it was started or last had a tunnel.

    Attributes:
        up: it has a tunnel.
        final: what it said is wrong, whatever else it says.
        known: servers in its store; None if it did not say.
        candidates: of these, how many it may use; None if not counted, or not counted again since a list arrived.
        regions: where the servers are that the protocols allow.
        rounds: how often it reported servers in its store.
        tried: the servers that it dialled, each as a number without meaning.
        protocols: by which it dialled them.
        list_trouble: why the last attempt to get a list failed.
    """

    up: bool = False
    final: Reason | None = None
    known: int | None = None
    candidates: int | None = None
    regions: tuple[str, ...] = ()
    rounds: int = 0
    tried: frozenset[int] = frozenset()
    protocols: frozenset[str] = frozenset()
    list_trouble: notices.ListTrouble | None = None


@dataclass(frozen=True)
class Fault:
    """What is wrong, and more about it for people."""

    reason: Reason
    detail: str = ""


def read_attempt(config: Mapping[str, object], *, lookup: bool, flaw: ListFlaw | None = None) -> Attempt:
    """What explains an attempt.

    Args:
        config: the core's configuration, as `render_core_config` made it.
        lookup: whether the core may look names up outside the tunnel.
        flaw: why it did not get the stored list, if there is one.
    """
    fetches = not config.get("DisableRemoteServerListFetcher")
    return Attempt(
        region=str(config.get("EgressRegion") or ""),
        target=bool(config.get("TargetServerEntry")),
        limited=any(config.get(name) for name in LIMITS),
        lists=fetches and any(config.get(name) for name in LISTS),
        lookup=lookup,
        flaw=None if flaw is ListFlaw.NONE_STORED else flaw,
    )


class CauseFinder:
    """Reads the notices of one core. What is wrong is judged anew from everything that it said, in whatever order.

    Args:
        attempt: what the core was started with.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._heard = Heard()
        self._around: Reason | None = None
        self._waited: float | None = None
        self._fault: Fault | None = None

    @property
    def heard(self) -> Heard:
        """What the core said of its servers since it last had a tunnel."""
        return self._heard

    @property
    def fault(self) -> Fault | None:
        """What is wrong, as far as is known."""
        return self._fault

    def hear(self, notice: notices.CoreEvent) -> bool:
        """Take a notice; returns whether `fault` changed."""
        self._heard = take_notice(self._heard, notice)
        if isinstance(notice, notices.Tunnels) and notice.count > 0:
            self._around = self._waited = None
        return self._judge()

    def look(self, around: Reason | None, waited: float) -> bool:
        """Take what this machine knows without the core.

        Args:
            around: why no server may answer (`look_around`).
            waited: seconds that the core has tried.

        Returns:
            Whether `fault` changed.
        """
        self._around, self._waited = around, waited
        return self._judge()

    def _judge(self) -> bool:
        before = self._fault
        self._fault = judge(self._attempt, self._heard, around=self._around, waited=self._waited)
        return self._fault != before


def take_notice(heard: Heard, notice: notices.CoreEvent) -> Heard:
    """What is known of a core after one more notice."""
    match notice:
        case notices.Tunnels(count) if count > 0 or heard.up:
            # With a tunnel nothing is wrong; after it another establishment begins. The servers stay known.
            return Heard(up=count > 0, known=heard.known or None, regions=heard.regions)
        case notices.KnownServers(count):
            if count and not heard.known and heard.known is not None:
                # A list arrived. Candidates and regions were counted before, and are not counted again.
                heard = replace(heard, candidates=None, regions=(), rounds=0)
            rounds = heard.rounds + 1 if count else 0
            return replace(heard, known=count, rounds=rounds, list_trouble=None if count else heard.list_trouble)
        case notices.CandidateServers(count):
            return replace(heard, candidates=count)
        case notices.AvailableEgressRegions(regions):
            return replace(heard, regions=regions)
        case notices.ConnectingServer(server, _, protocol):
            tried = heard.tried if len(heard.tried) >= MOST_TRIED else heard.tried | {server}
            protocols = heard.protocols | {protocol} if protocol else heard.protocols
            return replace(heard, tried=tried, protocols=protocols)
        case notices.ConnectedServer():
            return replace(heard, final=None if heard.final is Reason.UPSTREAM_PROXY else heard.final)
        case notices.ListFailed(trouble):
            return replace(heard, list_trouble=trouble)
        case notices.DatastoreError(why):
            return replace(heard, final=STORE_FAULTS[why])
        case notices.TargetUnfit(what):
            return replace(heard, final=UNFIT[what])
        case _ if type(notice) in FAULTS:
            return replace(heard, final=FAULTS[type(notice)])
        case _:
            return heard


def judge(attempt: Attempt, heard: Heard, *, around: Reason | None = None, waited: float | None = None) -> Fault | None:
    """What is wrong with a core without a tunnel: the most certain of what is known. None while nothing is.

    Args:
        attempt: what the core was started with.
        heard: what it said.
        around: what this machine knows without it (`look_around`).
        waited: seconds that it has tried; None if that is not yet worth telling.
    """
    if heard.final is not None:
        return Fault(heard.final)
    if heard.up:
        return None
    if around is Reason.SUBNET_TAKEN:
        return Fault(around)
    # 0 in either says that it has looked; before that nothing is known about servers.
    none_known = 0 in {heard.known, heard.candidates} and not (
        attempt.target or heard.tried or heard.known or heard.candidates or heard.regions
    )
    if none_known and attempt.flaw is not None:
        return Fault(Reason.LIST_NOT_USED, explain_flaw(attempt.flaw))
    if none_known and not attempt.lists and (heard.known == 0 or not attempt.limited):
        return Fault(Reason.NO_LIST)
    if (excluded := _find_exclusion(attempt, heard)) is not None:
        return excluded
    if around in {Reason.UPLINK_PROGRAM, Reason.CAPTIVE_PORTAL, Reason.CLOCK}:
        return Fault(around)
    if none_known:
        return _explain_missing_list(attempt, heard)
    if waited is None:
        return None
    return Fault(Reason.SLOW if around is None else around, describe_attempts(heard, waited))


def _find_exclusion(attempt: Attempt, heard: Heard) -> Fault | None:
    """The setting that excludes all servers that the core knows; None if none does, or if that is not known."""
    if attempt.target or heard.tried or not (heard.known or heard.regions):
        return None
    if heard.candidates or (heard.candidates is None and heard.rounds < ROUNDS_WITHOUT_DIAL):
        return None
    # The core names regions only of servers that the protocols allow.
    if attempt.region and (heard.regions or not attempt.limited):
        if attempt.region not in heard.regions:
            known = ", ".join(heard.regions)
            return Fault(Reason.REGION, _("there are servers in {regions}").format(regions=known) if known else "")
    elif heard.candidates is None and not attempt.limited:
        return None
    return Fault(Reason.PROTOCOLS)


def _explain_missing_list(attempt: Attempt, heard: Heard) -> Fault:
    match heard.list_trouble:
        case None:
            return Fault(Reason.NO_SERVER_LIST)
        case notices.ListTrouble.LOOKUP:
            return Fault(Reason.LIST_HOST_NOT_FOUND if attempt.lookup else Reason.LIST_LOOKUP_OFF)
        case notices.ListTrouble.UNREACHABLE | notices.ListTrouble.REFUSED:
            return Fault(Reason.LIST_NOT_REACHED, explain_list_trouble(heard.list_trouble))
        case notices.ListTrouble.STORAGE:
            return Fault(Reason.DISK)
        case trouble:
            return Fault(Reason.LIST_NOT_VERIFIED, explain_list_trouble(trouble))


def explain_list_trouble(trouble: notices.ListTrouble) -> str:
    """Which check a list did not pass, or what its host answered; empty if there is no more to say."""
    return {
        notices.ListTrouble.REFUSED: _("it answered, and did not give the list"),
        notices.ListTrouble.CERTIFICATE: _("the host that answered has a wrong certificate"),
        notices.ListTrouble.WRONG_KEY: _("it is signed with another key"),
        notices.ListTrouble.BAD_SIGNATURE: _("its signature is wrong"),
        notices.ListTrouble.NOT_A_LIST: _("what came is no list"),
    }.get(trouble, "")


def explain_flaw(flaw: ListFlaw) -> str:
    """Which check the stored list did not pass, in a few words; empty if there is no more to say."""
    return {
        ListFlaw.UNREADABLE: _("it cannot be read"),
        ListFlaw.TRUNCATED: _("its end is missing"),
        ListFlaw.DAMAGED: _("it is damaged"),
        ListFlaw.NOT_A_LIST: _("it is no list"),
        ListFlaw.WRONG_KEY: _("it is signed with another key"),
        ListFlaw.BAD_SIGNATURE: _("its signature is wrong"),
        ListFlaw.TOO_LARGE: _("it is too large"),
        ListFlaw.EMPTY: _("there is no server in it"),
        ListFlaw.MALFORMED_ENTRY: _("a server in it is malformed"),
        ListFlaw.OTHER_PROFILE: _("it belongs to another profile than the configuration names"),
        ListFlaw.NO_PROFILE: _("there is no profile of that name that can be trusted"),
        ListFlaw.BAD_RECORD: _("its record cannot be trusted"),
        ListFlaw.CHECKER: _("the programs that verify it do not work here"),
        ListFlaw.DISK: _("there is no room"),
    }.get(flaw, "")


def describe_attempts(heard: Heard, waited: float) -> str:
    """How many servers are known and were tried, for people; empty if the core did not say."""
    if not heard.known:
        return ""
    known = ngettext("{count} server known", "{count} servers known", heard.known).format(count=heard.known)
    tried = _("{count} tried in {seconds} s").format(count=len(heard.tried), seconds=round(waited))
    return f"{known}, {tried}"


def explain_failed_start(error: CoreError) -> Reason:
    """Why a core could not be started."""
    if error.flaw is not None:
        return FLAWS.get(error.flaw, Reason.CORE_MISSING)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EROFS, errno.EDQUOT}:
        return Reason.DISK
    return Reason.CORE_MISSING


def look_around(
    *,
    now: datetime,
    skew: float | None,
    portal: bool,
    ipv4: bool = True,
    taken: bool = False,
    of_program: bool = False,
) -> Reason | None:
    """Why no server may answer, as far as this machine knows without the core; None if it knows no reason.

    Args:
        now: this machine's clock.
        skew: seconds that it is ahead of the last server that answered.
        portal: the network announced a sign-in page.
        taken: whether the network has the tunnel's own addresses.
        of_program: whether the uplink is an interface that a program makes (`Uplink.of_program`).
        ipv4: whether the network has IPv4. psiphon-tunnel-core also dials servers with known IPv6 addresses.
    """
    if taken:
        return Reason.SUBNET_TAKEN
    if of_program:
        return Reason.UPLINK_PROGRAM
    if portal:
        return Reason.CAPTIVE_PORTAL
    if now < EARLIEST or (skew is not None and abs(skew) > MAX_SKEW_SECONDS):
        return Reason.CLOCK
    return None if ipv4 else Reason.NO_IPV4
