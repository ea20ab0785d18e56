"""The runner: whoever waits for it does not wait for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.policies import IDENTITY

from psiphon_vpn.config import Settings
from psiphon_vpn.linux.enforcer import EnforcementError
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.values import InterfaceName, parse_names
from psiphon_vpn.service import effects as do
from psiphon_vpn.service.events import Event, Intent, LinksChanged, TunBroken, UplinkSeen, UserStart
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.uplink import Path, Uplink


def test_waiting_for_a_runner_that_has_ended_is_an_error_and_not_a_hang() -> None:
    class Broken(Runner):
        async def _handle(self, event: Event) -> None:
            raise ValueError("a defect")

    async def scenario() -> None:
        runner = Broken(surroundings=None, enforcer=None, model=None, settings=None, on_change=print)  # type: ignore[arg-type]
        runner.post(UserStart())
        runner.post(UserStart())
        task = asyncio.create_task(runner.run())
        async with asyncio.timeout(60):
            with pytest.raises(RuntimeError, match="no events"):
                await runner.settle()
        with pytest.raises(ValueError, match="a defect"):
            await task

    asyncio.run(scenario())


class Core:
    """Stands for a core that runs."""

    ended = False
    pid = 1

    async def stop(self, *, graceful: bool) -> None:
        self.ended = True


class Enforcer:
    """Stands for a kernel."""

    leased = False

    def close(self) -> None:
        """Nothing is open."""


def make(kind: type[Runner], model: Model) -> Runner:
    """A runner with a kernel that does nothing."""
    around: Any = None
    kernel: Any = Enforcer()
    return kind(surroundings=around, enforcer=kernel, model=model, settings=Settings(), on_change=lambda: None)


def test_a_core_is_ended_even_if_what_comes_before_its_end_fails() -> None:
    """Found by the leak test: the TUN was deleted twice, and the old core stayed and kept its data locked."""

    class Failing(Runner):
        async def _apply(self, state: State) -> None:
            raise EnforcementError("(19, 'No such device')")

    async def scenario() -> Core:
        core = Core()
        model = Model(state=State.CONNECTING, core=1, core_running=True)
        runner = make(Failing, model)
        runner._core = core  # type: ignore[assignment]
        await runner._handle(TunBroken("the TUN is gone"))
        assert not runner.model.core_running
        assert runner.core_pid is None
        return core

    assert asyncio.run(scenario()).ended


def test_no_core_is_started_beside_another() -> None:
    class Starting(Runner):
        async def _start_core(self, number: int) -> None:
            assert self._core is None

    async def scenario() -> Core:
        core = Core()
        runner = make(Starting, Model())
        runner._core = core  # type: ignore[assignment]
        await runner._carry_out(do.StartCore(2))
        return core

    assert asyncio.run(scenario()).ended


class Settled(Enforcer):
    """A kernel in which the rules of one set of wires are in force."""

    def __init__(self) -> None:
        self.tun = Core()
        self.tun.index = 7  # type: ignore[attr-defined]
        self.wires: tuple[str, ...] = ()

    def holds(self, policy: Any) -> bool:
        """Whether the policy's wires are these."""
        return bool(policy.links.wires == self.wires)


@pytest.mark.parametrize(
    ("wires", "events", "applied"),
    [
        ((), ["links"], []),
        (("eth1",), ["links"], [("eth1",)]),
        (("eth1",), ["links", "links", "links"], [("eth1",)]),
        (("eth1",), ["links", "uplink", "links"], [("eth1",)]),
        (("eth1",), ["uplink", "links"], [("eth1",)]),
    ],
)
def test_changes_of_links_are_applied_once_and_only_when_the_rules_do_not_say_them_yet(
    wires: tuple[str, ...], events: list[str], applied: list[tuple[str, ...]]
) -> None:
    """A network that comes had its rules loaded three times, while the user waited."""
    found: list[tuple[str, ...]] = []

    class Applying(Runner):
        async def _apply(self, state: State) -> None:
            found.append(self.wires)
            self._enforcer.wires = self.wires  # type: ignore[attr-defined]

    async def scenario() -> None:
        kernel: Any = Settled()
        around: Any = Surroundings(identity=IDENTITY, core=None, state_dir=None)  # type: ignore[arg-type]
        runner = Applying(
            surroundings=around,
            enforcer=kernel,
            model=Model(intent=Intent.STOPPED),
            settings=Settings(),
            on_change=lambda: None,
        )
        runner.wires = parse_names(*wires)
        path = Path(version=4, gateways=("192.0.2.1",), places=("192.0.2.9",))
        uplink = Uplink(index=2, name=InterfaceName("eth1"), paths=(path,))
        for name in events:
            runner.post(LinksChanged() if name == "links" else UplinkSeen(uplink))
        task = asyncio.create_task(runner.run())
        await runner.settle()
        task.cancel()

    asyncio.run(scenario())
    assert found == applied


def test_of_changes_that_keep_coming_the_last_is_never_left_out() -> None:
    handled: list[int] = []

    class Applying(Runner):
        async def _apply(self, state: State) -> None:
            handled.append(int(self.wires[0]))
            self._enforcer.wires = self.wires  # type: ignore[attr-defined]
            if int(self.wires[0]) < 50:
                self.wires = parse_names(str(int(self.wires[0]) + 1))
                self.post(LinksChanged())
            await asyncio.sleep(0)

    async def scenario() -> None:
        kernel: Any = Settled()
        around: Any = Surroundings(identity=IDENTITY, core=None, state_dir=None)  # type: ignore[arg-type]
        runner = Applying(
            surroundings=around, enforcer=kernel, model=Model(), settings=Settings(), on_change=lambda: None
        )
        runner.wires = parse_names("1")
        runner.post(LinksChanged())
        task = asyncio.create_task(runner.run())
        await runner.settle()
        task.cancel()

    asyncio.run(scenario())
    assert handled == list(range(1, 51))
