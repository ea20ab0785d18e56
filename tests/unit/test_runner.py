"""The runner: whoever waits for it does not wait for ever."""

from __future__ import annotations

import asyncio

import pytest

from psiphon_vpn.service.events import Event, UserStart
from psiphon_vpn.service.runner import Runner


def test_waiting_for_a_runner_that_has_ended_is_an_error_and_not_a_hang() -> None:
    class Broken(Runner):
        async def _handle(self, event: Event) -> None:
            raise ValueError("a defect")

    async def scenario() -> None:
        runner = Broken(surroundings=None, enforcer=None, model=None, settings=None, on_change=print)  # type: ignore[arg-type]
        runner.post(UserStart())
        runner.post(UserStart())
        task = asyncio.create_task(runner.run())
        async with asyncio.timeout(5):
            with pytest.raises(RuntimeError, match="no events"):
                await runner.settle()
        with pytest.raises(ValueError, match="a defect"):
            await task

    asyncio.run(scenario())
