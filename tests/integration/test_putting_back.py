# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables, rules, routes and the TUN are restored whole or not at all, and never count as verified because of that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

import pytest
from tests.integration.kernel import Kernel
from tests.integration.test_nft_kernel import CHANGES, first_handle
from tests.policies import make_policy

from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.images import Images
from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.nfnetlink import Message, NftSocket
from psiphon_vpn.linux.nft import Nft, RulesetError, load_text
from psiphon_vpn.linux.nftimage import FAMILIES, NFT_MSG_DELTABLE, read_image
from psiphon_vpn.linux.routes import apply_routes, apply_rules, check_routing
from psiphon_vpn.linux.rtbatch import encode_route, encode_rule, encode_tun
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.linux.tun import Tun, TunSetDown, check_tun, ensure_tun, make_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.policy.ruleset import Rule, Table
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

IDENTITY = Identity(uid=64190, gid=64190)
SETS = (names.LEASE_SET, names.LEASE_SET_IPV6)
HARMS = ("", "flush ruleset", f"delete table inet {names.BASE_TABLE}", f"flush table inet {names.BASE_TABLE}")


def tables_of(state: State) -> tuple[Table, ...]:
    egress = build_egress_guard(IDENTITY, parse_names("lo"))
    assert egress is not None
    return build_base_table(make_policy(state)), build_arp_table(), egress


