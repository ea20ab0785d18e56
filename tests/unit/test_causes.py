# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the core gets no tunnel: the reason is right in whatever order the core reports."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.core import events as notices
from psiphon_vpn.core.events import CoreEvent, ListTrouble
from psiphon_vpn.servers.errors import ListFlaw
from psiphon_vpn.service.causes import (
    EARLIEST,
    ROUNDS_WITHOUT_DIAL,
    Attempt,
    CauseFinder,
    Fault,
    look_around,
    read_attempt,
)
from psiphon_vpn.service.reasons import Reason

NOW = EARLIEST + timedelta(days=200)
NOT_WITHOUT_SERVERS = {
    Reason.NO_LIST,
    Reason.NO_SERVER_LIST,
    Reason.LIST_LOOKUP_OFF,
    Reason.LIST_HOST_NOT_FOUND,
    Reason.LIST_NOT_REACHED,
    Reason.LIST_NOT_VERIFIED,
    Reason.LIST_NOT_USED,
}
NO_ONE = Attempt()
FETCHING = Attempt(lists=True, lookup=True)


def hear(attempt: Attempt, *said: CoreEvent) -> Reason | None:
    """The reason after some notices."""
    finder = CauseFinder(attempt)
    for notice in said:
        finder.hear(notice)
    return finder.fault.reason if finder.fault else None


def dial(server: int = 1, region: str = "DE", protocol: str = "OSSH") -> notices.ConnectingServer:
    return notices.ConnectingServer(server, region, protocol)


EMPTY = (notices.KnownServers(0), notices.CandidateServers(0), notices.AvailableEgressRegions(()))


@pytest.mark.parametrize(
    ("attempt", "said", "reason"),
    [
        (NO_ONE, EMPTY, Reason.NO_LIST),
        (FETCHING, EMPTY, Reason.NO_SERVER_LIST),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.LOOKUP)), Reason.LIST_HOST_NOT_FOUND),
        (Attempt(lists=True), (*EMPTY, notices.ListFailed(ListTrouble.LOOKUP)), Reason.LIST_LOOKUP_OFF),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.UNREACHABLE)), Reason.LIST_NOT_REACHED),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.REFUSED)), Reason.LIST_NOT_REACHED),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.WRONG_KEY)), Reason.LIST_NOT_VERIFIED),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.CERTIFICATE)), Reason.LIST_NOT_VERIFIED),
        (FETCHING, (*EMPTY, notices.ListFailed(ListTrouble.STORAGE)), Reason.DISK),
        # The chosen country is not the reason while no server at all is known.
        (Attempt(region="CA"), EMPTY, Reason.NO_LIST),
        (Attempt(region="CA", limited=True), EMPTY, Reason.NO_LIST),
    ],
)
def test_without_a_server_the_reason_is_why_there_is_no_list(
    attempt: Attempt, said: tuple[CoreEvent, ...], reason: Reason
) -> None:
    assert hear(attempt, *said) is reason
    assert hear(attempt, *reversed(said)) is reason


@pytest.mark.parametrize("flaw", ListFlaw)
@pytest.mark.parametrize("lists", [True, False])
def test_a_stored_list_that_is_not_used_is_the_reason_until_a_server_is_known(flaw: ListFlaw, lists: bool) -> None:
    config: dict[str, object] = {"RemoteServerListURLs": [{}]} if lists else {}
    attempt = read_attempt(config, lookup=False, flaw=flaw)
    stored = flaw is not ListFlaw.NONE_STORED
    for trouble in ([], [notices.ListFailed(ListTrouble.LOOKUP)] if lists else []):
        assert (hear(attempt, *EMPTY, *trouble) is Reason.LIST_NOT_USED) == stored
    assert hear(attempt, notices.KnownServers(3), notices.CandidateServers(3)) is None


def test_each_check_of_a_list_has_its_own_words() -> None:
    reported = set()
    for trouble in ListTrouble:
        finder = CauseFinder(FETCHING)
        for notice in (*EMPTY, notices.ListFailed(trouble)):
            finder.hear(notice)
        assert finder.fault is not None
        reported.add((finder.fault.reason, finder.fault.detail))
    assert len(reported) == len(ListTrouble)


