# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The filter at a card's traffic control in the real kernel: as tc(8) shows it, and beside other programs' filters."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from tests.integration.kernel import Kernel

from psiphon_vpn.linux.features import probe_features
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.traffic import NetlinkTraffic, Obstacle, Standing, Traffic, can_filter
from psiphon_vpn.policy.traffic_control import Filter

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

T = TypeVar("T")
CARD, OTHER = "card0", "card1"
MARKED, SOURCES = Filter.MARKED, Filter.SOURCES
ALL = ("protocol", "all")
PASS_ALL = ("u32", "match", "u32", "0", "0")


class Cards:
    """Two cards, and our filters on them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        kernel.ip("link", "add", CARD, "type", "veth", "peer", "name", "far0")
        kernel.ip("link", "add", OTHER, "type", "veth", "peer", "name", "far1")
        self.index = {name: int(kernel.host.run(["cat", f"/sys/class/net/{name}/ifindex"]).stdout)
                      for name in (CARD, OTHER)}  # fmt: skip

    def tc(self, *words: str) -> str:
        """Run tc(8)."""
        return self.kernel.host.run(["tc", *words]).stdout

    def read(self, name: str = CARD) -> str:
        """What tc shows of a card, apart from what every card has."""
        shown = self.tc("qdisc", "show", "dev", name) + "".join(
            self.tc("filter", "show", "dev", name, where) for where in ("ingress", "egress") if self.has_place(name)
        )
        return "\n".join(line for line in shown.splitlines() if "noqueue" not in line)

    def has_place(self, name: str) -> bool:
        return "clsact" in self.tc("qdisc", "show", "dev", name)

    def with_traffic(self, work: Callable[[Traffic], Awaitable[T]]) -> T:
        """Do something with the filters, as a new daemon would."""

        async def inside() -> T:
            socket = RouteSocket()
            try:
                return await work(Traffic(NetlinkTraffic(socket)))
            finally:
                socket.close()

        return self.kernel.host.call(lambda: asyncio.run(inside()))

    def fit(self, wanted: dict[str, Filter]) -> dict[str, Standing]:
        """Apply these filters."""
        by_index = {self.index[name]: kind for name, kind in wanted.items()}

        async def inside(traffic: Traffic) -> dict[str, Standing]:
            await traffic.fit(by_index)
            return {name: traffic.standings[self.index[name]] for name in wanted}

        return self.with_traffic(inside)

    def remove(self) -> None:
        """Remove all of ours."""
        self.with_traffic(lambda traffic: traffic.remove())


@pytest.fixture
def cards(kernel: Kernel) -> Cards:
    return Cards(kernel)


@pytest.mark.parametrize("kind", Filter)
def test_tc_shows_the_filter_and_afterwards_nothing_of_it(cards: Cards, kind: Filter) -> None:
    before = cards.read()
    assert cards.fit({CARD: kind, OTHER: kind}) == {name: Standing(filter=kind) for name in (CARD, OTHER)}
    shown = cards.read()
    assert "filter protocol all pref 1 bpf" in shown
    assert "direct-action" in shown
    cards.remove()
    assert cards.read() == before == cards.read(OTHER)


@pytest.mark.requirement("R8")
def test_a_filter_needs_no_capability_but_net_admin(cards: Cards) -> None:
    only = ["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"]
    code = (
        "import asyncio\nfrom psiphon_vpn.linux.rtnetlink import RouteSocket\n"
        "from psiphon_vpn.linux.traffic import NetlinkTraffic, Traffic, can_filter\n"
        "from psiphon_vpn.policy.traffic_control import Filter\n"
        "traffic = Traffic(NetlinkTraffic(RouteSocket()))\n"
        f"asyncio.run(traffic.fit({{{cards.index[CARD]}: Filter.MARKED}}))\n"
        f"assert traffic.standings[{cards.index[CARD]}].filter is Filter.MARKED\nassert asyncio.run(can_filter())\n"
    )
    python = [sys.executable, "-c", code]
    cards.kernel.host.run(["setpriv", "--reuid=573", "--regid=573", "--clear-groups", *only, *python])
    assert "bpf" in cards.read()
    without = ["setpriv", "--reuid=573", "--regid=573", "--clear-groups", *python]
    assert cards.kernel.host.run(without, check=False).returncode != 0, "the control"


def test_a_filter_changes_its_kind_and_a_fresh_daemon_knows_it(cards: Cards) -> None:
    cards.fit({CARD: MARKED})
    cards.fit({CARD: SOURCES})
    assert cards.read().count("handle 0x5053") == 1
    assert cards.fit({OTHER: MARKED}) == {OTHER: Standing(filter=MARKED)}
    assert "clsact" not in cards.read()


def test_filters_of_others_and_their_place_stay_whatever_becomes_of_ours(cards: Cards) -> None:
    cards.tc("qdisc", "add", "dev", CARD, "clsact")
    cards.tc("filter", "add", "dev", CARD, "egress", *ALL, "pref", "7", *PASS_ALL)
    cards.tc("filter", "add", "dev", CARD, "ingress", *ALL, "pref", "3", *PASS_ALL)
    before = cards.read()
    assert cards.fit({CARD: MARKED}) == {CARD: Standing(filter=MARKED)}
    assert cards.read() != before
    cards.remove()
    assert cards.read() == before


@pytest.mark.parametrize("where", ["ingress", "egress"])
def test_our_place_stays_where_somebody_has_a_filter_in_it(cards: Cards, where: str) -> None:
    cards.fit({CARD: MARKED})
    cards.tc("filter", "add", "dev", CARD, where, *ALL, "pref", "7", *PASS_ALL)
    cards.remove()
    assert "u32" in cards.read()
    assert "bpf" not in cards.read()


@pytest.mark.parametrize("protocol", ["all", "ip"])
def test_where_another_is_asked_first_that_is_reported(cards: Cards, protocol: str) -> None:
    cards.tc("qdisc", "add", "dev", CARD, "clsact")
    cards.tc("filter", "add", "dev", CARD, "egress", "protocol", protocol, "pref", "1", *PASS_ALL)
    assert cards.fit({CARD: MARKED}) == {CARD: Standing(filter=MARKED, after_others=True)}
    assert "pref 2 bpf" in cards.read()


def test_beside_another_program_of_bpf_with_the_same_preference_ours_is_asked_first(cards: Cards) -> None:
    cards.tc("qdisc", "add", "dev", CARD, "clsact")
    cards.tc("filter", "add", "dev", CARD, "egress", *ALL, "pref", "1", "handle", "7", "bpf", "direct-action",
             "bytecode", "1,6 0 0 4294967295")  # fmt: skip
    assert cards.fit({CARD: MARKED}) == {CARD: Standing(filter=MARKED)}
    cards.remove()
    assert "handle 0x7" in cards.read()


def test_an_ingress_discipline_in_its_place_is_named_and_stays(cards: Cards) -> None:
    cards.tc("qdisc", "add", "dev", CARD, "ingress")
    before = cards.read()
    found = cards.fit({CARD: MARKED, OTHER: MARKED})
    assert found[CARD].obstacle is Obstacle.INGRESS
    assert found[OTHER] == Standing(filter=MARKED)
    cards.remove()
    assert cards.read() == before


def test_filters_that_are_shared_with_other_cards_are_not_touched(cards: Cards) -> None:
    cards.tc("qdisc", "add", "dev", CARD, "egress_block", "7", "clsact")
    assert cards.fit({CARD: MARKED})[CARD].obstacle is Obstacle.SHARED


def test_the_probe_leaves_nothing_behind_and_spares_what_is_there(cards: Cards) -> None:
    def read() -> str:
        return cards.tc("qdisc", "show", "dev", "lo")

    def probe() -> bool:
        return cards.kernel.host.call(lambda: asyncio.run(can_filter()))

    before = read()
    assert probe() is True
    assert read() == before
    cards.tc("qdisc", "add", "dev", "lo", "clsact")
    cards.tc("filter", "add", "dev", "lo", "egress", *ALL, "pref", "1", *PASS_ALL)
    own = read() + cards.tc("filter", "show", "dev", "lo", "egress")
    assert probe() is True
    assert read() + cards.tc("filter", "show", "dev", "lo", "egress") == own
    cards.tc("qdisc", "del", "dev", "lo", "clsact")
    cards.tc("qdisc", "add", "dev", "lo", "ingress")
    assert probe() is True
    assert "ingress" in read()
    assert cards.kernel.host.call(lambda: asyncio.run(probe_features())).traffic_filters is True