class NotedLoading:
    """Loads with nft, and records what."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def __call__(self, text: str) -> None:
        self.texts.append(text)
        await load_text(text)


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("B3")
@pytest.mark.parametrize("state", State)
def test_an_image_makes_every_policys_tables_again_whatever_stands_there(kernel: Kernel, state: State) -> None:
    tables = tables_of(state)
    for table in tables:
        kernel.nft(table.render_replacement())

    def listings() -> list[str]:
        return [kernel.listing("table", table.family, table.name) for table in tables]

    before = listings()

    def work(netlink: NftSocket) -> None:
        addresses = [(table.family, table.name, table.name) for table in tables]
        image = read_image(netlink, addresses, generation=netlink.read_generation())
        assert image is not None
        generation = 0
        for harm in HARMS:
            if harm:
                kernel.nft(harm)
            generation = netlink.read_generation()
            netlink.commit(image)
            assert netlink.read_generation() == generation + 1, "one transaction"
            assert listings() == before
        kernel.nft("add table inet docker")
        assert read_image(netlink, addresses, generation=generation) is None

    kernel.with_netlink(work)


@pytest.mark.requirement("B3")
def test_what_cannot_be_put_back_is_put_back_not_in_part_and_then_by_nft(kernel: Kernel) -> None:
    """For example if a device is gone, on kernels before 6.16: the transaction is all or nothing."""

    async def work(netlink: NftSocket) -> None:
        images = Images(netlink)
        tables = Tables(netlink, images=images)
        base = build_base_table(make_policy(State.LOCKED))
        await tables.put(base)
        assert tables.put_back_now()
        await tables.check()
        image = images.find(base)
        assert image is not None
        refused = Message(NFT_MSG_DELTABLE, FAMILIES["inet"], 0, write_attribute(1, b"nowhere\0"))
        images.keep(base, (*image, refused))
        kernel.nft("flush ruleset")
        assert not tables.put_back_now()
        assert names.BASE_TABLE not in kernel.host.run(["nft", "list", "tables"]).stdout
        await tables.put_back()
        await tables.check()

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R4")
def test_a_policy_that_was_found_right_before_is_loaded_from_its_image_and_read_back(kernel: Kernel) -> None:
    first, second = (build_base_table(make_policy(state)) for state in (State.LOCKED, State.CONNECTING))

    async def work(netlink: NftSocket) -> None:
        loading = NotedLoading()
        tables = Tables(netlink, load=loading)
        await tables.put(first)
        await tables.put(second)
        assert loading.texts
        loading.texts.clear()
        await tables.put(first)
        await tables.put(second)
        assert not loading.texts, "nft was not asked to load anything"
        await Nft(netlink).verify([second])

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R4")
def test_an_image_that_reads_back_otherwise_is_loaded_by_nft_and_no_image_is_trusted_for_long(kernel: Kernel) -> None:
    first, second = (build_base_table(make_policy(state)) for state in (State.LOCKED, State.CONNECTING))

    async def work(netlink: NftSocket) -> None:
        class Mistaken(Images):
            """A kernel that makes something else of a listing."""

            def load(self, tables: Iterable[Table], *, generation: int | None = None) -> bool:
                return super().load([second if table == first else table for table in tables], generation=generation)

        images = Mistaken(netlink)
        tables = Tables(netlink, images=images)
        await tables.put(first)
        await tables.put(second)
        for _ in range(3):
            await tables.put(first)
            assert await tables.check()
            await Nft(netlink).verify([first])
            await tables.put(second)
        assert not images.load([second])

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R4")
@pytest.mark.parametrize("what", [*CHANGES, "an egress chain is emptied", "an egress guard is put to sleep"])
def test_whatever_is_changed_is_not_what_the_image_was_taken_of(kernel: Kernel, what: str) -> None:
    tables = tables_of(State.OPEN)
    harm = {
        "an egress chain is emptied": f"flush chain netdev {names.EGRESS_TABLE} frames",
        "an egress guard is put to sleep": f"add table netdev {names.EGRESS_TABLE} {{ flags dormant ; }}",
        **CHANGES,
    }[what]

    kernel.ip("link", "add", "wire", "type", "veth", "peer", "name", "beyond")
    kernel.ip("addr", "add", "192.0.2.1/24", "dev", "wire")
    for device in ("wire", "beyond"):
        kernel.ip("link", "set", device, "up")

    async def work(netlink: NftSocket) -> None:
        images = Images(netlink)
        nft = Nft(netlink, images=images)
        await nft.replace_all(tables)
        await nft.verify(tables)
        for _ in range(2):
            assert images.load(tables)
            # Counters and leases do not belong to the image.
            kernel.nft(f'add element inet {names.BASE_TABLE} {names.LEASE_SET} {{ "lo" timeout 60s }}')
            kernel.host.run(["bash", "-c", "echo > /dev/udp/192.0.2.9/9"], check=False)
            assert re.search(r"counter packets [1-9]", kernel.host.run(["nft", "list", "ruleset"]).stdout)
            assert await nft.verify(tables) == netlink.read_generation()
            kernel.nft(harm.replace("HANDLE", first_handle(kernel)))
            with pytest.raises(RulesetError):
                await nft.verify(tables)

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R4")
@pytest.mark.parametrize("state", State)
def test_the_image_of_a_dormant_copy_makes_the_table_itself(kernel: Kernel, state: State) -> None:
    scratch = names.SCRATCH_TABLES[1]

    def work(netlink: NftSocket) -> None:
        for table in tables_of(state):
            kernel.nft(table.render_replacement())
            wanted = kernel.listing("table", table.family, table.name)
            kernel.nft(f"delete table {table.family} {table.name}\n{table.render(name=scratch, flags='dormant')}")
            which = [(table.family, scratch, table.name)]
            image = read_image(netlink, which, generation=netlink.read_generation())
            assert image is not None
            netlink.commit(image)
            assert kernel.listing("table", table.family, table.name) == wanted
            kernel.nft(f"delete table {table.family} {scratch}")

    kernel.with_netlink(work)


@pytest.mark.requirement("R1", "R4")
def test_what_is_coming_is_loaded_without_nft_once_it_was_rehearsed_and_no_copy_is_left(kernel: Kernel) -> None:
    egress, arp = tables_of(State.OPEN)[2], build_arp_table()
    connecting, opening = (build_base_table(make_policy(state)) for state in (State.CONNECTING, State.OPEN))

    async def work(netlink: NftSocket) -> None:
        loading = NotedLoading()
        tables = Tables(netlink, load=loading)
        await tables.put(connecting, arp, egress)
        generation = await tables.check()
        await tables.rehearse(opening)
        assert netlink.read_generation() == generation + 2, "nothing was committed but the copy and its removal"
        assert tables.is_current()
        assert not any(name in table for table in kernel.tables() for name in names.SCRATCH_TABLES)
        loading.texts.clear()
        await tables.put(opening, arp, egress)
        assert not loading.texts, "nft was not asked to load anything"
        assert netlink.read_generation() == generation + 3
        await Nft(netlink).verify([opening, arp, egress])

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R4")
@pytest.mark.parametrize(
    "harm",
    [
        f"insert rule inet {names.SCRATCH_TABLES[0]} output accept",
        f"delete table inet {names.SCRATCH_TABLES[0]}",
        "add table inet docker",
        "flush ruleset",
        # One rule replaced by another: as many as before, so that only the commits show it.
        f"replace rule inet {names.SCRATCH_TABLES[0]} output handle HANDLE accept",
    ],
)
def test_nothing_is_made_from_a_copy_that_somebody_may_have_touched(kernel: Kernel, harm: str) -> None:
    """The table would be compared with what was read of the copy, and a hole would count as verified."""
    connecting, opening = (build_base_table(make_policy(state)) for state in (State.CONNECTING, State.OPEN))

    async def work(netlink: NftSocket) -> None:
        harmful = True

        async def copy_and_harm(text: str) -> None:
            await load_text(text)
            if not harmful or f"table inet {names.SCRATCH_TABLES[0]} {{" not in text:
                return
            handle = ""
            if "HANDLE" in harm:
                listing = kernel.host.run(["nft", "-a", "list", "chain", "inet", names.SCRATCH_TABLES[0], "output"])
                lines = listing.stdout.splitlines()
                handle = next(line for line in lines if " accept" in line).rsplit(" ", 1)[1]
            kernel.nft(harm.replace("HANDLE", handle))
            harmed.append(text)

        harmed: list[str] = []
        images = Images(netlink)
        tables = Tables(netlink, images=images, load=copy_and_harm)
        await tables.put(connecting)
        with contextlib.suppress(RulesetError):
            await tables.rehearse(opening)
        assert harmed
        harmful = False
        assert images.find(opening) is None
        with contextlib.suppress(RulesetError):
            await tables.put(opening)
        await Nft(netlink).verify([opening if tables.in_force else build_drop_only(opening)])
        assert await tables.look(), (
            "what is loaded is what the lock believes: the policy, or the table that drops everything"
        )
        await tables.put(connecting)
        await tables.put(opening)  # no wrong reading is kept
        assert not any(name in table for table in kernel.tables() for name in names.SCRATCH_TABLES)

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("B2", "R1")
@pytest.mark.parametrize("held", [True, False])
def test_closing_never_takes_somebody_elses_commit_for_its_own(kernel: Kernel, held: bool) -> None:
    """If the sets are empty, the kernel counts no commit: the next generation is a stranger's."""

    async def work(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        await tables.put(build_base_table(make_policy(State.OPEN)))
        assert tables.is_current()
        kernel.nft(f"insert rule inet {names.BASE_TABLE} output accept")
        tables.withdraw(SETS, held=held)
        assert not tables.is_current(), "rules that nobody has read"
        with pytest.raises(RulesetError):
            await tables.check()

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))


