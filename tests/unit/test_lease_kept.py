# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a lease: whether the machine was too slow to renew it or somebody removed it, and what the status says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from tests.fake_lock import FakeLock
from tests.policies import make_policy
from tests.skipping import run_skipping
from tests.unit.state_machine_watch import Watch

from psiphon_vpn.linux import lease as leases
from psiphon_vpn.linux.lease import Lease
from psiphon_vpn.linux.lock import Area, Cover, EnforcementError, Proof, Restored
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import events as ev
from psiphon_vpn.service import keeper
from psiphon_vpn.service.events import Event, Timer
from psiphon_vpn.service.keeper import LeaseKeeper
from psiphon_vpn.service.patience import Patience
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.service.status import explain_no_lease


async def hear_nothing() -> float | None:
    """The kernel knows no connection of the core."""
    return None


async def make_keeper(lock: FakeLock, *, post: Callable[[Event], None], on_renewal: Callable[[], None]) -> LeaseKeeper:
    """A keeper of a lease that was just taken."""
    lock.policy = make_policy(State.OPEN)
    return LeaseKeeper(
        lock=lock,
        proof=await lock.renew(await lock.read_back(), Cover()),
        cover=Cover(),
        has_ipv6=True,
        post=post,
        on_change=lambda: None,
        has_slept=lambda: False,
        on_renewal=on_renewal,
        ipv6_probe=(),
        patience=Patience(0.1),
        hear=hear_nothing,
    )


def keep(lock: FakeLock, befall: Callable[[FakeLock], None]) -> list[Event]:
    """Keep a lease until something happens to it; returns the posted events."""
    reported: list[Event] = []

    async def wait(*_arguments: object, **_more: object) -> bool:
        await asyncio.sleep(3600)
        return True

    async def scenario() -> None:
        renewals = 0

        def renewed() -> None:
            nonlocal renewals
            renewals += 1
            if renewals == 3:
                befall(lock)

        service = await make_keeper(lock, post=reported.append, on_renewal=renewed)
        async with asyncio.timeout(600):
            await service.run()
        assert renewals == 3

    with (
        mock.patch.object(keeper, "ask", wait),
        mock.patch.object(keeper, "ask_resolver", wait),
        mock.patch.object(keeper, "read_traffic", return_value=None),
    ):
        run_skipping(scenario())
    return reported


def be_starved(_lock: FakeLock) -> None:
    """The daemon does not get the processor for longer than a lease lasts."""
    loop: Any = asyncio.get_running_loop()
    loop.pass_time(names.LEASE_SECONDS + 1)


@pytest.mark.requirement("B2")
def test_a_lease_that_was_not_renewed_in_time_is_reported_as_that_and_not_as_a_change_of_the_lock() -> None:
    lock = FakeLock()
    assert keep(lock, be_starved) == [ev.LeaseLost(expired=True)]
    assert not lock.leased


def test_a_lease_that_was_closed_meanwhile_did_not_run_out() -> None:
    assert keep(FakeLock(), FakeLock.close) == [ev.LeaseLost(expired=False)]


def test_what_a_renewal_finds_changed_is_a_change_of_the_lock() -> None:
    class Changed(FakeLock):
        changed = False

        async def renew(self, proof: Proof, cover: Cover) -> Proof:
            if self.changed:
                self.close()
                raise EnforcementError("somebody changed net.ipv4.conf.all.rp_filter")
            return await super().renew(proof, cover)

    lock = Changed()
    reported = keep(lock, lambda _: setattr(lock, "changed", True))
    assert reported == [ev.LockBroken("somebody changed net.ipv4.conf.all.rp_filter")]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (ev.LeaseLost(expired=True), Reason.LEASE_EXPIRED),
        (ev.LeaseLost(expired=False), Reason.LEASE_LOST),
        (ev.LockBroken("nft (pid 7) changed the lock"), Reason.RULES_CHANGED),
    ],
)
def test_a_lease_that_ends_is_verified_again_for_its_own_reason(event: Event, reason: Reason) -> None:
    watch = Watch().to_open()
    watch.tell(event)
    assert (watch.model.state, watch.model.reason) == (State.VERIFYING, reason)
    assert "CloseLease" in {type(effect).__name__ for effect in watch.effects}