@pytest.mark.parametrize(
    ("attempt", "known", "regions", "reason"),
    [
        (Attempt(region="CA"), 3, ("DE", "NL"), Reason.REGION),
        (Attempt(region="CA", limited=True), 3, ("DE", "NL"), Reason.REGION),
        (Attempt(region="CA", limited=True), 3, (), Reason.PROTOCOLS),
        (Attempt(limited=True), 3, (), Reason.PROTOCOLS),
        (Attempt(region="CA"), 3, ("CA",), Reason.PROTOCOLS),
        (Attempt(region="CA"), None, ("DE",), Reason.REGION),
        (NO_ONE, None, ("DE",), Reason.PROTOCOLS),
        (NO_ONE, None, (), Reason.NO_LIST),
    ],
)
def test_a_setting_that_excludes_all_servers_is_not_reported_as_a_missing_list(
    attempt: Attempt, known: int | None, regions: tuple[str, ...], reason: Reason
) -> None:
    said: list[CoreEvent] = [notices.CandidateServers(0), notices.AvailableEgressRegions(regions)]
    if known is not None:
        said.insert(0, notices.KnownServers(known))
    assert hear(attempt, *said) is reason
    assert hear(attempt, *reversed(said)) is reason


def test_the_regions_that_there_are_are_reported_with_the_one_that_there_is_not() -> None:
    finder = CauseFinder(Attempt(region="CA"))
    for notice in (notices.KnownServers(2), notices.CandidateServers(0), notices.AvailableEgressRegions(("DE", "NL"))):
        finder.hear(notice)
    assert finder.fault is not None
    assert "DE, NL" in finder.fault.detail


def test_a_list_that_arrives_ends_the_reason_that_it_was_missing() -> None:
    finder = CauseFinder(FETCHING)
    for notice in (*EMPTY, notices.ListFailed(ListTrouble.UNREACHABLE)):
        finder.hear(notice)
    assert finder.hear(notices.KnownServers(500))
    assert finder.fault is None
    finder.hear(dial())
    assert finder.fault is None
    finder.look(None, 15.0)
    assert finder.fault == Fault(Reason.SLOW, "500 servers known, 1 tried in 15 s")


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (Attempt(region="CA", lists=True), Reason.REGION),
        (Attempt(region="CA", lists=True, limited=True), Reason.PROTOCOLS),
        (Attempt(lists=True, limited=True), Reason.PROTOCOLS),
        (Attempt(lists=True), None),
    ],
)
def test_a_list_that_arrives_and_has_no_fitting_server_is_found_out_by_no_dial(
    attempt: Attempt, reason: Reason | None
) -> None:
    """The core counts candidates and names regions only once, before the list has arrived."""
    later = [notices.KnownServers(500)] * ROUNDS_WITHOUT_DIAL
    assert hear(attempt, *EMPTY, *later[:-1]) is None
    assert hear(attempt, *EMPTY, *later) is reason
    assert hear(attempt, *EMPTY, *later, dial()) is None


def test_a_dead_upstream_proxy_is_the_fault_until_a_server_answers() -> None:
    dead = (notices.UpstreamProxyError(), notices.CandidateServers(5), notices.KnownServers(5))
    assert hear(NO_ONE, *dead) is Reason.UPSTREAM_PROXY
    assert hear(NO_ONE, *dead, notices.ConnectedServer("DE", "OSSH")) is None
    assert hear(NO_ONE, *dead, notices.Tunnels(1)) is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (notices.DatastoreError("held"), Reason.DATASTORE),
        (notices.DatastoreError("disk"), Reason.DISK),
        (notices.DatastoreError("broken"), Reason.DATASTORE_BROKEN),
        (notices.TargetUnfit("region"), Reason.REGION),
        (notices.TargetUnfit("protocols"), Reason.PROTOCOLS),
        (notices.TargetUnfit("proxy"), Reason.TARGET_AND_PROXY),
    ],
)
def test_what_ends_the_core_stays_the_reason_through_its_last_words(said: CoreEvent, reason: Reason) -> None:
    last = (*EMPTY, notices.Tunnels(0), notices.Exiting())
    assert hear(Attempt(region="CA", target=True), said, *last) is reason


def test_a_core_that_has_a_target_does_not_lack_a_list_of_servers() -> None:
    assert hear(Attempt(target=True), *EMPTY) is None


def test_a_data_store_that_the_core_throws_away_itself_is_no_fault() -> None:
    assert hear(NO_ONE, notices.DatastoreReset(), notices.DatastoreFailed()) is None


