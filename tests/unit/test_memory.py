"""The daemon gives memory back when it is quiet."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

import pytest
from tests.skipping import run_skipping

from psiphon_vpn.service import memory
from psiphon_vpn.service.memory import Tidier, collect_cycles
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
        collect_cycles()
        assert gone() is None
    finally:
        gc.enable()


def test_it_is_done_once_for_many_changes_and_again_for_later_ones_and_only_when_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "QUIET_SECONDS", 0.05)
    done: list[bool] = []
    monkeypatch.setattr(memory, "collect_cycles", lambda: done.append(True))
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


@pytest.mark.requirement("R24")
def test_the_daemon_loads_nothing_of_the_laboratorys_and_no_package_that_is_made_up() -> None:
    code = (
        "import sys; import psiphon_vpn.service.daemon\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('pyroute2', 'dpkt', 'scapy', 'psiphon_lab')])\n"
        "ours = (sys.modules[name] for name in sys.modules if name.startswith('psiphon_vpn'))\n"
        "print([module.__name__ for module in ours if module.__spec__ is None or not module.__spec__.origin])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
