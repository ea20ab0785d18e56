"""The one place where tasks and callbacks of the event loop are started: none of them can end or fail unseen.

A task of asyncio that fails says so only to whoever awaits it, and a callback that fails only to the loop's exception
handler, which goes on. So everything that runs beside something else is started here, and whatever ends it but we
ourselves is told: an exception, a return where it should run for ever, a cancellation that nobody asked for. A test
reads the sources: nothing that the daemon is made of starts a task or a callback by another way.
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
"""How long a part that should run for ever is left alone after it failed, doubled each time."""
CALM_SECONDS: Final = 60.0
"""A part that ran for so long begins with the first pause again."""
_HERE: Final = Path(__file__).parent


class PartReturned(Exception):
    """A part ended that should run for ever."""


def describe_kind(error: BaseException) -> str:
    """What failed, without the error's own text: it may hold an address, or a name of the user's."""
    kind = type(error).__name__
    return f"{kind} ({error.strerror})" if isinstance(error, OSError) and error.strerror else kind


def describe(error: BaseException) -> str:
    """The same, and where in this program."""
    kind = describe_kind(error)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent.parent == _HERE
    ]
    return f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else kind


class Supervisor:
    """Starts parts, and tells when one fails.

    Args:
        on_failure: called in the very moment with the part's name and what ended it. Must not raise.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._ending: set[asyncio.Task[None]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._down: set[str] = set()
        self._has_broken = asyncio.Event()
        self.broken: BaseException | None = None
        """What came of telling of a failure."""

    @property
    def down(self) -> frozenset[str]:
        """Parts that should run for ever, failed, and do not run yet again."""
        return frozenset(self._down)

    def start(self, part: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what comes to an end by itself."""
        task = self._start(self._watch(part, work))
        # Where it is cancelled before it began, nothing else ends the inner one.
        task.add_done_callback(lambda _: work.close())
        return task

    def keep(self, part: str, make: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Start what runs for ever, and start it again, after a pause, however it ended."""
        return self._start(self._keep(part, make))

    def cancel(self, task: asyncio.Task[None] | None) -> None:
        """End a task: that is no failure. The one that calls is not ended, it is about to return."""
        if task is not None and task is not asyncio.current_task() and not task.done():
            self._ending.add(task)
            task.cancel()

    async def close(self) -> None:
        """End all that was started, and wait for it."""
        for task in tuple(self._running):
            self.cancel(task)
        others = self._running - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    def guard(self, part: str, function: Callable[..., object]) -> Callable[..., None]:
        """A callback for the event loop: the same function, and its failure is told."""

        def guarded(*arguments: object) -> None:
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001  it is told
                self._tell(part, error)

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

    def _tell(self, part: str, error: BaseException) -> None:
        try:
            self._on_failure(part, error)
        except Exception as worse:  # noqa: BLE001  it ends the daemon
            self.broken = self.broken or worse
            self._has_broken.set()

    async def wait_broken(self) -> None:
        """Wait until a failure could not even be told: nothing here can be relied on any more."""
        await self._has_broken.wait()

    async def _watch(self, part: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if not self._was_asked():
                self._tell(part, error)
            raise
        except Exception as error:  # noqa: BLE001  it is told
            self._tell(part, error)

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
                self._tell(part, error)
                if was_cancelled():
                    raise  # by the end of the event loop, say: it would wait for us
            except Exception as error:  # noqa: BLE001  it is told
                self._down.add(part)
                self._tell(part, error)
            ran = loop.time() - began - pause
            pause = (
                FIRST_PAUSE_SECONDS
                if ran >= CALM_SECONDS
                else min(LAST_PAUSE_SECONDS, pause * 2 or FIRST_PAUSE_SECONDS)
            )


def was_cancelled() -> bool:
    """Whether the running task itself was cancelled, and not only something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.asynccontextmanager
async def run_alongside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run something beside the block, which looks at the outcome; at the block's end it is ended, and waited for.

    Raises:
        Exception: what ended it, where the block did not look and did not fail itself.
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
    """Run a function in a thread. Whoever starts it awaits it, or has its outcome seen to by `add_done_callback`."""
    return asyncio.create_task(asyncio.to_thread(function, *arguments))


def call_later(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Call a guarded function (`Supervisor.guard`), or one that cannot fail, after some seconds."""
    return asyncio.get_running_loop().call_later(seconds, function)


def call_when_readable(descriptor: int, function: Callable[[], None]) -> None:
    """Call such a function whenever a descriptor is readable."""
    asyncio.get_running_loop().add_reader(descriptor, function)


def forget_readable(descriptor: int) -> None:
    """Call for it no more; before the descriptor is closed."""
    asyncio.get_running_loop().remove_reader(descriptor)


def call_at_signal(number: int, function: Callable[[], None]) -> None:
    """Call such a function when a signal comes."""
    asyncio.get_running_loop().add_signal_handler(number, function)