@pytest.mark.parametrize(
    ("now", "skew", "portal", "ipv4", "reason"),
    [
        (NOW, None, False, True, None),
        (NOW, 30.0, False, True, None),
        (NOW, None, False, False, Reason.NO_IPV4),
        (NOW, -7200.0, False, True, Reason.CLOCK),
        (datetime(1970, 1, 1, tzinfo=UTC), None, False, False, Reason.CLOCK),
        (NOW, -7200.0, True, False, Reason.CAPTIVE_PORTAL),
    ],
)
def test_what_this_machine_knows_itself_is_the_most_certain_of_it(
    now: datetime, skew: float | None, portal: bool, ipv4: bool, reason: Reason | None
) -> None:
    assert look_around(now=now, skew=skew, portal=portal, ipv4=ipv4) is reason
    assert look_around(now=now, skew=skew, portal=portal, ipv4=ipv4, of_program=True) is Reason.UPLINK_PROGRAM
    assert look_around(now=now, skew=skew, portal=portal, ipv4=ipv4, taken=True, of_program=True) is Reason.SUBNET_TAKEN


@pytest.mark.parametrize("around", [Reason.UPLINK_PROGRAM, Reason.CAPTIVE_PORTAL, Reason.CLOCK])
def test_what_the_network_or_the_clock_explains_is_said_of_a_list_that_is_not_reached_and_not_of_a_wrong_country(
    around: Reason,
) -> None:
    finder = CauseFinder(FETCHING)
    for notice in (*EMPTY, notices.ListFailed(ListTrouble.UNREACHABLE)):
        finder.hear(notice)
    assert finder.look(around, 15.0)
    assert finder.fault == Fault(around)
    assert finder.look(None, 30.0), "judged again when the network lets everything through"
    assert finder.fault is not None
    assert finder.fault.reason is Reason.LIST_NOT_REACHED
    finder = CauseFinder(Attempt(region="CA"))
    for notice in (notices.KnownServers(1), notices.CandidateServers(0), notices.AvailableEgressRegions(("DE",))):
        finder.hear(notice)
    finder.look(around, 15.0)
    assert finder.fault is not None
    assert finder.fault.reason is Reason.REGION


def test_what_was_started_is_read_from_the_configuration_of_the_core() -> None:
    url = [{"URL": "aHR0cHM6Ly9hLmV4YW1wbGU=", "OnlyAfterAttempts": 0}]
    assert read_attempt({}, lookup=False) == Attempt()
    assert read_attempt({"EgressRegion": "CA", "RemoteServerListURLs": url}, lookup=True) == Attempt(
        region="CA", lists=True, lookup=True
    )
    assert not read_attempt({"RemoteServerListURLs": url, "DisableRemoteServerListFetcher": True}, lookup=True).lists
    assert read_attempt({"LimitTunnelProtocols": ["OSSH"]}, lookup=False).limited
    assert read_attempt({"UpstreamProxyURL": "http://192.0.2.1:3128"}, lookup=False).limited
    assert read_attempt({"TargetServerEntry": "00"}, lookup=False).target


# -- any order --------------------------------------------------------------------------------------------------------

REGIONS = ("CA", "DE", "NL")
PROTOCOLS = ("OSSH", "TLS-OSSH")
a_server = st.tuples(st.sampled_from(REGIONS), st.sampled_from(PROTOCOLS))


