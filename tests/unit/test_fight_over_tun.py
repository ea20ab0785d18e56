# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A fight over the TUN is one fight as long as it lasts, and the TUN is back soon after its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from tests.fake_lists import NoLists
from tests.fake_lock import OWN, FakeLock
from tests.policies import IDENTITY
from tests.skipping import SkippingLoop

from psiphon_vpn.linux.lock import Area, Restored, Trouble
from psiphon_vpn.linux.monitor import NetworkChange
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.service.events import Intent
from psiphon_vpn.service.fight import AT_ONCE
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.reasons import Reason
from psiphon_vpn.service.runner import Runner, Surroundings

ATTACK_SECONDS = 120


class Attacked(FakeLock):
    """Another program sets the TUN down, or deletes it, soon after it is up, each time.

    Args:
        gone: whether it deletes the TUN.
        busy: how many times during the fight nothing can be restored, because the lock is busy.
    """

    def __init__(self, *, gone: bool, busy: int) -> None:
        super().__init__()
        self.healer: Healer | None = None
        self.up, self.attacked, self.taken = False, True, 0
        self._gone, self._busy = gone, busy

    def set_up(self) -> bool:
        """Set the TUN up; returns whether it was down."""
        if self.up:
            return False
        self.up, self.tun = True, Tun(7)
        asyncio.get_running_loop().call_later(0.05, self._take)
        return True

    def _take(self) -> None:
        if self.attacked and self.up and self.healer is not None:
            self.up = False
            self.taken += 1
            self.healer.on_network(NetworkChange("link", 7, lost=True, down=True, gone=self._gone, name=names.TUN_NAME))

    async def load(
        self, policy_for: Callable[[Tun | None], Policy], *, odd_wires: tuple[str, ...] = (), replace_tun: bool = False
    ) -> None:
        """It is up."""
        self.set_up()
        await super().load(policy_for)

    def restore_now(self, area: Literal[Area.RULES, Area.NETWORK]) -> Restored:
        """It is up, if nothing else is being done."""
        if self.taken > AT_ONCE and self._busy and not self.up:
            self._busy -= 1
            return Restored()
        return Restored(tun=self.set_up() and self._gone)

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        """Whether it is up."""
        wrong = area is Area.NETWORK and not self.up
        return Restored(trouble=Trouble("the TUN is down", self._gone) if wrong else None)


def is_fought(runner: Runner) -> bool:
    """Whether the service waits for the other program to stop."""
    return runner.model.reason is Reason.FIGHT


@pytest.mark.requirement("R3", "B3")
@pytest.mark.parametrize("busy", [0, 3])
@pytest.mark.parametrize("gone", [False, True], ids=["set down", "deleted"])
def test_whoever_takes_the_tun_again_and_again_is_fought_once_and_the_next_try_comes_soon_after(
    gone: bool, busy: int
) -> None:
    """Once, nobody set the TUN up in a pause: the fight seemed over, and each new one doubled the wait."""
    lock = Attacked(gone=gone, busy=busy)

    async def scenario() -> None:
        around = Surroundings(identity=IDENTITY, core=None, state_dir=Path("/nowhere"), lists=NoLists())  # type: ignore[arg-type]
        model = Model(intent=Intent.STOPPED)
        runner = Runner(surroundings=around, lock=lock, model=model, on_change=lambda: None)

        async def look_at_links() -> None:
            """Nothing new."""

        lock.healer = healer = Healer(runner=runner, lock=lock, own=OWN, look_at_links=look_at_links)
        runner.tasks.start("events", runner.run())
        for watch in (healer.watch_network, healer.watch_routes, healer.watch_rules):
            runner.tasks.start(watch.__name__, watch())
        try:
            lock.set_up()
            await asyncio.sleep(ATTACK_SECONDS)
            assert is_fought(runner)
            assert runner.model.fights == 1, "one fight, however long"
            lock.attacked = False
            async with asyncio.timeout(20):
                while is_fought(runner):
                    await asyncio.sleep(0.1)
            assert lock.up
        finally:
            await runner.tasks.close()

    with contextlib.closing(SkippingLoop()) as loop:
        loop.run_until_complete(scenario())
    assert lock.taken > ATTACK_SECONDS / 4, "it was taken all the time"
