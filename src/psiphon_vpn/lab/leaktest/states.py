"""The states of the machine, each reached and held while attacks run.

A state is entered, looked at before and after every attack, and reached anew when an attack took the machine out of it
(a deleted device stays deleted when nobody is there to make it again).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from psiphon_vpn.lab.addresses import LAN_A, LAN_B, Lan
from psiphon_vpn.lab.leaktest.attack import Mode
from psiphon_vpn.lab.leaktest.stage import Stage
from psiphon_vpn.lab.namespace import Host, LabError
from psiphon_vpn.lab.waiting import wait_until

LOOK = (
    "nft list tables; ip -o link show PsiphonTUN 2>&1 | cut -d: -f2; "
    "for v in -4 -6; do ip $v rule; ip $v route show table 20595; done"
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
                    wait_until(partial(_is_operational, host, name), f"{name} operational", timeout=4)
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
        if "psiphon_filter" not in tables:
            self.machine.boot_lock()
        if "psiphon_guard" not in tables:
            self.machine.hold_guard()

    def _status_is(self, *states: str) -> str:
        status = self.machine.read_status()
        if status is None:
            return "the service does not answer"
        return "" if status["state"] in states else f"the service is {status['state']}"

    def _standing(self) -> str:
        return self.world.client.run(["sh", "-c", LOOK], check=False).stdout


class _Frozen(Held):
    """A state in which nobody mends: it is held as long as what stands is what stood."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._before = ""

    def _freeze(self) -> None:
        self._before = self._standing()

    def look(self) -> str:
        return "" if self._standing() == self._before else "rules, routes or devices are not as they stood"


class Control(Held):
    """No lock: the positive control."""

    uplinks = ((LAN_A, "100"), (LAN_B, "50"))

    plain = "no lock; both providers are plugged in"

    def enter(self) -> None:
        self.world.plug_b()

    def look(self) -> str:
        return "a lock stands" if "psiphon" in self.world.client.run(["nft", "list", "tables"]).stdout else ""


class Boot(_Frozen):
    """The boot lock, before there is a daemon."""

    plain = "the rules that a plain nft loads at boot, and the holder of the guards; no daemon"

    def enter(self) -> None:
        client = self.world.client
        client.run(["ip", "link", "del", "PsiphonTUN"], check=False)
        client.run(["nft", "flush", "ruleset"])
        self.machine.release_guard()
        self.stage.lock()
        self._freeze()


class Connecting(Held):
    """Connecting: the server accepts and says nothing."""

    plain = "the daemon runs, its core calls the server, the server does not answer"
    heals = True

    def enter(self) -> None:
        os.kill(self.stage.server.pid, signal.SIGSTOP)
        self._ensure_lock()
        if self.machine.read_status() is None:
            self.machine.start_daemon()
        self.machine.wait_state("CONNECTING")

    def leave(self) -> None:
        os.kill(self.stage.server.pid, signal.SIGCONT)

    def look(self) -> str:
        return self._status_is("CONNECTING")


class Open(Held):
    """Open and leased."""

    plain = "verified, leased, open"
    heals = True

    def enter(self) -> None:
        self._open()

    def look(self) -> str:
        return self._status_is("OPEN") or ("" if self.machine.lease_remains() else "there is no lease")


class CoreKilled(Held):
    """The core is killed, and every new one ends at once."""

    plain = "the core is killed while open, and every core that is started ends at once"
    heals = True

    def enter(self) -> None:
        core = self._open()
        self.stage.set_faults({"kind": "exit", "code": 1})
        with contextlib.suppress(ProcessLookupError):
            os.kill(core, signal.SIGKILL)
        self.machine.wait_state("LOCKED")

    def leave(self) -> None:
        self.stage.set_faults()

    def look(self) -> str:
        return self._status_is("LOCKED", "CONNECTING")


class CoreStopped(Held):
    """The core is stopped by SIGSTOP while open, and so is every core after it."""

    plain = "SIGSTOP to the core while open, and to every core that follows"
    heals = True

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
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

    def look(self) -> str:
        status = self.machine.read_status()
        if status is None:
            return "the service does not answer"
        return "" if status["core_pid"] is None or _is_stopped(status["core_pid"]) else "the core runs"

    def _cores(self) -> list[int]:
        found = []
        for task in Path(f"/proc/{self.machine.daemon_pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return [pid for pid in found if "standin" in _read_command(pid)]

    def _stop_cores(self) -> None:
        for pid in self._cores():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)


def _is_operational(host: Host, name: str) -> bool:
    return host.run(["cat", f"/sys/class/net/{name}/operstate"], check=False).stdout.strip() == "up"


def _read_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True  # gone


class DaemonKilled(_Frozen):
    """The daemon is killed while open. At first the lease still runs; it is not waited for."""

    plain = "SIGKILL to the daemon while open; the lease runs out by itself"

    def enter(self) -> None:
        self._open()
        self.machine.kill_daemon()
        self._freeze()


class DaemonStopped(_Frozen):
    """The daemon is stopped by SIGSTOP while open; the core works on."""

    plain = "SIGSTOP to the daemon while open; the lease runs out by itself, the core works on"

    def enter(self) -> None:
        self._open()
        self.machine.signal_daemon(signal.SIGSTOP)
        self._freeze()

    def leave(self) -> None:
        self.machine.signal_daemon(signal.SIGCONT)
        self.machine.kill_daemon()


class ServiceStopped(_Frozen):
    """The service is stopped as `systemctl stop` does it."""

    plain = "SIGTERM to the daemon while open, as the service manager sends it"

    def enter(self) -> None:
        self._open()
        self.machine.stop_daemon()
        self._freeze()


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


class _Looping(Held):
    """A state that is a loop: held as long as it turns."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._loop: Loop | None = None
        self._turns = 0

    def enter(self) -> None:
        self._open()
        self._loop = Loop(self.turn)
        self._wait_turn()

    def _wait_turn(self) -> None:
        loop = self._loop
        assert loop is not None
        before = loop.turns
        wait_until(lambda: loop.turns > before or bool(loop.trouble), "a turn of the loop", timeout=20)

    def leave(self) -> None:
        if self._loop is not None:
            self._loop.end()
            self._loop = None

    def look(self) -> str:
        if self._loop is None:
            return "the loop does not turn"
        return self._loop.trouble

    def turn(self) -> None:
        """One turn."""
        raise NotImplementedError


class Restarting(_Looping):
    """The daemon is restarted again and again, as `systemctl restart` does it."""

    plain = "the service is restarted again and again"

    def turn(self) -> None:
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=0.8)


class Upgrading(_Looping):
    """What a package upgrade does: boot rules loaded over the running ones, the holder and the daemon replaced."""

    plain = "a package is upgraded again and again: boot rules and guards loaded anew, the daemon replaced"

    def turn(self) -> None:
        self.machine.boot_lock()
        self.machine.reload_guard()
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=0.8)


class Flushed(_Looping):
    """Root flushes the whole ruleset again and again; the daemon mends."""

    plain = "`nft flush ruleset` again and again, while the service mends"

    def turn(self) -> None:
        self.world.client.run(["nft", "flush", "ruleset"])


class Transition(_Looping):
    """The uplink moves to the other provider and back, with and without a moment in which both are there."""

    plain = "the uplink moves to another provider and back, again and again"
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


STATES: dict[Mode, type[Held]] = {
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
