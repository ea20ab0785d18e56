# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon returns memory to the system when it is idle."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from tests.skipping import run_skipping

from psiphon_vpn.servers import direct_fetch
from psiphon_vpn.servers.fetch_order import FETCHER
from psiphon_vpn.service import memory
from psiphon_vpn.service.memory import Tidier, collect_cycles
from psiphon_vpn.tasks import Supervisor

SOURCES = Path(__file__).resolve().parents[2] / "src"


class Circle:
    """An object that refers to itself, as a task and its exception do."""

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
        assert not done, "not while something is under way"
        quiet = True
        await asyncio.sleep(0.12)
        assert len(done) == 1
        await asyncio.sleep(0.12)
        assert len(done) == 1, "nothing changed since"
        for _ in range(6):
            tidier.changed()
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.12)
        assert len(done) == 3, "changes that continue do not delay it"
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


@pytest.mark.requirement("R24")
def test_the_daemon_loads_nothing_that_other_processes_need() -> None:
    """What fetches, and all certificates of the system with it, is a process of its own; commands are others."""
    code = (
        "import sys; import psiphon_vpn.service.__main__, psiphon_vpn.service.daemon\n"
        "print(*(name for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path.insert(0, {str(SOURCES)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "psiphon_vpn.service.daemon" in loaded
    packages = {"http", "email", "httpx", "rich", "pygments", "click", "tomlkit", "urllib.request", "stringprep"}
    assert packages & loaded == set()
    assert FETCHER not in loaded
    assert not [name for name in loaded if name.startswith(("psiphon_vpn.cli", "psiphon_vpn.diagnose"))]


def test_the_process_that_fetches_is_the_module_that_is_named() -> None:
    assert direct_fetch.__name__ == FETCHER
