# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The runner of effects: nobody waits for it for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fake_lists import NoLists
from tests.fake_lock import FakeLock
from tests.policies import IDENTITY
from tests.skipping import run_skipping
from tests.unit.state_machine_watch import UPLINK_B, see

from psiphon_vpn.config import Settings
from psiphon_vpn.linux.lock import EnforcementError, Lock, Proof
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.network.choice import SocketUse
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.service import core_supervision
from psiphon_vpn.service.core_supervision import CoreSupervisor
from psiphon_vpn.service.events import Event, Intent, SettingsBad, SettingsGood, Timer, TunBroken, UplinkLost, UserStart
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.runner import Runner, Surroundings


def test_waiting_for_a_runner_that_has_ended_is_an_error_and_not_a_hang() -> None:
    def fail() -> None:
        raise ValueError("a defect")

    async def scenario() -> None:
        runner = make(FakeLock(), Model(), on_change=fail)
        runner.post(UserStart())
        runner.post(UserStart())
        task = asyncio.create_task(runner.run())
        async with asyncio.timeout(60):
            with pytest.raises(RuntimeError, match="no longer handles events"):
                await runner.settle()
        with pytest.raises(ValueError, match="a defect"):
            await task

    asyncio.run(scenario())


class Core:
    """Stands in for a running core and its supervisor."""

    ended = False
    running = True

    async def stop(self, *, graceful: bool) -> None:
        self.ended, self.running = True, False


def make(lock: Lock, model: Model, *, on_change: Callable[[], None] = lambda: None) -> Runner:
    """A runner without a kernel."""
    around = Surroundings(identity=IDENTITY, core=None, state_dir=Path("/nowhere"), lists=NoLists())  # type: ignore[arg-type]
    return Runner(surroundings=around, lock=lock, model=model, on_change=on_change)


def test_a_core_is_ended_even_if_what_comes_before_its_end_fails() -> None:
    """The leak test found this: the TUN was deleted twice, and the old core stayed and kept its data locked."""

    class Failing(FakeLock):
        async def load(self, *_arguments: object, **_options: object) -> None:
            raise EnforcementError("(19, 'No such device')")

    async def scenario() -> Core:
        core = Core()
        runner = make(Failing(), Model(state=State.CONNECTING, core=1, core_running=True))
        runner.core = core  # type: ignore[assignment]
        runner.post(TunBroken("the TUN is gone"))
        await run_until_settled(runner)
        assert not runner.model.core_running
        assert not runner.core.running
        return core

    assert asyncio.run(scenario()).ended


def test_no_core_is_started_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []

    class Process:
        """Stands in for the process of a core."""

        def __init__(self, **_callbacks: object) -> None:
            self.number = len(running)

        async def start(self, plan: object, sealing: object) -> None:
            assert running == []
            running.append(self.number)

        async def stop(self, *, graceful: bool) -> None:
            await asyncio.sleep(0)
            running.remove(self.number)

    async def scenario() -> None:
        core = CoreSupervisor(data_dir=Path("/nowhere"), post=print, close_now=print, on_notice=print)
        sealing: Any = None
        for number in (1, 2, 3):
            await core.start(number, uplink=UPLINK_B, settings=Settings(), proxy=True, sealing=sealing)
            assert len(running) == 1

    monkeypatch.setattr(core_supervision, "CoreProcess", Process)
    monkeypatch.setattr(core_supervision, "is_free", lambda _port: True)
    asyncio.run(scenario())