def test_an_opening_that_nothing_renews_has_run_out_too() -> None:
    watch = Watch().to_open()
    watch.tell(ev.TimerFired(Timer.RENEWAL))
    assert (watch.model.state, watch.model.reason) == (State.VERIFYING, Reason.LEASE_EXPIRED)


@pytest.mark.parametrize("way", ["to_connecting", "to_verifying"])
@pytest.mark.parametrize("expired", [True, False])
def test_the_end_of_a_lease_that_is_no_more_changes_nothing(way: str, expired: bool) -> None:
    watch: Watch = getattr(Watch(), way)()
    before = watch.model
    assert watch.tell(ev.LeaseLost(expired=expired)) == ()
    assert watch.model == before


def test_a_lease_that_ran_out_blames_nobody_and_has_a_next_step() -> None:
    reported = explain(Reason.LEASE_EXPIRED)
    assert "ran out" in reported.sentence
    assert "changed" not in reported.sentence
    assert reported.next_step is not None


def test_status_tells_the_two_apart_before_anybody_has_renewed() -> None:
    async def scenario() -> list[Reason]:
        lock = FakeLock()
        lock.policy = make_policy(State.OPEN)
        found = [explain_no_lease(lock.view)]
        await lock.renew(await lock.read_back(), Cover())
        be_starved(lock)
        return [*found, explain_no_lease(lock.view)]

    assert run_skipping(scenario()) == [Reason.LEASE_LOST, Reason.LEASE_EXPIRED]


def test_a_lease_counts_from_before_the_kernel_was_asked() -> None:
    """The kernel counts from some moment within the call: a daemon that is starved there must not assume more."""
    now = 1000.0

    class Slow:
        def renew(self, *_arguments: object, generation: int) -> int:
            nonlocal now
            now += names.LEASE_SECONDS + 1
            return generation + 1

    tables: Any = mock.Mock()
    lease = Lease(Slow(), tables)  # type: ignore[arg-type]

    def tell_time() -> float:
        return now

    with mock.patch.object(leases, "read_boot_seconds", tell_time):
        lease.renew(lease.prove(1, 0), Cover())
        assert lease.ran_out


# -- what others put before the TUN -----------------------------------------------------------------------------------


class Blocked(FakeLock):
    """Another program's traffic control blocks everything."""

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        assert not self.leased, "closed before anything is looked at"
        return Restored(queue="tbf")


@pytest.mark.parametrize(
    ("lock", "reported"),
    [(FakeLock(), ev.TunnelSilent), (Blocked(), ev.LockBroken)],
    ids=["nothing", "something"],
)
def test_a_tunnel_that_is_silent_closes_and_names_what_was_put_before_it(lock: FakeLock, reported: type[Event]) -> None:
    asked = 0

    async def answer(*_arguments: object, **_more: object) -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    posted: list[Event] = []

    async def scenario() -> None:
        def renewed() -> None:
            service.doubt()

        service = await make_keeper(lock, post=posted.append, on_renewal=renewed)
        async with asyncio.timeout(600):
            await service.run()

    with (
        mock.patch.object(keeper, "ask_resolver", answer),
        mock.patch.object(keeper, "read_traffic", return_value=None),
    ):
        run_skipping(scenario())
    assert asked == 3, "asked once for each doubt"
    (event,) = posted
    assert isinstance(event, reported)
    assert not isinstance(event, ev.LockBroken) or "tbf" in event.detail
    assert not lock.leased


def test_what_happens_while_the_tunnel_is_asked_is_asked_for_again() -> None:
    asked = 0

    async def scenario() -> None:
        lock = FakeLock()
        service = await make_keeper(lock, post=lambda _: None, on_renewal=lambda: None)

        async def answer(*_arguments: object, **_more: object) -> bool:
            nonlocal asked
            asked += 1
            if asked == 1:
                service.doubt()
            return asked < 2

        with (
            mock.patch.object(keeper, "ask_resolver", answer),
            mock.patch.object(keeper, "read_traffic", return_value=None),
        ):
            asyncio.get_running_loop().call_later(0.5, service.doubt)
            async with asyncio.timeout(8):
                await service.run()

    run_skipping(scenario())
    assert asked == 2
