# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing opens without a proof, and no proof outlives what it proves: the whole lock on a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.integration.kernel import Kernel
from tests.integration.test_lease_kernel import leased
from tests.policies import IDENTITY, make_policy

from psiphon_vpn.linux import lease as leases
from psiphon_vpn.linux import reading_back
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.lock import Area, Cover, EnforcementError, LedAround, NoLease
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tun import Tun, TunTrouble
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Policy, State

pytestmark = [
    pytest.mark.lab,
    pytest.mark.requirement("R6", "B2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
]

FEATURES = Features(nftables=True, set_timeout=True, type_route=True, owner_flag=True, egress_hook=False, tun=True)
FOREIGN = "table inet docker { chain c { type filter hook output priority 0; accept; }; }"
COVER = Cover(proxy=True)


def derive(state: State) -> Callable[[Tun | None], Policy]:
    """A function that makes the policy of a state with a given TUN."""
    policy = make_policy(state)

    def derive_for(tun: Tun | None) -> Policy:
        return replace(policy, links=replace(policy.links, tun_index=tun.index if tun else None, stack=()))

    return derive_for


def with_lock(kernel: Kernel, work: Callable[[Enforcer], Awaitable[None]]) -> None:
    """Do something with the whole kernel side, with the policy of OPEN in force."""

    async def scenario(lock: Enforcer) -> None:
        await lock.load(derive(State.OPEN))
        await work(lock)

    def inside(netlink: NftSocket) -> None:
        with contextlib.closing(RouteSocket()) as routes:
            asyncio.run(scenario(Enforcer(identity=IDENTITY, netlink=netlink, routes=routes, features=FEATURES)))

    kernel.ip("link", "set", "lo", "up")
    kernel.with_netlink(inside)


def test_a_policy_that_opens_lets_nothing_out_until_it_was_read_back(kernel: Kernel) -> None:
    async def work(lock: Enforcer) -> None:
        assert leased(kernel) == {}
        assert not lock.view.leased
        proof = await lock.read_back()
        assert leased(kernel) == {}
        for _ in range(3):
            proof = await lock.renew(proof, COVER)
            assert set(leased(kernel)) == {names.TUN_NAME, "lo"}
        assert lock.view.cover == COVER

    with_lock(kernel, work)


def test_ipv6_is_led_into_the_tunnel_when_the_lease_covers_it_and_not_before(kernel: Kernel) -> None:
    def list_defaults() -> str:
        return kernel.ip("-6", "route", "show", "default", "table", str(names.ROUTE_TABLE))

    async def work(lock: Enforcer) -> None:
        proof = await lock.renew(await lock.read_back(), Cover())
        assert names.TUN_NAME not in list_defaults()
        proof = await lock.renew(proof, Cover(ipv6=True))
        assert names.TUN_NAME in list_defaults()
        assert names.TUN_NAME in kernel.listing("set", "inet", names.BASE_TABLE, names.LEASE_SET_IPV6)
        assert lock.view.ipv6_open
        await lock.renew(await lock.read_back(), Cover(ipv6=True))

    with_lock(kernel, work)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "the positive control"])
def test_a_proof_from_before_it_was_closed_opens_nothing(kernel: Kernel, closed: bool) -> None:
    async def work(lock: Enforcer) -> None:
        proof = await lock.read_back()
        if not closed:
            await lock.renew(proof, COVER)
            return
        lock.close()
        with pytest.raises(NoLease) as reported:
            await lock.renew(proof, COVER)
        assert not reported.value.expired
        assert leased(kernel) == {}

    with_lock(kernel, work)


def test_what_is_closed_while_a_renewal_waits_for_its_turn_to_read_back_stays_closed(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, a reading that began after the close counted as a proof until the event with the reason was handled."""
    looking, go_on = asyncio.Event(), asyncio.Event()

    async def look_long(tun: Tun, *, uid: int) -> TunTrouble | None:
        looking.set()
        await go_on.wait()
        return None

    async def work(lock: Enforcer) -> None:
        proof = await lock.renew(await lock.read_back(), COVER)
        with monkeypatch.context() as patch:
            patch.setattr(reading_back, "check_tun", look_long)
            kernel.nft(FOREIGN)
            look = asyncio.ensure_future(lock.restore(Area.NETWORK))
            await looking.wait()
            renewal = asyncio.ensure_future(lock.renew(proof, COVER))
            await asyncio.sleep(0)
            assert set(leased(kernel)) == {names.TUN_NAME, "lo"}, "the positive control"
            lock.close()
            go_on.set()
            with pytest.raises(NoLease):
                await renewal
            await look
        assert leased(kernel) == {}

    with_lock(kernel, work)


def test_a_commit_of_others_is_read_back_and_then_renewed(kernel: Kernel) -> None:
    async def work(lock: Enforcer) -> None:
        proof = await lock.renew(await lock.read_back(), COVER)
        kernel.nft(FOREIGN)
        await lock.renew(proof, COVER)
        assert set(leased(kernel)) == {names.TUN_NAME, "lo"}
        kernel.nft(f"flush chain inet {names.BASE_TABLE} output")
        with pytest.raises(EnforcementError):
            await lock.renew(proof, COVER)
        assert leased(kernel) == {}
        assert not lock.view.leased

    with_lock(kernel, work)


def test_a_proof_is_good_for_no_longer_than_a_lease(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = leases.read_boot_seconds()
    monkeypatch.setattr(leases, "read_boot_seconds", lambda: now)

    async def work(lock: Enforcer) -> None:
        nonlocal now
        proof = await lock.renew(await lock.read_back(), COVER)
        now += names.LEASE_SECONDS - 1
        proof = await lock.renew(proof, COVER)
        now += names.LEASE_SECONDS + 1
        assert lock.view.ran_out
        with pytest.raises(NoLease) as reported:
            await lock.renew(proof, COVER)
        assert reported.value.expired
        assert leased(kernel) == {}
        assert not lock.view.leased

    with_lock(kernel, work)


@pytest.mark.parametrize("state", [state for state in State if state is not State.OPEN])
def test_no_proof_opens_under_a_policy_that_does_not(kernel: Kernel, state: State) -> None:
    async def work(lock: Enforcer) -> None:
        await lock.load(derive(state))
        with pytest.raises(EnforcementError, match="does not open"):
            await lock.renew(await lock.read_back(), COVER)
        assert "elements" not in kernel.listing("ruleset")
        assert names.TUN_NAME not in kernel.ip("route", "show", "default", "table", str(names.ROUTE_TABLE))

    with_lock(kernel, work)


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (f"-4 route del default dev {names.TUN_NAME} table {names.ROUTE_TABLE}", EnforcementError),
        (f"link set {names.TUN_NAME} down", EnforcementError),
        ("-4 rule add unreachable", LedAround),
    ],
)
def test_a_reading_that_finds_something_wrong_closes(kernel: Kernel, harm: str, error: type[Exception]) -> None:
    async def work(lock: Enforcer) -> None:
        proof = await lock.renew(await lock.read_back(), COVER)
        kernel.ip(*harm.split())
        assert set(leased(kernel)) == {names.TUN_NAME, "lo"}, "the positive control"
        with pytest.raises(error):
            await lock.read_back()
        assert leased(kernel) == {}
        with pytest.raises(NoLease):
            await lock.renew(proof, COVER)

    with_lock(kernel, work)
