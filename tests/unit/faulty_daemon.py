# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's own parts with fakes at the edge and a clock that skips all waiting.

Every task, every effect and every call into the kernel's side can be made to fail by its name, even one that is added
later.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fake_lists import FakeLists
from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop
from tests.unit.state_machine_watch import NEIGHBOURS, UPLINK_A, see

from psiphon_vpn.core import events as notices
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.lock import Lock
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.fetch_order import Order
from psiphon_vpn.servers.hints import FILE_NAME, Hint, write_hints
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.service import core_supervision, hint_keeper, keeper, opening, rescue, runner
from psiphon_vpn.service import effects as do
from psiphon_vpn.service.events import TunBroken, UserRestart
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.rescue import CONNECT_SECONDS
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.timers import NextTry
from psiphon_vpn.tasks import Supervisor, run_alongside

LIVE_SECONDS = 150
MOST_EVENTS = 20_000
"""How many times to wait 0.01 s for the end of what is being handled: longer than any effect may take."""


class Hung(Exception):
    """Stands for a call that never returns instead of failing."""


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
        error: makes a new error each time.
        number: the first time that it fails, counted from 1.
        always: whether it also fails each time after that.
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
        """Fail, if the fault is this one."""
        if (where, name) == (self.where, self.name):
            self.met += 1
            if self.met == self.number or (self.always and self.met > self.number):
                raise self.error()


class FakeKernel(FakeLock):
    """The fake lock, with a fault."""

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
            # `close` never fails, as its interface says; `holds_lease` is the test's own.
            if name not in {"close", "holds_lease"}:
                fault.strike("kernel", name)
            return found(*arguments, **more)

        return faulty_now


def list_public(kind: type) -> set[str]:
    """The public names of a class."""
    return {name for base in kind.__mro__[:-1] for name in vars(base) if not name.startswith("_")}


def unlike() -> set[str]:
    """Public names of the real class that its interface lacks: the code above may use only the interface."""
    return list_public(Enforcer) - {name for name in dir(Lock) if not name.startswith("_")}


class FakeCore:
    """Stands in for the core: it has a tunnel after a while. The first takes long, the second cannot use its data."""

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
            # Long enough for a rescue to be under way when the tunnel comes.
            seconds = 27.0 if FakeCore.made == 1 else 0.4
            self._handles.append(later(seconds, self._on_event, notices.Tunnels(1)))

    async def stop(self, *, graceful: bool) -> None:
        """It is gone."""
        for handle in self._handles:
            handle.cancel()


HINT = Hint(host="lists.example", address=ipaddress.IPv4Address("11.0.0.80"), seen=datetime.now(UTC))
LISTS = FakeLists((ListHost(HINT.host, "/list"),))


class FakeEdge:
    """No host that a rescue asks ever answers."""

    async def connect(self, address: Address, port: int, device: str) -> socket.socket:
        """Wait as long as the real one."""
        await asyncio.sleep(CONNECT_SECONDS)
        raise TimeoutError

    def speak(self, connection: socket.socket, order: Order) -> bytes:
        """Never reached."""
        raise AssertionError


async def _no_answer(*_arguments: object, **_more: object) -> None:
    await asyncio.sleep(1)


async def _do_now(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


async def _answer(*_arguments: object, **_more: object) -> bool:
    await asyncio.sleep(0.1)
    return True


@dataclass
class Life:
    """What a daemon did during its life.

    Attributes:
        ended: whether it ended by itself.
        unleased: the longest time that it called itself open without a lease in the kernel, in seconds.
        busy: whether an effect was still under way at the end, within its time limit.
        next_try: as reported at the end.
        down: parts that should run for ever, and did not run at the end.
        parts: those that were started.
        effects: those that were carried out.
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
    # The clock stands still while a thread works.
    yield mock.patch.object(asyncio, "to_thread", _do_now)
    yield mock.patch.object(core_supervision, "is_free", return_value=True)
    yield mock.patch.object(opening, "ask_resolver", _answer)
    yield mock.patch.object(keeper, "ask_resolver", _answer)
    yield mock.patch.object(keeper, "ask", _answer)
    yield mock.patch.object(rescue, "RealEdge", FakeEdge)
    yield mock.patch.object(hint_keeper, "exchange", _no_answer)
    yield mock.patch.object(keeper, "read_traffic", return_value=None)


def live(fault: Fault, directory: Path) -> Life:
    """Live for some minutes with a fault."""
    FakeCore.made = 0
    life = Life()
    write_hints(directory / FILE_NAME, [HINT])

    async def scenario() -> None:
        kernel = FakeKernel(fault)
        around = Surroundings(identity=IDENTITY, core=None, state_dir=directory, lists=LISTS)  # type: ignore[arg-type]
        service = life.runner = Runner(surroundings=around, lock=kernel, model=Model(), on_change=lambda: None)

        async def look_at_links() -> None:
            service.post(see(UPLINK_A))

        healer = Healer(runner=service, lock=kernel, own=OWN, look_at_links=look_at_links)
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
            await asyncio.sleep(0.01)  # an effect that is under way is not a final state
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
