"""What it takes to hold the machine in a state while attacks run.

A state is entered, looked at before and after every attack, and reached anew when an attack took the machine out of it
(a deleted device stays deleted when nobody is there to make it again).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from psiphon_lab.addresses import LAN_A, Lan
from psiphon_lab.leaktest.stage import Stage
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until
from psiphon_vpn.policy import names

LOOK = (
    f"nft list tables; ip -o link show {names.TUN_NAME} 2>&1 | cut -d: -f2; "
    f"for v in -4 -6; do ip $v rule; ip $v route show table {names.ROUTE_TABLE}; done"
)
NETWORK = "for v in -4 -6; do ip $v route show default dev {wire}; ip $v addr show dev {wire}; done"
TURN_PAUSE = 0.05


class Held:
    """A state that the machine is kept in. `enter` and `leave` may be called again."""

    plain = ""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.machine = stage.machine
        self.world = stage.world

    def enter(self) -> None:
        """Reach it from whatever is."""
        raise NotImplementedError

    def leave(self) -> None:
        """Stop holding it."""

    def look(self) -> str:
        """Why it is not held now, "" if it is."""
        raise NotImplementedError

    def mend(self, seconds: float = 6.0) -> None:
        """Wait until it is held again, or reach it anew. Raises LabError."""
        deadline = time.monotonic() + (seconds if self.heals else 0.0)
        while self.look():
            if time.monotonic() >= deadline:
                self.leave()
                self.enter()
                return
            time.sleep(0.02)

    heals = False
    """Whether the service itself brings the state back."""

    def repair_network(self) -> None:
        """What a network manager does: addresses and default routes as they were, whatever an attack left of them."""
        for lan, metric in self.uplinks:
            # The kernel notices a carrier up to a second late, and drops what is sent before.
            for host, name in ((self.world.hosts[lan.name], lan.port), (self.world.client, lan.interface)):
                if not _is_operational(host, name):
                    host.run(["ip", "link", "set", name, "up"], check=False)
                    wait_until(partial(_is_operational, host, name), f"{name} operational")
            shown = self.world.client.run(["sh", "-c", NETWORK.format(wire=lan.interface)], check=False).stdout
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
        """Open, with a core of good will; its process id."""
        self.stage.set_faults()
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
        """What boot does, where it is gone. What still stands is left alone."""
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
        return self.world.client.run(["sh", "-c", LOOK], check=False).stdout


def _is_operational(host: Host, name: str) -> bool:
    return host.run(["cat", f"/sys/class/net/{name}/operstate"], check=False).stdout.strip() == "up"


class Frozen(Held):
    """A state in which nobody mends: it is held as long as what stands is what stood."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._before = ""

    def _freeze(self) -> None:
        self._before = self._standing()

    def look(self) -> str:
        """Whether anything is not as it stood."""
        return "" if self._standing() == self._before else "rules, routes or devices are not as they stood"


class Loop:
    """Something done again and again beside the attacks. What goes wrong in it is told by `trouble`."""

    def __init__(self, turn: Callable[[], None], *, pause: float = TURN_PAUSE) -> None:
        self.turns = 0
        self.trouble = ""
        self._turn = turn
        self._pause = pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._turn()
                self.turns += 1
            except (LabError, OSError) as error:
                if not self._ending.is_set():
                    self.trouble = str(error).splitlines()[0][:300]
            self._ending.wait(self._pause)

    def end(self) -> None:
        """Stop after the present turn."""
        self._ending.set()
        self._thread.join(timeout=30)


class Looping(Held):
    """A state that is a loop: held as long as it turns."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._loop: Loop | None = None

    def enter(self) -> None:
        """Open, and begin to turn."""
        self._open()
        self._loop = Loop(self.turn)
        self._wait_turn()

    def _wait_turn(self) -> None:
        loop = self._loop
        assert loop is not None
        before = loop.turns
        wait_until(lambda: loop.turns > before or bool(loop.trouble), "a turn of the loop")

    def leave(self) -> None:
        """End after the present turn."""
        if self._loop is not None:
            self._loop.end()
            self._loop = None

    def look(self) -> str:
        """What went wrong in the last turn."""
        if self._loop is None:
            return "the loop does not turn"
        return self._loop.trouble

    def turn(self) -> None:
        """One turn."""
        raise NotImplementedError
