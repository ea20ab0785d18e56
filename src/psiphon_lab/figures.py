"""How fast the service closes and comes back, beside the bare core in the same run, and what it costs while it idles.

`python -m psiphon_lab.figures`, as root, prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.commits import CommitWatch
from psiphon_lab.machine import LAB_UID, Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.tunnel_ends import RealPrograms, open_tunnel
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World
from psiphon_vpn.config import parse_settings
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names

ROUNDS = 5
IDLE_SECONDS = 20.0
SETTLE_SECONDS = 6.0
"""What an opening has for an aftermath: status told, IPv6 looked for."""
WAKE_UPS = "wake-ups"


@dataclass
class Figures:
    """Milliseconds, each a list of what was measured; and the cost of idling."""

    bare_connect: list[float] = field(default_factory=list)
    loss_to_closed: list[float] = field(default_factory=list)
    killed_to_reopened: list[float] = field(default_factory=list)
    moved_to_reopened: list[float] = field(default_factory=list)
    woke_to_reopened: list[float] = field(default_factory=list)
    idle_cpu: float = 0.0
    """Part of a core."""
    idle_wakeups: float = 0.0
    """A second."""
    resident_kib: int = 0

    def median(self, name: str) -> float:
        """The median of one of the lists."""
        return float(statistics.median(getattr(self, name)))

    def render(self) -> str:
        """A line for each figure."""
        bare = self.median("bare_connect")
        lines = []
        for name in ("bare_connect", "loss_to_closed", "killed_to_reopened", "moved_to_reopened", "woke_to_reopened"):
            values = sorted(getattr(self, name))
            if not values:
                continue
            median = statistics.median(values)
            beyond = f", {median - bare:+.0f} to the bare core" if name.endswith("reopened") else ""
            lines.append(f"{name:<20} median {median:7.1f} ms (from {values[0]:.1f} to {values[-1]:.1f}{beyond})")
        lines.append(f"{'idle':<20} {self.idle_cpu * 100:.3f} % of a core, {self.idle_wakeups:.2f} wake-ups a second")
        lines.append(f"{'resident':<20} {self.resident_kib} KiB")
        return "\n".join(lines)


def measure_bare_core(world: World, core: Path, entry: str, rounds: int) -> list[float]:
    """From the core's start to its word that it has a tunnel, without a service around it; milliseconds.

    Before any lock is closed. What it takes to start a program in the namespace at all is taken off.
    """
    client = world.client
    data = world.directory / "bare"
    data.mkdir()
    os.chown(data, LAB_UID, LAB_UID)
    text = f"[core.advanced]\nTargetServerEntry = {json.dumps(entry)}\nDisableRemoteServerListFetcher = true\n"
    config = render_core_config(parse_settings(text.encode()), data_dir=data, network_id="WIRED-bare")
    path = data / "config.json"
    path.write_text(json.dumps(config))
    path.chmod(0o644)
    client.run(["ip", "tuntap", "add", names.TUN_NAME, "mode", "tun", "user", str(LAB_UID)])
    client.run(["ip", "link", "set", names.TUN_NAME, "up"])
    starts, found = [], []
    for _round in range(rounds):
        begin = time.monotonic()
        client.spawn(["true"], uid=LAB_UID, gid=LAB_UID).wait()
        starts.append(time.monotonic() - begin)
    argv: list[str | Path] = [core, "-config", path, "-dataRootDirectory", data, "-tunDevice", names.TUN_NAME]
    argv += ["-tunBindInterface", LAN_A.interface, "-tunDNSServers", names.RESOLVER_IPV4]
    for _round in range(rounds):
        begin = time.monotonic()
        child = client.spawn(argv, uid=LAB_UID, gid=LAB_UID, stderr=subprocess.PIPE, cwd=data)
        assert child.stderr is not None
        for line in child.stderr:
            if b'"Tunnels"' in line and json.loads(line)["data"]["count"] >= 1:
                found.append((time.monotonic() - begin - statistics.median(starts)) * 1000)
                break
        else:
            raise LabError("the bare core never had a tunnel")
        child.kill()
        child.wait()
    client.run(["ip", "link", "del", names.TUN_NAME])
    return found


def _wait_reopened(machine: Machine, commits: CommitWatch, begin: float, pid: int | None) -> float:
    """When the lease was taken by a core that is not `pid`. The daemon is not asked meanwhile: answers take it time."""
    machine.wait_for(lambda: commits.opened_after(begin, pid=machine.daemon_pid) is not None, "an open tunnel")
    opened = commits.opened_after(begin, pid=machine.daemon_pid)
    status = machine.wait_state("OPEN")
    if opened is None or status["core_pid"] in {None, pid}:
        raise LabError("it was not another core that opened")
    return opened


def _core(machine: Machine) -> int:
    status = machine.wait_state("OPEN")
    machine.wait_for(machine.lease_remains, "the lease")
    pid = status["core_pid"]
    assert isinstance(pid, int)
    return pid


def measure_killed(machine: Machine) -> float:
    """The core is killed; until another has the lease. Milliseconds."""
    pid = _core(machine)
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        os.kill(pid, 9)
        return (_wait_reopened(machine, commits, begin, pid) - begin) * 1000


def measure_moved(world: World, machine: Machine) -> tuple[float, float]:
    """The uplink is lost, another one comes: loss to closed, and the new one's address to reopened. Milliseconds."""
    pid = _core(machine)
    here, there = (LAN_A, LAN_B) if world.uplink is LAN_A else (LAN_B, LAN_A)
    with CommitWatch(machine.client) as commits:
        before = time.monotonic()
        world.disconnect_uplink(here)
        machine.wait_for(lambda: not machine.lease_remains(), "the end of the lease")
        lost = commits.first_loss()
        closed = commits.first_after(lost if lost is not None else before, pid=machine.daemon_pid)
        if lost is None or closed is None:
            raise LabError("nobody saw the link go, or the tunnel close")
        world.connect_uplink(there)
        moved = time.monotonic()
        return (closed - lost) * 1000, (_wait_reopened(machine, commits, moved, pid) - moved) * 1000


