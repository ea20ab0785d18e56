"""The runner: whoever waits for it does not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fake_lock import FakeLock
from tests.policies import IDENTITY
from tests.skipping import run_skipping
from tests.unit.state_machine_watch import UPLINK_B, see

from psiphon_vpn.config import Settings
from psiphon_vpn.linux.lock import EnforcementError
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.network.choice import SocketUse
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import core_supervision
from psiphon_vpn.service.core_supervision import CoreSupervisor
from psiphon_vpn.service.events import Event, Intent, SettingsBad, SettingsGood, Timer, TunBroken, UplinkLost, UserStart
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.runner import Runner, Surroundings


def test_waiting_for_a_runner_that_has_ended_is_an_error_and_not_a_hang() -> None:
    class Broken(Runner):
        async def _handle(self, event: Event) -> None:
            raise ValueError("a defect")

    async def scenario() -> None:
        runner = make(Broken, Model())
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
    """Stands for a core that runs, and for who supervises it."""

    ended = False
    running = True

    async def stop(self, *, graceful: bool) -> None:
        self.ended, self.running = True, False


def make(kind: type[Runner], model: Model) -> Runner:
    """A runner without a kernel."""
    around = Surroundings(identity=IDENTITY, core=None, state_dir=Path("/nowhere"))  # type: ignore[arg-type]
    return kind(surroundings=around, enforcer=FakeLock(), model=model, on_change=lambda: None)


def test_a_core_is_ended_even_if_what_comes_before_its_end_fails() -> None:
    """Found by the leak test: the TUN was deleted twice, and the old core stayed and kept its data locked."""

    class Failing(Runner):
        async def _apply(self, state: State) -> None:
            raise EnforcementError("(19, 'No such device')")

    async def scenario() -> Core:
        core = Core()
        runner = make(Failing, Model(state=State.CONNECTING, core=1, core_running=True))
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
        """Stands for the process of a core."""

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


class Applying(Runner):
    """Notes which wires are applied."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.applied: list[str] = []

    async def _apply(self, state: State) -> None:
        self.applied.append(" ".join(self.model.seen.network.wires))
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
    """A network that comes had its rules loaded three times, while the user waited."""

    async def scenario() -> list[str]:
        runner = make(Applying, Model(intent=Intent.STOPPED))
        assert isinstance(runner, Applying)
        for look in looks:
            runner.post(look)
        await run_until_settled(runner)
        return runner.applied

    assert asyncio.run(scenario()) == applied


def test_of_looks_that_keep_coming_the_last_is_never_left_out() -> None:
    class Restless(Applying):
        async def _apply(self, state: State) -> None:
            await super()._apply(state)
            if len(self.applied) < 50:
                self.post(see(wires=f"eth0 eth{len(self.applied)}"))

    async def scenario() -> list[str]:
        runner = make(Restless, Model())
        assert isinstance(runner, Restless)
        runner.post(see(wires="eth0"))
        await run_until_settled(runner)
        return runner.applied

    assert asyncio.run(scenario()) == ["eth0", *(f"eth0 eth{number}" for number in range(1, 50))]


def test_the_configuration_reaches_the_policy_by_its_event_alone() -> None:
    found: list[int] = []

    class Deriving(Runner):
        async def _apply(self, state: State) -> None:
            found.append(self._policy(state, Tun(7)).socks_port)

    async def scenario() -> None:
        runner = make(Deriving, Model())
        runner.post(see(wires="eth0"))
        runner.post(SettingsGood(Settings(socks_port=2000)))
        runner.post(see(wires="eth0 eth1"))
        runner.post(SettingsBad("line 3"))
        await run_until_settled(runner)

    asyncio.run(scenario())
    assert found == [1081, 2000, 2000, 2000], "a bad one changes nothing but the state"


def leave(_runner: Runner) -> None:
    """Nothing happens."""


def renew(runner: Runner) -> None:
    """The lease was renewed."""
    runner._timers.heard(Timer.RENEWAL)


def cancel(runner: Runner) -> None:
    """A move."""
    runner._timers.cancel()


def arm(runner: Runner) -> None:
    """It begins anew."""
    runner._timers.arm(Timer.RENEWAL, 60.0)


@pytest.mark.parametrize(
    ("happen", "state"),
    [(leave, State.VERIFYING), (renew, State.OPEN), (cancel, State.OPEN), (arm, State.OPEN)],
)
def test_a_timer_that_fired_is_worth_nothing_if_it_was_put_off_or_cancelled_before_it_was_read(
    happen: Callable[[Runner], None], state: State
) -> None:
    """Its event waited in the queue meanwhile: what it had waited for in vain had come."""

    async def scenario() -> State:
        runner = make(Applying, Model(state=State.OPEN, core=1, core_running=True, tunnels=1))
        runner._timers.arm(Timer.RENEWAL, 1.0)
        await asyncio.sleep(2.0)
        assert runner.busy, "it has fired"
        happen(runner)
        await run_until_settled(runner)
        await runner.tasks.close()
        return runner.model.state

    assert run_skipping(scenario()) is state


def test_a_timer_that_was_put_off_after_it_had_fired_fires_again_when_nothing_comes() -> None:
    async def scenario() -> None:
        runner = make(Applying, Model(state=State.OPEN, core=1, core_running=True, tunnels=1))
        runner._timers.arm(Timer.RENEWAL, 1.0)
        await asyncio.sleep(2.0)
        renew(runner)
        handling = asyncio.create_task(runner.run())
        await runner.settle()
        assert runner.model.state is State.OPEN
        await asyncio.sleep(2.0)
        await runner.settle()
        handling.cancel()
        await runner.tasks.close()
        assert runner.model.reason is not Reason.STARTING, "it has left where it was"

    run_skipping(scenario())
