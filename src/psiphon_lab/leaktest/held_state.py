# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds the machine in a state while attacks run.

A state is entered, checked before and after each attack, and entered again if an attack took the machine out of it
(without a daemon, for example, a deleted device stays deleted).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from psiphon_lab.addresses import LAN_A, Lan
from psiphon_lab.leaktest.testbed import Testbed
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.pace import PACE
from psiphon_lab.service_adapter import names
from psiphon_lab.waiting import wait_until

BATCH = "for v in -4 -6; do printf '{commands}' | ip $v -force -batch - 2>&1; done"
"""One process of ip(8) for each family, because starting one costs an emulated processor more than what it does."""
LOOK = f"nft list tables; [ -e /sys/class/net/{names.TUN_NAME} ] && echo {names.TUN_NAME}; " + BATCH.format(
    commands=f"rule\\nroute show table {names.ROUTE_TABLE}\\n"
)
NETWORK = "read -r state </sys/class/net/{wire}/operstate; echo state $state; " + BATCH.format(
    commands="route show default dev {wire}\\naddr show dev {wire}\\n"
)
OPERATIONAL = ("state up\n", "state unknown\n")
TURN_PAUSE = 0.05
Point = tuple[int, float]
"""A point in a loop: the number of turns before, and the seconds since this one began."""


class HeldState:
    """A state in which the machine is held. `enter` and `leave` may be called again."""

    summary = ""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.machine = testbed.machine
        self.world = testbed.world

    def enter(self) -> None:
        """Enter it from any other state."""
        raise NotImplementedError

    def leave(self) -> None:
        """Stop holding the state."""

    def explain_loss(self) -> str:
        """Why the machine is not in the state now, or ""."""
        raise NotImplementedError

    def restore(self, seconds: float = 6.0 * PACE) -> None:
        """Wait until the machine is in the state again, or enter it again. Raises LabError."""
        deadline = time.monotonic() + (seconds if self.heals else 0.0)
        while self.explain_loss():
            if time.monotonic() >= deadline:
                self.leave()
                self.enter()
                return
            time.sleep(0.02)

    def locate(self) -> Point:
        """Where a state that is a loop is in it."""
        return 0, 0.0

    def wait_past(self, point: Point) -> None:
        """Wait until a state that is a loop has come to the same point again."""

    heals = False
    """Whether the service itself restores the state."""

    def repair_network(self) -> None:
        """Restore addresses and default routes after an attack, as a network manager would."""
        for lan, metric in self.uplinks:
            # The kernel notices a carrier up to a second late, and drops packets until then.
            shown = ""
            for host, name in ((self.world.hosts[lan.name], lan.port), (self.world.client, lan.interface)):
                shown = host.run(["sh", "-c", NETWORK.format(wire=name)], check=False).stdout
                if not shown.startswith(OPERATIONAL):
                    host.run(["ip", "link", "set", name, "up"], check=False)
                    wait_until(partial(_is_operational, host, name), f"{name} operational")
            wanted = (f"via {lan.router4} ", f"via {lan.router6} ", f" {lan.client6}/", f" {lan.client4}/")
            if all(text in shown for text in wanted):
                continue
            for argv in (
                ["link", "set", lan.interface, "up"],
                ["addr", "replace", f"{lan.client4}/{lan.prefix4}", "dev", lan.interface],
                ["-6", "addr", "replace", f"{lan.client6}/{lan.prefix6}", "dev", lan.interface, "nodad"],
                ["route", "replace", "default", "via", lan.router4, "dev", lan.interface, "metric", metric],
                ["-6", "route", "replace", "default", "via", lan.router6, "dev", lan.interface, "metric", metric],
            ):
                self.world.client.run(["ip", *argv], check=False)

    uplinks: tuple[tuple[Lan, str], ...] = ((LAN_A, "100"),)

    # -- for the states ---------------------------------------------------------------------------------------------

    def _open(self) -> int:
        """Have the machine open with a core without faults; returns the core's process id."""
        self.testbed.set_faults()
        if self.machine.read_status() is None:
            self.machine.kill_daemon()
            self._ensure_lock()
            self.machine.start_daemon()
        status = self.machine.read_status()
        if status is not None and status["state"] not in {"OPEN", "VERIFYING"}:
            self.machine.command("restart")
        core = self.machine.wait_state("OPEN")["core_pid"]
        self.machine.wait_for(self.machine.lease_remains, "the lease")
        return int(core)

    def _ensure_lock(self) -> None:
        """Load the boot lock where it is missing, and leave the rest alone."""
        tables = self.world.client.run(["nft", "list", "tables"]).stdout
        if names.BASE_TABLE not in tables:
            self.machine.boot_lock()
        if names.GUARD_TABLE not in tables:
            self.machine.hold_guard()

    def _status_is(self, *states: str) -> str:
        status = self.machine.read_status()
        if status is None:
            return "the service does not answer"
        return "" if status["state"] in states else f"the service is {status['state']}"

    def _standing(self) -> str:
        # The kernel reports the TUN's lost carrier up to a second after the core's end (net/core/link_watch.c). This
        # flag of the routes changes nothing about them.
        return self.world.client.run(["sh", "-c", LOOK], check=False).stdout.replace(" linkdown", "")