def measure_woken(machine: Machine) -> float:
    """The end of sleep is told, as psiphon-sleep.service does; until the lease is taken. Milliseconds."""
    _core(machine)
    machine.command("sleep-begins")
    wait_until(lambda: (machine.read_status() or {}).get("reason_code") == "sleeping", "sleep")
    with CommitWatch(machine.client) as commits:
        begin = time.monotonic()
        machine.command("sleep-ended")
        return (_wait_reopened(machine, commits, begin, None) - begin) * 1000


def measure_idle(machine: Machine, figures: Figures, seconds: float) -> None:
    """What the daemon costs while it is open and nobody does anything."""
    _core(machine)
    machine.wait_for(lambda: bool((machine.read_status() or {}).get("ipv6")), "IPv6")
    time.sleep(SETTLE_SECONDS)
    tasks = Path(f"/proc/{machine.daemon_pid}/task")
    counter = machine.state_dir / WAKE_UPS

    def read() -> tuple[int, int]:
        # First field: nanoseconds on a processor (sched-stats.rst of the kernel documentation).
        spent = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
        return spent, int(counter.read_text())

    before = read()
    begin = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begin
    after = read()
    figures.idle_cpu = (after[0] - before[0]) / 1e9 / took
    figures.idle_wakeups = (after[1] - before[1]) / took
    figures.resident_kib = machine.read_resident_kib()


@contextlib.contextmanager
def open_machine(figures: Figures, *, rounds: int, real: RealPrograms | None = None) -> Iterator[Machine]:
    """A world with the service open, after the bare core was measured in it. real: instead of the stand-ins."""
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(open_tunnel(real, captures=False))
        world, entry = tunnel.world, tunnel.server.entry
        figures.bare_connect = measure_bare_core(world, tunnel.core, entry, rounds)
        machine = stack.enter_context(Machine(world, core=tunnel.core, entry=lambda: entry))
        machine.program = ["-m", "psiphon_lab.counted_daemon", str(machine.state_dir / WAKE_UPS)]
        machine.boot_lock()
        machine.hold_guard()
        machine.start_daemon()
        yield machine


def measure(machine: Machine, figures: Figures, *, rounds: int, idle_seconds: float) -> None:
    """Measure everything, one after the other."""
    for _round in range(rounds):
        figures.woke_to_reopened.append(measure_woken(machine))
    for _round in range(rounds):
        figures.killed_to_reopened.append(measure_killed(machine))
        machine.command("restart")  # so that no round pays for the troubles of the one before
    for _round in range(rounds):
        closed, reopened = measure_moved(machine.world, machine)
        figures.loss_to_closed.append(closed)
        figures.moved_to_reopened.append(reopened)
        machine.command("restart")
    measure_idle(machine, figures, idle_seconds)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="figures", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--core", type=Path, help=_("a real psiphon-tunnel-core; needs --server too"))
    parser.add_argument("--server", type=Path, help=_("a real psiphond; needs --core too"))
    options = parser.parse_args()
    if (options.core is None) != (options.server is None):
        parser.error(_("give --core and --server together"))
    real = None if options.core is None else RealPrograms(core=options.core.resolve(), server=options.server.resolve())
    figures = Figures()
    with open_machine(figures, rounds=options.rounds, real=real) as machine:
        measure(machine, figures, rounds=options.rounds, idle_seconds=options.idle_seconds)
    sys.stdout.write(figures.render() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
