"""The daemon's own parts with fakes at the edge and a clock that skips what is only waited for.

Every task that is started, every effect and every call into the kernel's side can be made to fail, by its name: what is
added later is met without a word here.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop
from tests.unit.state_machine_watch import NEIGHBOURS, UPLINK_A, see

from psiphon_vpn.core import events as notices
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.lock import Lock
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import core_supervision, keeper, opening, runner
from psiphon_vpn.service import effects as do
from psiphon_vpn.service.events import TunBroken, UserRestart
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.timers import NextTry
from psiphon_vpn.tasks import Supervisor, run_alongside

LIVE_SECONDS = 150
MOST_EVENTS = 20_000
"""So often, 0.01 s apart, the end of what is being handled is waited for: longer than any effect may take."""


class Hung(Exception):
    """Instead of failing it never comes back."""


async def _meet(strike: Callable[[], None]) -> None:
    try:
        strike()
    except Hung:
        await asyncio.Event().wait()


@dataclass
class Fault:
    """What fails, how, and how often.

    Attributes:
        where: "part", "callback", "effect" or "kernel".
        name: of the part, the effect's type, or the enforcer's method.
        error: made anew each time.
        number: the first time that it fails, counted from 1.
        always: and each time from then on.
        late: seconds for which a part runs before it fails.
    """

    where: str
    name: str
    error: Callable[[], BaseException]
    number: int = 1
    always: bool = False
    late: float = 0.0
    met: int = 0

    def strike(self, where: str, name: str) -> None:
        """Fail, if this is it."""
        if (where, name) == (self.where, self.name):
            self.met += 1
            if self.met == self.number or (self.always and self.met > self.number):
                raise self.error()


class FakeKernel(FakeLock):
    """The same, with a fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not inspect.ismethod(found):
            return found
        fault = self._fault
        if inspect.iscoroutinefunction(found):

            async def faulty(*arguments: Any, **more: Any) -> Any:
                await asyncio.sleep(0.01)
                await _meet(lambda: fault.strike("kernel", name))
                return await found(*arguments, **more)

            return faulty

        def faulty_now(*arguments: Any, **more: Any) -> Any:
            if name not in {"close", "holds_lease"}:  # the first never fails, by its own word; the other is the judge's
                fault.strike("kernel", name)
            return found(*arguments, **more)

        return faulty_now


def list_public(kind: type) -> set[str]:
    """What others may use of a class."""
    return {name for base in kind.__mro__[:-1] for name in vars(base) if not name.startswith("_")}


def unlike() -> set[str]:
    """What the real one lets others use and its interface does not say: whoever is above has the interface alone."""
    return list_public(Enforcer) - {name for name in dir(Lock) if not name.startswith("_")}


class FakeCore:
    """Stands for the core: has a tunnel after a while. The first takes long, the second cannot use its data."""

    made = 0
    pid = 1

    def __init__(self, *, on_event: Callable[[notices.CoreEvent], None], on_exit: Callable[[int], None]) -> None:
        self._on_event, self._on_exit = on_event, on_exit
        self._handles: list[asyncio.TimerHandle] = []

    async def start(self, plan: object, sealing: object) -> None:
        """It runs."""
        FakeCore.made += 1
        later = asyncio.get_running_loop().call_later
        if FakeCore.made == 2:
            self._handles.append(later(0.2, self._on_event, notices.DatastoreError("broken")))
            self._handles.append(later(0.3, self._on_exit, 1))
        else:
            seconds = 20.0 if FakeCore.made == 1 else 0.4
            self._handles.append(later(seconds, self._on_event, notices.Tunnels(1)))

    async def stop(self, *, graceful: bool) -> None:
        """It is gone."""
        for handle in self._handles:
            handle.cancel()


