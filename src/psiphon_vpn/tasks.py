# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts all tasks and callbacks of the event loop, so that none of them can end or fail unnoticed.

A failed asyncio task reports only to the code that awaits it, and a failed callback only to the loop's exception
handler, which continues. So all concurrent work is started here, and every unexpected end is reported: an exception,
the return of a part that should run for ever, a cancellation that did not come from here. A test checks the sources:
the daemon starts no task or callback in any other way.
"""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.5
LAST_PAUSE_SECONDS: Final = 30.0
"""The pause before a failed part is started again, doubled each time."""
CALM_SECONDS: Final = 60.0
"""After a part has run this long, its next pause is the first one again."""
_HERE: Final = Path(__file__).parent


class PartReturned(Exception):
    """A part that should run for ever has returned."""


def describe_kind(error: BaseException) -> str:
    """The error's type, without its text, which may contain an address or a name of the user."""
    kind = type(error).__name__
    return f"{kind} ({error.strerror})" if isinstance(error, OSError) and error.strerror else kind


def describe(error: BaseException) -> str:
    """The error's type, and where in this program it was raised."""
    kind = describe_kind(error)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent.parent == _HERE
    ]
    return f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else kind


class Supervisor:
    """Starts parts, and reports when one fails.

    Args:
        on_failure: called at once with the part's name and the error. Must not raise.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._ending: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._down: set[str] = set()
        self._has_broken = asyncio.Event()
        self.broken: BaseException | None = None
        """The error raised by `on_failure`, if it failed itself."""

    @property
    def down(self) -> frozenset[str]:
        """Parts that should run for ever, have failed, and are not running again yet."""
        return frozenset(self._down)

    def start(self, part: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that ends by itself."""
        task = self._start(self._watch(part, work))
        # If the task is cancelled before it begins, nothing else closes the inner coroutine.
        task.add_done_callback(lambda _: work.close())
        return task

    def keep(self, part: str, make: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Start work that runs for ever, and start it again after a pause, however it ended."""
        return self._start(self._keep(part, make))

    def cancel(self, task: asyncio.Task[None] | None) -> None:
        """Cancel a task, which is then no failure. The calling task is not cancelled: it is about to return."""
        if task is not None and task is not asyncio.current_task() and not task.done():
            self._ending.add(task)
            task.cancel()

    async def close(self) -> None:
        """Cancel all tasks, and wait for their end."""
        for task in tuple(self._running):
            self.cancel(task)
        others = self._running - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    def guard(self, part: str, function: Callable[..., object]) -> Callable[..., None]:
        """The function as a callback for the event loop, whose failure is reported."""

        def guarded(*arguments: object) -> None:
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001  it is reported
                self._report(part, error)

        return guarded

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._ending.discard(task)

    def _was_asked(self) -> bool:
        return asyncio.current_task() in self._ending

    def _report(self, part: str, error: BaseException) -> None:
        try:
            self._on_failure(part, error)
        except Exception as worse:  # noqa: BLE001  it ends the daemon
            self.broken = self.broken or worse
            self._has_broken.set()

    async def wait_broken(self) -> None:
        """Wait until a failure could not be reported: nothing here can be relied on any more."""
        await self._has_broken.wait()

    async def _watch(self, part: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if not self._was_asked():
                self._report(part, error)
            raise
        except Exception as error:  # noqa: BLE001  it is reported
            self._report(part, error)

    async def _keep(self, part: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            began = loop.time()
            try:
                await asyncio.sleep(pause)
                self._down.discard(part)
                await make()
                raise PartReturned
            except asyncio.CancelledError as error:
                if self._was_asked():
                    raise
                self._down.add(part)
                self._report(part, error)
                if was_cancelled():
                    raise  # for example by the end of the event loop, which would wait for us
            except Exception as error:  # noqa: BLE001  it is reported
                self._down.add(part)
                self._report(part, error)
            ran = loop.time() - began - pause
            pause = (
                FIRST_PAUSE_SECONDS
                if ran >= CALM_SECONDS
                else min(LAST_PAUSE_SECONDS, pause * 2 or FIRST_PAUSE_SECONDS)
            )


def was_cancelled() -> bool:
    """Whether the running task itself was cancelled, and not just something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.asynccontextmanager
async def run_alongside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run a task during the block, which may read its result. At the block's end it is cancelled and awaited.

    Raises:
        Exception: the task's failure, if the block itself did not fail.
    """
    task = asyncio.create_task(work)
    looked = False
    try:
        yield task
        looked = True
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        failure = None if task.cancelled() else task.exception()  # also marks it as seen
    if looked and failure is not None:
        raise failure


def start_thread(function: Callable[..., T], *arguments: object) -> asyncio.Task[T]:
    """Run a function in a thread. The caller must await the task, or handle its result by `add_done_callback`."""
    return asyncio.create_task(asyncio.to_thread(function, *arguments))


def call_later(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Call a function after some seconds. It is guarded (`Supervisor.guard`) or cannot fail."""
    return asyncio.get_running_loop().call_later(seconds, function)


def call_when_readable(descriptor: int, function: Callable[[], None]) -> None:
    """Call such a function whenever the descriptor is readable."""
    asyncio.get_running_loop().add_reader(descriptor, function)


def forget_readable(descriptor: int) -> None:
    """Undo `call_when_readable`; to be called before the descriptor is closed."""
    asyncio.get_running_loop().remove_reader(descriptor)


def call_at_signal(number: int, function: Callable[[], None]) -> None:
    """Call such a function when the signal arrives."""
    asyncio.get_running_loop().add_signal_handler(number, function)
