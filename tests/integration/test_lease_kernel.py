# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lease in the kernel: taken only for the verified generation, and gone by itself in time."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
import time

import pytest
from tests.conftest import Figure
from tests.integration.kernel import Kernel
from tests.policies import make_policy

from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.nfnetlink import (
    Element,
    GenerationChanged,
    NftSocket,
    open_generation_monitor,
    parse_generations,
)
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import State

pytestmark = [pytest.mark.lab, pytest.mark.requirement("B2")]

LEASE = (Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME), Element(names.BASE_TABLE, names.LEASE_SET, "lo"))
SETS = (names.LEASE_SET, names.LEASE_SET_IPV6)
FOREIGN = "add table inet docker"


@pytest.fixture
def base(kernel: Kernel) -> Kernel:
    """A namespace with the base table of OPEN, and no lease."""
    kernel.nft(build_base_table(make_policy(State.OPEN)).render_replacement())
    return kernel


def leased(kernel: Kernel) -> dict[str, float]:
    """The interfaces in the lease, and the seconds that remain of each."""
    text = kernel.host.run(["nft", "list", "set", "inet", names.BASE_TABLE, names.LEASE_SET]).stdout
    found = {}
    for name, left in re.findall(r'"(\w+)" timeout \S+ expires (\S+?)[ ,}]', text):
        seconds = 0.0
        for amount, unit in re.findall(r"(\d+)(ms|s|m|h)", left):
            seconds += int(amount) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
        found[name] = seconds
    return found


def test_a_lease_is_taken_for_the_generation_that_was_read(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        netlink.renew(LEASE, 60_000, generation=netlink.read_generation())

    base.with_netlink(work)
    assert set(leased(base)) == {names.TUN_NAME, "lo"}


def test_the_generation_that_a_renewal_returns_is_the_kernels(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        generation = netlink.read_generation()
        for _ in range(5):
            generation = netlink.renew(LEASE, 60_000, generation=generation)
            assert generation == netlink.read_generation()

    base.with_netlink(work)


@pytest.mark.requirement("R1")
def test_a_renewal_for_an_older_ruleset_is_refused_and_changes_nothing(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        old = netlink.read_generation()
        base.nft(FOREIGN)
        now = netlink.read_generation()
        assert now != old
        with pytest.raises(GenerationChanged):
            netlink.renew(LEASE, 60_000, generation=old)
        assert netlink.read_generation() == now
        assert leased(base) == {}
        # The socket still works.
        netlink.renew(LEASE, 60_000, generation=now)

    base.with_netlink(work)


@pytest.mark.requirement("R1", "B3")
def test_a_commit_of_anybody_between_two_renewals_stops_the_second(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        generation = netlink.renew(LEASE, 1_500, generation=netlink.read_generation())
        base.nft("add rule inet psiphon_filter output accept")
        with pytest.raises(GenerationChanged):
            netlink.renew(LEASE, 60_000, generation=generation)

    base.with_netlink(work)
    assert max(leased(base).values(), default=0.0) <= 1.5, "the earlier lease runs out as before"


def test_a_lease_ends_by_itself_on_time_with_nobody_there(base: Kernel, figure: Figure) -> None:
    def work(netlink: NftSocket) -> float:
        netlink.renew(LEASE, 400, generation=netlink.read_generation())
        return time.monotonic()

    taken = base.with_netlink(work)  # the socket is closed now: the kernel alone ends the lease
    assert set(leased(base)) == {names.TUN_NAME, "lo"}
    wait_until(lambda: leased(base) == {}, "the end of the lease")
    took = time.monotonic() - taken
    assert took >= 0.35
    figure("a lease of 0.4 s to its end, s", took)


def test_a_renewal_gives_the_whole_time_again(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        generation = netlink.renew(LEASE, 600, generation=netlink.read_generation())
        wait_until(lambda: 0 < leased(base).get(names.TUN_NAME, 0.0) < 0.45, "part of the lease to pass")
        netlink.renew(LEASE, 20_000, generation=generation)
        assert min(leased(base).values()) > 15

    base.with_netlink(work)


def test_closing_empties_both_sets_at_once_whatever_the_generation(base: Kernel) -> None:
    both = (*LEASE, Element(names.BASE_TABLE, names.LEASE_SET_IPV6, names.TUN_NAME))

    def work(netlink: NftSocket) -> None:
        netlink.renew(both, 60_000, generation=netlink.read_generation())
        base.nft(FOREIGN)
        netlink.flush_sets(names.BASE_TABLE, SETS)

    base.with_netlink(work)
    listing = base.listing("table", "inet", names.BASE_TABLE)
    assert "elements" not in listing


def test_closing_what_is_closed_is_no_error(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        netlink.flush_sets(names.BASE_TABLE, SETS)
        netlink.flush_sets(names.BASE_TABLE, SETS)

    base.with_netlink(work)


@pytest.mark.requirement("B3")
def test_after_the_ruleset_was_flushed_there_is_nothing_to_lease_and_it_says_so(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        base.nft("flush ruleset")
        with pytest.raises(OSError) as closing:
            netlink.flush_sets(names.BASE_TABLE, SETS)
        assert closing.value.errno == errno.ENOENT
        with pytest.raises(OSError) as renewing:
            netlink.renew(LEASE, 60_000, generation=netlink.read_generation())
        assert renewing.value.errno == errno.ENOENT

    base.with_netlink(work)


def test_a_lease_that_fails_half_way_is_not_taken_at_all(base: Kernel) -> None:
    mixed = (*LEASE, Element(names.BASE_TABLE, "no_such_set", "lo"))

    def work(netlink: NftSocket) -> None:
        before = netlink.read_generation()
        with pytest.raises(OSError):
            netlink.renew(mixed, 60_000, generation=before)
        assert netlink.read_generation() == before

    base.with_netlink(work)
    assert leased(base) == {}


@pytest.mark.requirement("B3")
def test_every_commit_is_announced_with_its_number_and_its_maker(base: Kernel) -> None:
    def work(netlink: NftSocket) -> None:
        with contextlib.closing(open_generation_monitor()) as monitor:
            ours = netlink.renew(LEASE, 60_000, generation=netlink.read_generation())
            base.nft(FOREIGN)
            theirs = netlink.read_generation()
            data = b""
            with contextlib.suppress(BlockingIOError):
                while True:
                    data += monitor.recv(65536)
        seen = {generation.number: generation for generation in parse_generations(data)}
        assert set(seen) == {ours, theirs}
        # The id of the thread: only a process's first thread has the process's id.
        assert seen[ours].pid == threading.get_native_id()
        assert seen[theirs].pid not in {0, seen[ours].pid}
        assert seen[theirs].process == "nft"

    base.with_netlink(work)