async def _do_now(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


async def _answer(*_arguments: object, **_more: object) -> bool:
    await asyncio.sleep(0.1)
    return True


@dataclass
class Life:
    """What was seen in the life of a daemon.

    Attributes:
        ended: it ended by itself.
        unleased: the longest that it was taken for open without a lease in the kernel, in seconds.
        busy: in the end something was still being done, which takes no longer than any effect may.
        next_try: as it was told in the end.
        down: parts that should run for ever and did not, in the end.
        parts: that were started.
        effects: that were carried out.
    """

    runner: Any = None
    ended: bool = False
    leased: bool = False
    unleased: int = 0
    busy: bool = False
    next_try: NextTry | None = None
    down: frozenset[str] = frozenset()
    parts: set[str] = field(default_factory=set)
    effects: set[str] = field(default_factory=set)


def _inject(fault: Fault, life: Life) -> Iterator[contextlib.AbstractContextManager[object]]:
    start, keep, carry_out = Supervisor.start, Supervisor.keep, Runner.carry_out

    async def faulty(part: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if (fault.where, fault.name) != ("part", part):
            await make()
            return
        if not fault.late:
            await _meet(lambda: fault.strike("part", part))
        async with run_alongside(make()) as work:
            await asyncio.wait({work}, timeout=fault.late or None)
            if not work.done():
                await _meet(lambda: fault.strike("part", part))
            await work

    def started(self: Supervisor, part: str, work: Coroutine[Any, Any, None]) -> Any:
        life.parts.add(part)
        task = start(self, part, work if part == Part.EVENTS else faulty(part, lambda: work))
        task.add_done_callback(lambda _: work.close())
        return task

    def kept(self: Supervisor, part: str, make: Callable[[], Coroutine[Any, Any, None]]) -> Any:
        life.parts.add(part)
        return keep(self, part, lambda: faulty(part, make))

    async def carried_out(self: Runner, effect: do.Effect) -> None:
        life.effects.add(type(effect).__name__)
        await _meet(lambda: fault.strike("effect", type(effect).__name__))
        await carry_out(self, effect)

    yield mock.patch.object(Supervisor, "start", started)
    yield mock.patch.object(Supervisor, "keep", kept)
    yield mock.patch.object(Runner, "carry_out", carried_out)
    yield mock.patch.object(core_supervision, "CoreProcess", FakeCore)
    yield mock.patch.object(runner, "Sealing", return_value=contextlib.nullcontext(object()))
    # No time passes while a thread works.
    yield mock.patch.object(asyncio, "to_thread", _do_now)
    yield mock.patch.object(core_supervision, "is_free", return_value=True)
    yield mock.patch.object(opening, "ask_resolver", _answer)
    yield mock.patch.object(keeper, "ask_resolver", _answer)
    yield mock.patch.object(keeper, "ask", _answer)
    yield mock.patch.object(keeper, "read_traffic", return_value=None)


def live(fault: Fault, directory: Path) -> Life:
    """Live for some minutes with a fault."""
    FakeCore.made = 0
    life = Life()

    async def scenario() -> None:
        kernel = FakeKernel(fault)
        around = Surroundings(identity=IDENTITY, core=None, state_dir=directory)  # type: ignore[arg-type]
        service = life.runner = Runner(surroundings=around, enforcer=kernel, model=Model(), on_change=lambda: None)

        async def look_at_links() -> None:
            service.post(see(UPLINK_A))

        healer = Healer(runner=service, enforcer=kernel, own=OWN, look_at_links=look_at_links)
        handling = service.tasks.start(Part.EVENTS, service.run())
        service.tasks.keep(Part.LINKS, healer.watch_network)
        service.tasks.keep(Part.ROUTES, healer.watch_routes)
        service.tasks.keep(Part.RULES, healer.watch_rules)
        service.tasks.keep(Part.TRAFFIC, healer.watch_filters)
        service.tasks.keep(Part.GUARDS, healer.watch_guards)
        hear = service.tasks.guard(Part.ANNOUNCEMENTS, lambda: healer.on_network(None))
        hear()
        unleased = 0
        for second in range(LIVE_SECONDS):
            if second in {40, 70}:
                service.post(UserRestart())
            elif second == 55:
                service.post(TunBroken("the TUN is gone"))
            elif second == 85:
                service.post(see(UPLINK_A, on_link=NEIGHBOURS))
            elif second % 30 == 29:
                hear()
                healer.on_commit(None)
            if second % 10 == 5 and fault.where == "callback":
                service.tasks.guard(fault.name, lambda: fault.strike("callback", fault.name))()
            await asyncio.sleep(1)
            if handling.done():
                life.ended = True
                break
            assert not kernel.holds_lease() or service.model.state is State.OPEN, "a lease in another state"
            unleased = unleased + 1 if service.shown.state is State.OPEN and not kernel.holds_lease() else 0
            life.unleased = max(life.unleased, unleased)
        for _ in range(MOST_EVENTS):
            if not service.busy:
                break
            await asyncio.sleep(0.01)  # what is under way is nothing that a machine is left in
        life.leased, life.busy = kernel.holds_lease(), service.busy
        life.next_try, life.down = service.next_try, service.tasks.down
        await service.stop()
        await service.tasks.close()

    with contextlib.ExitStack() as stack:
        for one in _inject(fault, life):
            stack.enter_context(one)
        loop = SkippingLoop()
        try:
            loop.run_until_complete(scenario())
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), 1))
            loop.close()
    return life