class NotingLock(FakeLock):
    """Records the policies that are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Policy] = []

    @property
    def wires(self) -> list[str]:
        """The wires of each policy."""
        return [" ".join(map(str, policy.links.wires)) for policy in self.loaded]

    async def load(self, policy_for: Callable[[Tun | None], Policy], **options: Any) -> None:
        """It is in force."""
        await super().load(policy_for, **options)
        assert self.policy is not None
        self.loaded.append(self.policy)
        await asyncio.sleep(0)


async def run_until_settled(runner: Runner) -> None:
    task = asyncio.create_task(runner.run())
    await runner.settle()
    task.cancel()


@pytest.mark.parametrize(
    ("looks", "applied"),
    [
        ([see()], ["eth0 eth1"]),
        ([see()] * 3, ["eth0 eth1"]),
        ([see(wires="eth0"), see(wires="eth0 eth1"), see(wires="eth0 eth1")], ["eth0 eth1"]),
        ([see(wires="eth0"), see(UPLINK_B)], ["eth0", "eth0 eth1"]),
        ([see(UPLINK_B, wires="eth1"), see(UPLINK_B), see(UPLINK_B)], ["eth0 eth1"]),
        ([see(UPLINK_B), see(), see(UPLINK_B)], ["eth0 eth1"] * 3),
        ([see(UPLINK_B), UplinkLost(), see(UPLINK_B)], ["eth0 eth1"] * 3),
        ([see(wires="eth0", uses=frozenset({SocketUse(4, "192.0.2.9")})), see()], ["eth0", "eth0 eth1"]),
    ],
)
def test_looks_that_come_together_are_applied_once_and_no_transition_is_passed_over(
    looks: list[Event], applied: list[str]
) -> None:
    """Once, a new network had its rules loaded three times, while the user waited."""

    async def scenario() -> list[str]:
        lock = NotingLock()
        runner = make(lock, Model(intent=Intent.STOPPED))
        for look in looks:
            runner.post(look)
        await run_until_settled(runner)
        return lock.wires

    assert asyncio.run(scenario()) == applied


def test_of_looks_that_keep_coming_the_last_is_never_left_out() -> None:
    class Restless(NotingLock):
        post: Callable[[Event], None]

        async def load(self, policy_for: Callable[[Tun | None], Policy], **options: Any) -> None:
            await super().load(policy_for, **options)
            if len(self.loaded) < 50:
                self.post(see(wires=f"eth0 eth{len(self.loaded)}"))

    async def scenario() -> list[str]:
        lock = Restless()
        runner = make(lock, Model())
        lock.post = runner.post
        runner.post(see(wires="eth0"))
        await run_until_settled(runner)
        return lock.wires

    assert asyncio.run(scenario()) == ["eth0", *(f"eth0 eth{number}" for number in range(1, 50))]


def test_the_configuration_reaches_the_policy_by_its_event_alone() -> None:
    lock = NotingLock()

    async def scenario() -> None:
        runner = make(lock, Model())
        runner.post(see(wires="eth0"))
        runner.post(SettingsGood(Settings(socks_port=2000)))
        runner.post(see(wires="eth0 eth1"))
        runner.post(SettingsBad("line 3"))
        await run_until_settled(runner)

    asyncio.run(scenario())
    assert [policy.socks_port for policy in lock.loaded] == [1081, 2000, 2000, 2000], (
        "a bad one changes nothing but the state"
    )


class Unread(FakeLock):
    """A lock that is never read back: these tests do not look beyond VERIFYING."""

    async def read_back(self) -> Proof:
        """Never return."""
        never: asyncio.Future[Proof] = asyncio.get_running_loop().create_future()
        return await never


def leave(_runner: Runner) -> None:
    """Nothing happens."""


def renew(runner: Runner) -> None:
    """The lease was renewed."""
    runner.timers.heard(Timer.RENEWAL)


def cancel(runner: Runner) -> None:
    """Move to another state."""
    runner.timers.cancel()


def arm(runner: Runner) -> None:
    """Restart the timer."""
    runner.timers.arm(Timer.RENEWAL, 60.0)


@pytest.mark.parametrize(
    ("happen", "state"),
    [(leave, State.VERIFYING), (renew, State.OPEN), (cancel, State.OPEN), (arm, State.OPEN)],
)
def test_a_timer_that_fired_is_worth_nothing_if_it_was_put_off_or_cancelled_before_it_was_read(
    happen: Callable[[Runner], None], state: State
) -> None:
    """The timer's event waited in the queue while what the timer guarded had already come."""

    async def scenario() -> State:
        runner = make(Unread(), Model(state=State.OPEN, core=1, core_running=True, tunnels=1, uplink=UPLINK_B))
        runner.timers.arm(Timer.RENEWAL, 1.0)
        await asyncio.sleep(2.0)
        assert runner.busy, "it has fired"
        happen(runner)
        await run_until_settled(runner)
        await runner.tasks.close()
        return runner.model.state

    assert run_skipping(scenario()) is state


def test_a_timer_that_was_put_off_after_it_had_fired_fires_again_when_nothing_comes() -> None:
    async def scenario() -> None:
        runner = make(Unread(), Model(state=State.OPEN, core=1, core_running=True, tunnels=1, uplink=UPLINK_B))
        runner.timers.arm(Timer.RENEWAL, 1.0)
        await asyncio.sleep(2.0)
        renew(runner)
        handling = asyncio.create_task(runner.run())
        await runner.settle()
        assert runner.model.state is State.OPEN
        await asyncio.sleep(2.0)
        await runner.settle()
        handling.cancel()
        await runner.tasks.close()
        assert runner.model.reason is not Reason.STARTING, "it has left its state"

    run_skipping(scenario())
