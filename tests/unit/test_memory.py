"""The daemon gives memory back when it is quiet."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from tests.skipping import run_skipping

from psiphon_vpn.service import memory
from psiphon_vpn.service.memory import Tidier, give_back
from psiphon_vpn.tasks import Supervisor


class Circle:
    """Refers to itself, as a task and its exception do."""

    def __init__(self) -> None:
        self.itself = self


def test_what_only_refers_to_itself_is_gone() -> None:
    gc.disable()
    try:
        gone = weakref.ref(Circle())
        assert gone() is not None
        give_back()
        assert gone() is None
    finally:
        gc.enable()


def test_it_is_done_once_for_many_changes_and_again_for_later_ones_and_only_when_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "QUIET_SECONDS", 0.05)
    done: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: done.append(True))
    quiet = False

    async def scenario() -> None:
        nonlocal quiet
        tidier = Tidier(lambda: quiet, Supervisor(lambda part, error: pytest.fail(part)))
        for _ in range(10):
            tidier.changed()
        await asyncio.sleep(0.12)
        assert not done, "not in the middle of something"
        quiet = True
        await asyncio.sleep(0.12)
        assert len(done) == 1
        await asyncio.sleep(0.12)
        assert len(done) == 1, "nothing changed since"
        for _ in range(6):
            tidier.changed()
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.12)
        assert len(done) == 3, "changes that go on do not put it off"
        tidier.changed()
        tidier.cancel()
        await asyncio.sleep(0.12)
        assert len(done) == 3

    run_skipping(scenario())
