# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of the machine in which attacks are tried."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.leaktest.held_state import FrozenState, HeldState, Loop, LoopingState
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.testbed import Testbed
from psiphon_lab.namespace import LabError
from psiphon_lab.pace import PACE
from psiphon_lab.service_adapter.daemon import CORE_FLAG
from psiphon_lab.service_adapter.names import OWN_NAMES, TUN_NAME

OPENING_SECONDS = 0.8 * PACE
"""How long a turn of a loop waits for the tunnel."""


class Control(HeldState):
    """No lock: the positive control."""

    uplinks = ((LAN_A, "100"), (LAN_B, "50"))

    summary = "no lock; both providers are plugged in"

    def enter(self) -> None:
        self.world.plug_b()

    def leave(self) -> None:
        self.world.unplug_b()

    def explain_loss(self) -> str:
        tables = self.world.client.run(["nft", "list", "tables"]).stdout
        return "a lock stands" if any(name in tables for name in OWN_NAMES) else ""


class Boot(FrozenState):
    """The boot lock, before a daemon runs."""

    summary = "the rules that plain nft loads at boot, and the holder; no daemon"

    def enter(self) -> None:
        # Never open in between: what began before the lock would send, and the frames of the cell are already counted.
        self.machine.boot_lock(alone=True)
        self.world.client.run(["ip", "link", "del", TUN_NAME], check=False)
        self.machine.release_guard()
        self.machine.hold_guard()
        self._freeze()


class Connecting(HeldState):
    """Connecting: the server accepts and does not answer."""

    summary = "the daemon runs and its core connects; the server does not answer"
    heals = True

    def enter(self) -> None:
        self.testbed.signal_server(signal.SIGSTOP)
        self._ensure_lock()
        if self.machine.read_status() is None:
            self.machine.start_daemon()
        self.machine.wait_state("CONNECTING")

    def leave(self) -> None:
        self.testbed.signal_server(signal.SIGCONT)

    def explain_loss(self) -> str:
        return self._status_is("CONNECTING")


class Open(HeldState):
    """Open and leased."""

    summary = "verified, leased, open"
    heals = True

    def enter(self) -> None:
        self._open()

    def explain_loss(self) -> str:
        return self._status_is("OPEN") or ("" if self.machine.lease_remains() else "there is no lease")


class CoreKilled(HeldState):
    """The core is killed, and every new one ends at once."""

    summary = "the core is killed while open, and every new core ends at once"
    heals = True

    def enter(self) -> None:
        core = self._open()
        self.testbed.set_faults({"kind": "exit", "code": 1})
        with contextlib.suppress(ProcessLookupError):
            os.kill(core, signal.SIGKILL)
        self.machine.wait_state("LOCKED")

    def leave(self) -> None:
        self.testbed.set_faults()

    def explain_loss(self) -> str:
        return self._status_is("LOCKED", "CONNECTING")


class CoreStopped(HeldState):
    """The core is stopped by SIGSTOP while open, and so is every later core."""

    summary = "SIGSTOP to the core while open, and to every later core"
    heals = True

    def __init__(self, testbed: Testbed) -> None:
        super().__init__(testbed)
        self._loop: Loop | None = None

    def enter(self) -> None:
        self._open()
        self._loop = Loop(self._stop_cores, pause=0.02)

    def leave(self) -> None:
        if self._loop is not None:
            self._loop.end()
            self._loop = None
        for pid in self._cores():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def explain_loss(self) -> str:
        status = self.machine.read_status()
        if status is None:
            return "the service does not answer"
        return "" if status["core_pid"] is None or _is_stopped(status["core_pid"]) else "the core runs"

    def _cores(self) -> list[int]:
        found = []
        for task in Path(f"/proc/{self.machine.daemon_pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return [pid for pid in found if CORE_FLAG in _read_command(pid)]

    def _stop_cores(self) -> None:
        for pid in self._cores():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)


def _read_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True  # it has ended


class DaemonKilled(FrozenState):
    """The daemon is killed while open. The attacks begin before the lease has expired."""

    summary = "SIGKILL to the daemon while open; the lease expires by itself"

    def enter(self) -> None:
        self._open()
        self.machine.kill_daemon()
        self._freeze()


class DaemonStopped(FrozenState):
    """The daemon is stopped by SIGSTOP while open; the core keeps running."""

    summary = "SIGSTOP to the daemon while open; the lease expires by itself, and the core keeps running"

    def enter(self) -> None:
        self._open()
        self.machine.signal_daemon(signal.SIGSTOP)
        self._freeze()

    def leave(self) -> None:
        self.machine.signal_daemon(signal.SIGCONT)
        self.machine.kill_daemon()


class ServiceStopped(FrozenState):
    """The service is stopped as by `systemctl stop`."""

    summary = "SIGTERM to the daemon while open, as the service manager sends it"

    def enter(self) -> None:
        self._open()
        self.machine.stop_daemon()
        self._freeze()


class Restarting(LoopingState):
    """The daemon is restarted again and again, as by `systemctl restart`."""

    summary = "the service is restarted again and again"

    def turn(self) -> None:
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=OPENING_SECONDS)


class Upgrading(LoopingState):
    """What a package upgrade does: boot rules are loaded over the current ones, guards and daemon are replaced."""

    summary = "a package is upgraded again and again: boot rules and guards are loaded again, the daemon is replaced"

    def turn(self) -> None:
        self.machine.boot_lock()
        self.machine.reload_guard()
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=OPENING_SECONDS)


class Flushed(LoopingState):
    """Root flushes the whole ruleset again and again; the daemon restores it."""

    summary = "`nft flush ruleset` again and again, while the service restores the rules"

    def turn(self) -> None:
        self.world.client.run(["nft", "flush", "ruleset"])


class Transition(LoopingState):
    """The uplink moves to the other provider and back, sometimes with both connected for a moment."""

    summary = "the uplink moves to another provider and back, again and again"
    uplinks = ()

    def turn(self) -> None:
        for step in (
            self.world.move_to_provider_b,
            self.world.move_to_provider_a,
            self.world.plug_b,
            self.world.unplug_b,
        ):
            step()
            time.sleep(0.1)

    def leave(self) -> None:
        super().leave()
        for lan in (LAN_B, LAN_A):
            self.world.disconnect_uplink(lan)
        self.world.connect_uplink(LAN_A)


STATES: dict[Mode, type[HeldState]] = {
    Mode.CONTROL: Control,
    Mode.BOOT: Boot,
    Mode.CONNECTING: Connecting,
    Mode.OPEN: Open,
    Mode.CORE_KILLED: CoreKilled,
    Mode.CORE_STOPPED: CoreStopped,
    Mode.DAEMON_KILLED: DaemonKilled,
    Mode.DAEMON_STOPPED: DaemonStopped,
    Mode.SERVICE_STOPPED: ServiceStopped,
    Mode.RESTARTING: Restarting,
    Mode.UPGRADING: Upgrading,
    Mode.FLUSHED: Flushed,
    Mode.TRANSITION: Transition,
}
