"""The states of the machine in which attacks are tried."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.leaktest.held import Frozen, Held, Loop, Looping
from psiphon_lab.leaktest.stage import Stage
from psiphon_lab.leaktest.terms import Mode
from psiphon_lab.namespace import LabError
from psiphon_vpn.linux.traffic import remove_filters


class Control(Held):
    """No lock: the positive control."""

    uplinks = ((LAN_A, "100"), (LAN_B, "50"))

    plain = "no lock; both providers are plugged in"

    def enter(self) -> None:
        self.world.plug_b()

    def look(self) -> str:
        return "a lock stands" if "psiphon" in self.world.client.run(["nft", "list", "tables"]).stdout else ""


class Boot(Frozen):
    """The boot lock, before there is a daemon."""

    plain = "the rules that a plain nft loads at boot, and the holder of the guards; no daemon"

    def enter(self) -> None:
        client = self.world.client
        client.run(["ip", "link", "del", "PsiphonTUN"], check=False)
        client.run(["nft", "flush", "ruleset"])
        client.call(remove_filters)  # as after a boot: the kernel that had them is gone
        self.machine.release_guard()
        self.stage.lock()
        self._freeze()


class Connecting(Held):
    """Connecting: the server accepts and says nothing."""

    plain = "the daemon runs, its core calls the server, the server does not answer"
    heals = True

    def enter(self) -> None:
        os.killpg(self.stage.server.pid, signal.SIGSTOP)
        self._ensure_lock()
        if self.machine.read_status() is None:
            self.machine.start_daemon()
        self.machine.wait_state("CONNECTING")

    def leave(self) -> None:
        os.killpg(self.stage.server.pid, signal.SIGCONT)

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
        return [pid for pid in found if "-tunDevice" in _read_command(pid)]

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
        return True  # gone


class DaemonKilled(Frozen):
    """The daemon is killed while open. At first the lease still runs; it is not waited for."""

    plain = "SIGKILL to the daemon while open; the lease runs out by itself"

    def enter(self) -> None:
        self._open()
        self.machine.kill_daemon()
        self._freeze()


class DaemonStopped(Frozen):
    """The daemon is stopped by SIGSTOP while open; the core works on."""

    plain = "SIGSTOP to the daemon while open; the lease runs out by itself, the core works on"

    def enter(self) -> None:
        self._open()
        self.machine.signal_daemon(signal.SIGSTOP)
        self._freeze()

    def leave(self) -> None:
        self.machine.signal_daemon(signal.SIGCONT)
        self.machine.kill_daemon()


class ServiceStopped(Frozen):
    """The service is stopped as `systemctl stop` does it."""

    plain = "SIGTERM to the daemon while open, as the service manager sends it"

    def enter(self) -> None:
        self._open()
        self.machine.stop_daemon()
        self._freeze()


class Restarting(Looping):
    """The daemon is restarted again and again, as `systemctl restart` does it."""

    plain = "the service is restarted again and again"

    def turn(self) -> None:
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=0.8)


class Upgrading(Looping):
    """What a package upgrade does: boot rules loaded over the running ones, the holder and the daemon replaced."""

    plain = "a package is upgraded again and again: boot rules and guards loaded anew, the daemon replaced"

    def turn(self) -> None:
        self.machine.boot_lock()
        self.machine.reload_guard()
        self.machine.stop_daemon()
        self.machine.start_daemon()
        with contextlib.suppress(LabError):
            self.machine.wait_state("OPEN", seconds=0.8)


class Flushed(Looping):
    """Root flushes the whole ruleset again and again; the daemon mends."""

    plain = "`nft flush ruleset` again and again, while the service mends"

    def turn(self) -> None:
        self.world.client.run(["nft", "flush", "ruleset"])


class Transition(Looping):
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