@dataclass(frozen=True)
class World:
    """The facts of an attempt: servers, settings, the fate of the list, and whether a server answers."""

    servers: tuple[tuple[str, str], ...]
    wanted: str
    allowed: str
    lists: bool
    trouble: ListTrouble | None
    proxy_dead: bool

    @property
    def attempt(self) -> Attempt:
        return Attempt(region=self.wanted, limited=bool(self.allowed), lists=self.lists, lookup=True)

    def list_usable(self) -> list[tuple[str, str]]:
        """The servers that the protocols allow."""
        return [server for server in self.servers if self.allowed in {"", server[1]}]

    def list_fitting(self) -> list[tuple[str, str]]:
        return [server for server in self.list_usable() if self.wanted in {"", server[0]}]

    def speak(self) -> list[CoreEvent]:
        """What the core reports, in some order of its threads."""
        regions = tuple(sorted({region for region, _ in self.list_usable()}))
        said: list[CoreEvent] = [
            notices.KnownServers(len(self.servers)),
            notices.CandidateServers(len(self.list_fitting())),
            notices.AvailableEgressRegions(regions),
            notices.Other("Info"),
            *(dial(number, *server) for number, server in enumerate(self.list_fitting())),
        ]
        if self.trouble and self.lists and not self.list_fitting():
            said.append(notices.ListFailed(self.trouble))
        if self.proxy_dead and self.list_fitting():
            said.append(notices.UpstreamProxyError())
        return said

    def tell_reason(self) -> set[Reason | None]:
        """The reasons that are true."""
        if self.list_fitting():
            return {Reason.UPSTREAM_PROXY if self.proxy_dead else None}
        if not self.servers:
            if not self.lists:
                return {Reason.NO_LIST}
            if self.trouble is None:
                return {Reason.NO_SERVER_LIST}
            return {
                ListTrouble.LOOKUP: {Reason.LIST_HOST_NOT_FOUND},
                ListTrouble.UNREACHABLE: {Reason.LIST_NOT_REACHED},
                ListTrouble.REFUSED: {Reason.LIST_NOT_REACHED},
                ListTrouble.STORAGE: {Reason.DISK},
            }.get(self.trouble, {Reason.LIST_NOT_VERIFIED})  # type: ignore[return-value]
        return {Reason.REGION} if self.list_usable() else {Reason.PROTOCOLS}


worlds = st.builds(
    World,
    servers=st.lists(a_server, max_size=4).map(tuple),
    wanted=st.sampled_from(["", *REGIONS]),
    allowed=st.sampled_from(["", *PROTOCOLS]),
    lists=st.booleans(),
    trouble=st.none() | st.sampled_from(list(ListTrouble)),
    proxy_dead=st.booleans(),
)


@given(worlds, st.data())
def test_the_reason_is_true_whatever_the_order_of_the_notices(world: World, data: st.DataObject) -> None:
    said = data.draw(st.permutations(world.speak()))
    assert hear(world.attempt, *said) in world.tell_reason()


@given(worlds, worlds, st.data())
def test_the_reason_is_true_of_now_when_a_list_arrives_or_the_tunnel_was_lost(
    before: World, world: World, data: st.DataObject
) -> None:
    """An attempt that found a tunnel, in any world, is followed by another in this one."""
    first = data.draw(st.permutations(before.speak()))
    said = data.draw(st.permutations(world.speak()))
    assert hear(world.attempt, *first, notices.Tunnels(1)) is None
    assert hear(world.attempt, *first, notices.Tunnels(1), notices.Tunnels(0), *said) in world.tell_reason()


any_notice = st.one_of(
    st.builds(notices.Tunnels, st.integers(0, 1)),
    st.builds(notices.KnownServers, st.integers(0, 3)),
    st.builds(notices.CandidateServers, st.integers(0, 3)),
    st.builds(notices.AvailableEgressRegions, st.sampled_from([(), ("DE",), ("DE", "NL")])),
    st.builds(dial, st.integers(0, 9)),
    st.builds(notices.ConnectedServer, st.just("DE"), st.just("OSSH")),
    st.builds(notices.ListFailed, st.sampled_from(list(ListTrouble))),
    st.just(notices.UpstreamProxyError()),
    st.just(notices.Other("unknown")),
)
attempts = st.builds(
    Attempt,
    region=st.sampled_from(["", "DE", "CA"]),
    target=st.booleans(),
    limited=st.booleans(),
    lists=st.booleans(),
    lookup=st.booleans(),
    flaw=st.none() | st.sampled_from(list(ListFlaw)),
)


@given(attempts, st.lists(any_notice, max_size=12), any_notice, st.none() | st.floats(0, 1e6))
def test_whatever_it_says_no_missing_list_is_reported_for_a_core_that_dials_and_nothing_of_one_with_a_tunnel(
    attempt: Attempt, said: list[CoreEvent], last: CoreEvent, waited: float | None
) -> None:
    finder = CauseFinder(attempt)
    for notice in (*said, last):
        before = finder.fault
        assert finder.hear(notice) == (finder.fault != before)
    if waited is not None:
        finder.look(None, waited)
    reason = finder.fault.reason if finder.fault else None
    if finder.heard.tried or finder.heard.known:
        assert reason not in NOT_WITHOUT_SERVERS
    if isinstance(last, notices.Tunnels) and last.count:
        assert reason is None
    if waited is not None and not finder.heard.up:
        assert reason is not None, "after a while there is always a reason"