@pytest.mark.requirement("R1", "R2", "B3")
def test_the_table_that_drops_everything_is_put_back_too(kernel: Kernel) -> None:
    base = build_base_table(make_policy(State.OPEN))
    first, *rest = base.chains
    bad = Table(
        family=base.family,
        name=base.name,
        chains=(type(first)(name=first.name, hook=first.hook, rules=(Rule(text="this is no rule"),)), *rest),
    )

    async def work(netlink: NftSocket) -> None:
        tables = Tables(netlink)
        with pytest.raises(RulesetError):
            await tables.put(bad)
        assert tables.stand
        assert tables.is_current(), "who changes it is noticed, and only then"
        kernel.nft("flush ruleset")
        assert not tables.is_current()
        await tables.put_back()
        await tables.look()
        with pytest.raises(RulesetError, match="no policy is in force"):
            await tables.check()

    kernel.with_netlink(lambda netlink: asyncio.run(work(netlink)))
    assert kernel.listing("table", "inet", names.BASE_TABLE).count("policy drop;") == 4


# -- rules, routes, the TUN ------------------------------------------------------------------------------------------


@pytest.mark.requirement("R9")
def test_what_is_added_in_one_breath_is_what_is_added_with_care(kernel: Kernel) -> None:
    rules = build_rules(IDENTITY)

    def show() -> str:
        what = ("rule", "-6 rule", f"route show table {names.ROUTE_TABLE}", f"-6 route show table {names.ROUTE_TABLE}")
        return "\n".join(kernel.ip("-d", *text.split()) for text in (*what, "addr show PsiphonTUN"))

    async def with_care() -> int:
        with contextlib.closing(RouteSocket()) as changes:
            tun = await ensure_tun(changes, uid=IDENTITY.uid)
            await apply_rules(changes, rules)
            await apply_routes(changes, routes, tun.index)
        return tun.index

    routes = build_routes(tun=True, open_ipv4=False, open_ipv6=False, ipv6_probe=("2001:db8::53",))
    index = kernel.host.call(lambda: asyncio.run(with_care()))
    careful = show()

    async def check(tun: int) -> str | None:
        bad = await check_tun(Tun(tun), uid=IDENTITY.uid)
        return bad.detail if bad else await check_routing(rules, routes, tun)

    def breathe() -> list[str]:
        additions = RouteSocket()
        try:
            here = index
            if not os.path.exists(f"/proc/sys/net/ipv4/conf/{names.TUN_NAME}"):
                make_tun(IDENTITY.uid)
            here = socket.if_nametoindex(names.TUN_NAME)
            return additions.add(
                [*encode_tun(here), *(encode_route(route, here) for route in routes), *map(encode_rule, rules)]
            )
        finally:
            additions.close()

    assert kernel.host.call(breathe) == [], "all there already"
    assert show() == careful
    for harm in (
        "rule flush",
        "-6 rule flush",
        f"route flush table {names.ROUTE_TABLE}",
        f"-6 route flush table {names.ROUTE_TABLE}",
        f"link set {names.TUN_NAME} down",
    ):
        kernel.ip(*harm.split())
        assert kernel.host.call(lambda: asyncio.run(check(index))) is not None, "the positive control"
        assert kernel.host.call(breathe) == []
        # The kernel adds its own entry for an IPv6 address in a work queue (addrconf_dad_work).
        wait_until(lambda: kernel.host.call(lambda: asyncio.run(check(index))) is None, "all is there again")
    kernel.ip("link", "del", names.TUN_NAME)
    assert kernel.host.call(breathe) == []
    now = int(kernel.host.run(["cat", f"/sys/class/net/{names.TUN_NAME}/ifindex"]).stdout)
    wait_until(lambda: kernel.host.call(lambda: asyncio.run(check(now))) is None, "all is there again")


