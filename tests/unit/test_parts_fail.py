# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever fails in the daemon: it closes, reports it and opens again, or stays locked and says until when."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import os
import re
import struct
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fake_lock import FakeLock
from tests.skipping import run_skipping
from tests.unit.faulty_daemon import Fault, Hung, Life, live, unlike

import psiphon_vpn
from psiphon_vpn.policy.model import State
from psiphon_vpn.service import effects as do
from psiphon_vpn.service import runner
from psiphon_vpn.service.parts import ONLY_LOGGED, Part
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.tasks import PartReturned, Supervisor, run_alongside

ERRORS: dict[str, Callable[[], BaseException]] = {
    **{
        name: lambda number=number: OSError(number, os.strerror(number))  # type: ignore[misc]
        for name, number in vars(errno).items()
        if name in {"EMFILE", "ENOBUFS", "ENOMEM", "EPERM", "EBUSY"}
    },
    "RuntimeError": lambda: RuntimeError("odd"),
    "ValueError": lambda: ValueError("odd"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
    "TimeoutError": TimeoutError,
    "struct.error": lambda: struct.error("odd"),
    "KeyError": lambda: KeyError(1),
    "AssertionError": AssertionError,
    "RecursionError": RecursionError,
    "CancelledError": asyncio.CancelledError,
}
FAMILIES = {"ENOBUFS", "ValueError", "TimeoutError", "CancelledError"}
EFFECTS = [kind.__name__ for kind in typing.get_args(do.Effect)]
TIMING = ["ArmTimer", "CancelTimers"]
CALLS = sorted(
    name
    for name, method in vars(FakeLock).items()
    if not name.startswith("_") and callable(method) and name != "holds_lease"
)
STARTED = {
    Part.VERIFICATION: 0.05,
    Part.LEASE: 3.0,
    Part.REHEARSAL: 0.005,
    Part.RESCUE: 2.0,
    Part.HINTS: 3.0,
    Part.LINKS: 3.0,
    Part.ROUTES: 3.0,
    Part.RULES: 3.0,
    Part.TRAFFIC: 3.0,
    Part.GUARDS: 3.0,
}
"""What is started beside the state machine, and how long it runs at least."""
SECONDS_UNTIL_SEEN = 12
"""The lease runs out after 5 s, and its watch fires after 8 s and a fifth."""


def find_stranded(life: Life) -> str | None:
    """Why a machine must not be left in this state."""
    model = life.runner.model
    if life.unleased > SECONDS_UNTIL_SEEN:
        return f"taken for open for {life.unleased} s without a lease"
    if life.ended:
        return None
    if model.state is State.OPEN:
        return None if life.leased else "open without a lease"
    if model.state is not State.LOCKED:
        return None if life.runner.next_try or model.core_running else f"{model.state} for ever"
    if model.reason in {Reason.STARTING, Reason.VERIFIED}:
        return f"locked without a reason: {model.reason}"
    if model.reason is Reason.NO_UPLINK and Part.LINKS in life.down:
        return None  # no snapshot yet, and the watch of the links starts again and again
    return None if life.next_try else "locked without a next try"


@pytest.fixture(autouse=True)
def _end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> typing.NoReturn:
        raise SystemExit(71)

    monkeypatch.setattr(runner, "end_without_memory", end)


@pytest.fixture
def _loop_left_behind() -> Iterator[None]:
    """Collects an interrupted loop at once, and so has its tasks reported.

    Otherwise the collector may run at any time, and asyncio writes the traceback of such a task, which needs `ast`
    (traceback.py). During a test's own ast.parse that is a SystemError in Python 3.11.2.
    """
    yield
    gc.collect()


def errors(*, always: bool) -> list[tuple[str, Callable[[], BaseException]]]:
    """Each kind of error once; of those that repeat, some of each family."""
    return [(name, error) for name, error in ERRORS.items() if not always or name in FAMILIES]


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(("part", "seconds"), STARTED.items())
def test_a_part_that_fails_closes_and_is_started_again(
    part: Part, seconds: float, late: bool, always: bool, tmp_path: Path
) -> None:
    for name, error in errors(always=always):
        fault = Fault("part", part, error, always=always, late=seconds if late else 0.0)
        life = live(fault, tmp_path)
        assert fault.met, "the fault did not occur"
        assert (name, find_stranded(life)) == (name, None)
        if not always:
            assert (name, life.runner.model.state, life.leased) == (name, State.OPEN, True)


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("part", Part)
def test_a_callback_that_fails_closes_and_is_reported(part: Part, always: bool, tmp_path: Path) -> None:
    for name, error in errors(always=always):
        if name == "CancelledError":
            continue  # a callback is not a task
        fault = Fault("callback", part, error, number=10, always=always)
        life = live(fault, tmp_path)
        assert fault.met >= 10, "the fault did not occur"
        assert (name, find_stranded(life)) == (name, None)
        if not always or part in ONLY_LOGGED:
            assert (name, life.runner.model.state, life.leased) == (name, State.OPEN, True)


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_that_fails_leaves_it_locked_or_is_done_again(
    effect: str, always: bool, number: int, tmp_path: Path
) -> None:
    for name, error in errors(always=always):
        fault = Fault("effect", effect, error, always=always, number=number)
        life = live(fault, tmp_path)
        if not fault.met >= number:
            assert effect in {
                "SetDataAside",
                "FindCause",
                "StopCore",
                "Verify",
                "AmendPolicy",
                "ReplaceTun",
                "StartRescue",
                "StopRescue",
            }, effect
            continue
        assert (name, find_stranded(life)) == (name, None)
        # Without timers nothing would ever be retried, so the daemon ends, and the service manager starts another.
        assert life.ended == (effect in TIMING)
        if not (always or life.ended):
            assert (name, life.runner.model.state, life.leased) == (name, State.OPEN, True)


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_the_kernels_side_that_fails_leaves_it_locked_or_is_done_again(
    call: str, always: bool, number: int, tmp_path: Path
) -> None:
    for name, error in errors(always=always):
        if name == "CancelledError" and not inspect.iscoroutinefunction(vars(FakeLock)[call]):
            continue  # a call that does not wait cannot be cancelled
        life = live(Fault("kernel", call, error, always=always, number=number), tmp_path)
        assert not life.ended
        assert (name, find_stranded(life)) == (name, None)
        if not always:
            assert (name, life.runner.model.state, life.leased) == (name, State.OPEN, True)


def find_hung(life: Life) -> str | None:
    """The same for something that never returns: it is given up in time, and so is the lease."""
    found = find_stranded(life)
    return None if life.busy or found == "open without a lease" else found


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("call", [name for name in CALLS if inspect.iscoroutinefunction(vars(FakeLock)[name])])
def test_a_call_of_the_kernels_side_that_never_comes_back_strands_nobody(
    call: str, always: bool, number: int, tmp_path: Path
) -> None:
    life = live(Fault("kernel", call, Hung, always=always, number=number), tmp_path)
    assert not life.ended
    assert find_hung(life) is None


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("effect", EFFECTS)
def test_an_effect_that_never_comes_back_strands_nobody(effect: str, always: bool, tmp_path: Path) -> None:
    life = live(Fault("effect", effect, Hung, always=always), tmp_path)
    assert find_hung(life) is None


@pytest.mark.requirement("R3", "R24")
@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("part", [Part.VERIFICATION, Part.LEASE, Part.REHEARSAL, Part.RESCUE, Part.HINTS])
def test_a_part_that_does_nothing_strands_nobody(part: Part, always: bool, tmp_path: Path) -> None:
    life = live(Fault("part", part, Hung, always=always), tmp_path)
    assert not life.ended
    assert find_hung(life) is None


def test_without_a_fault_every_effect_comes_and_every_part_runs(tmp_path: Path) -> None:
    """The positive control: what the other tests make fail does happen, and without a fault the machine is open."""
    life = live(Fault("nowhere", "", RuntimeError), tmp_path)
    assert find_stranded(life) is None
    assert (life.runner.model.state, life.leased) == (State.OPEN, True)
    assert life.effects == set(EFFECTS)
    assert life.parts == {*STARTED, Part.EVENTS}
    assert unlike() == set()


@pytest.mark.usefixtures("_loop_left_behind")
@pytest.mark.parametrize("where", ["part", "effect", "callback"])
def test_without_memory_it_ends_at_once(where: str, tmp_path: Path) -> None:
    name = {"part": str(Part.LEASE), "effect": "Verify", "callback": str(Part.ANNOUNCEMENTS)}[where]
    with pytest.raises(SystemExit):
        live(Fault(where, name, MemoryError), tmp_path)


# -- the supervisor itself --------------------------------------------------------------------------------------------


def test_a_part_that_returns_although_it_should_run_for_ever_has_failed() -> None:
    reported: list[BaseException] = []

    async def scenario() -> None:
        tasks = Supervisor(lambda _part, error: reported.append(error))

        async def end() -> None:
            await asyncio.sleep(0)

        tasks.keep("part", end)
        await asyncio.sleep(0.05)
        assert tasks.down == {"part"}
        await tasks.close()

    run_skipping(scenario())
    assert [type(error) for error in reported] == [PartReturned]


def test_what_is_cancelled_by_anybody_else_has_failed_and_what_we_cancel_has_not() -> None:
    reported: list[str] = []

    async def scenario() -> None:
        tasks = Supervisor(lambda part, _error: reported.append(part))

        async def wait() -> None:
            await asyncio.sleep(60)

        ours, others = tasks.start("ours", wait()), tasks.start("others", wait())
        await asyncio.sleep(0)
        tasks.cancel(ours)
        others.cancel()
        await asyncio.sleep(0.01)
        await tasks.close()

    run_skipping(scenario())
    assert reported == ["others"]


def test_a_failure_that_cannot_even_be_reported_is_noticed() -> None:
    def fail(part: str, error: BaseException) -> None:
        raise KeyError(part)

    async def scenario() -> None:
        tasks = Supervisor(fail)
        tasks.guard("part", lambda: 1 // 0)()
        async with asyncio.timeout(60):
            await tasks.wait_broken()
        assert isinstance(tasks.broken, KeyError)

    asyncio.run(scenario())


def test_the_end_of_the_event_loop_ends_what_runs_for_ever_too() -> None:
    async def scenario() -> None:
        async def wait() -> None:
            await asyncio.sleep(600)

        Supervisor(lambda _part, _error: None).keep("part", wait)
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_failure_beside_a_block_is_never_lost() -> None:
    async def fail() -> None:
        raise ValueError("beside")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="beside"):
            async with run_alongside(fail()):
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_block_that_fails_itself_is_what_is_reported() -> None:
    async def fail() -> None:
        raise ValueError("beside")

    async def work() -> None:
        async with run_alongside(fail()):
            await asyncio.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(work())


STARTERS = {
    "create_task",
    "ensure_future",
    "call_later",
    "call_soon",
    "call_at",
    "call_soon_threadsafe",
    "add_reader",
    "add_writer",
    "add_signal_handler",
    "run_in_executor",
    "TaskGroup",
}
SOURCES = Path(psiphon_vpn.__file__).parent


def find_starters(path: Path) -> list[str]:
    """Lines of a source that start something directly on the event loop."""
    pattern = re.compile(rf"\.({'|'.join(sorted(STARTERS))})\b")
    return [line for line in path.read_text().splitlines() if pattern.search(line)]


@pytest.mark.parametrize(
    "path",
    sorted(path for part in ("service", "linux", "core") for path in (SOURCES / part).rglob("*.py")),
    ids=lambda path: path.stem,
)
def test_nothing_starts_a_task_or_a_callback_past_the_supervisor(path: Path) -> None:
    assert find_starters(path) == []


def test_the_reading_of_the_sources_would_find_one() -> None:
    assert find_starters(SOURCES / "tasks.py")