def _is_operational(host: Host, name: str) -> bool:
    # A TAP interface, the other end of a virtual machine's cable, says only that it is not down.
    state = host.run(["cat", f"/sys/class/net/{name}/operstate"], check=False).stdout
    return f"state {state}".startswith(OPERATIONAL)


class FrozenState(HeldState):
    """A state in which no daemon repairs anything: rules, routes and devices must stay as they are."""

    def __init__(self, testbed: Testbed) -> None:
        super().__init__(testbed)
        self._before = ""

    def _freeze(self) -> None:
        self._before = self._standing()

    def explain_loss(self) -> str:
        """Whether anything has changed."""
        return "" if self._standing() == self._before else "rules, routes or devices have changed"


class Loop:
    """Something that is repeated while attacks run. `trouble` is the last error in it."""

    def __init__(self, turn: Callable[[], None], *, pause: float = TURN_PAUSE) -> None:
        self.turns = 0
        self.trouble = ""
        self._began = time.monotonic()
        self._turn = turn
        self._pause = pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._began = time.monotonic()
            try:
                self._turn()
                self.turns += 1
            except (LabError, OSError) as error:
                if not self._ending.is_set():
                    self.trouble = str(error).splitlines()[0][:300]
            self._ending.wait(self._pause)

    def locate(self) -> Point:
        """Where it is now."""
        return self.turns, time.monotonic() - self._began

    def wait_past(self, point: Point) -> None:
        """Wait until it is at this point of the next turn, or has trouble. Raises LabError."""
        turns, elapsed = point
        wait_until(lambda: self.locate() >= (turns + 1, elapsed) or bool(self.trouble), "a whole turn of the loop")

    def end(self) -> None:
        """Stop after the current turn."""
        self._ending.set()
        self._thread.join(timeout=30)


class LoopingState(HeldState):
    """A state that is a loop, held as long as the loop works."""

    def __init__(self, testbed: Testbed) -> None:
        super().__init__(testbed)
        self._loop: Loop | None = None

    def enter(self) -> None:
        """Have the machine open, and begin the loop."""
        self._open()
        self._loop = Loop(self.turn)
        self._wait_turn()

    def _wait_turn(self) -> None:
        loop = self._loop
        assert loop is not None
        before = loop.turns
        wait_until(lambda: loop.turns > before or bool(loop.trouble), "a turn of the loop")

    def locate(self) -> Point:
        """See `HeldState`."""
        return (0, 0.0) if self._loop is None else self._loop.locate()

    def wait_past(self, point: Point) -> None:
        """See `HeldState`."""
        if self._loop is not None:
            self._loop.wait_past(point)

    def leave(self) -> None:
        """End the loop after the current turn."""
        if self._loop is not None:
            self._loop.end()
            self._loop = None

    def explain_loss(self) -> str:
        """What went wrong in the last turn."""
        if self._loop is None:
            return "the loop does not run"
        return self._loop.trouble

    def turn(self) -> None:
        """Carry out one turn of the loop."""
        raise NotImplementedError