# -- a TUN that is set down ------------------------------------------------------------------------------------------

FEATURES = Features(nftables=True, set_timeout=True, type_route=True, owner_flag=True, egress_hook=False, tun=True)


def with_enforcer(
    kernel: Kernel, work: Callable[[Enforcer], Awaitable[None]], *, make_routes: Callable[[], RouteSocket] = RouteSocket
) -> None:
    """Do something with the whole kernel side."""

    def inside(netlink: NftSocket) -> None:
        with contextlib.closing(make_routes()) as routes:
            asyncio.run(_await(work(Enforcer(identity=IDENTITY, netlink=netlink, routes=routes, features=FEATURES))))

    kernel.with_netlink(inside)


async def _await(work: Awaitable[None]) -> None:
    await work


@pytest.mark.requirement("R1", "B3")
@pytest.mark.parametrize("anew", [False, True])
def test_a_tun_that_was_refused_because_it_was_set_down_is_reported(kernel: Kernel, anew: bool) -> None:
    """Without knowing the TUN, the daemon heard of no change of it any more, and never saw the fight."""
    overtaking = False

    class Overtaken(RouteSocket):
        def add(self, messages: Iterable[tuple[int, bytes]]) -> list[str]:
            refused = super().add(messages)
            if overtaking:
                kernel.ip("link", "set", names.TUN_NAME, "down")
            return refused

    async def work(enforcer: Enforcer) -> None:
        nonlocal overtaking
        await enforcer.load(lock_with)
        overtaking = True
        with pytest.raises(TunSetDown, match="the TUN is down"):
            await enforcer.load(lock_with, replace_tun=anew)
        overtaking = False
        known = enforcer.view.tun
        assert known == Tun(socket.if_nametoindex(names.TUN_NAME))
        await enforcer.load(lock_with)
        assert enforcer.view.tun == known

    with_enforcer(kernel, work, make_routes=Overtaken)


@pytest.mark.requirement("R1", "B3")
def test_a_tun_whose_routes_were_refused_since_it_was_set_down_is_set_up_and_not_made_again(kernel: Kernel) -> None:
    async def work(enforcer: Enforcer) -> None:
        def lock_overtaken(tun: Tun | None) -> Policy:
            kernel.ip("link", "set", names.TUN_NAME, "down")
            return lock_with(tun)

        await enforcer.load(lock_with)
        tun = enforcer.view.tun
        with pytest.raises(TunSetDown, match="Network is down"):
            await enforcer.load(lock_overtaken)
        await enforcer.load(lock_with)
        assert enforcer.view.tun == tun

    with_enforcer(kernel, work)


def lock_with(tun: Tun | None) -> Policy:
    """A policy that locks, with this TUN or without one."""
    policy = make_policy(State.LOCKED)
    return replace(policy, links=replace(policy.links, tun_index=tun.index if tun else None))
