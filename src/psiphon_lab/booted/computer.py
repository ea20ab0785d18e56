# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer in the place of the world's client: a Debian tree, booted with real systemd under systemd-nspawn.

Like a real one it has a disk (a layer above the tree, in memory) that survives a reboot, and a kernel whose network
state does not. Each start has a new network namespace, to which the cables are moved, so nothing remains of the last
one: no table, route, TUN, setting or connection. The captures run at the other ends of the cables and never stop.

Everything ends with the lab. The disk's host process kills the supervisor; the client's host process kills the
container's first process, and with it the whole process namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.booted.booted_host import SOURCE, BootedHost
from psiphon_lab.booted.kernel_state import read_kernel_state
from psiphon_lab.booted.nspawn import prepare_disk, remove_group, seen_by, start_nspawn
from psiphon_lab.booted.provider import find_leases, find_log, start_provider
from psiphon_lab.launch import SOURCE_ROOT
from psiphon_lab.namespace import Host, LabError, begin_host, finish_host
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

BOOT_SECONDS = 240.0
SHUTDOWN_SECONDS = 240.0
REBOOT_ASKED = 133
"""nspawn's exit code for it with --keep-unit (systemd-nspawn(1), "Exit status")."""

_numbers = itertools.count(1)


class Computer:
    """A computer that is off until `power_on`. A context manager; its world must have no other machine under test.

    Args:
        world: its cables, and the hosts behind them.
        tree: the Debian system, which does not change.
        binds: further directories to show inside, read-only: (outside, inside).
        short_leases: see `start_provider`.
    """

    def __init__(
        self, world: World, tree: Path, *, binds: Sequence[tuple[Path, Path]] = (), short_leases: bool = False
    ) -> None:
        self.world = world
        self._tree = tree
        self._binds = ((SOURCE_ROOT, SOURCE), *binds)
        self._short_leases = short_leases
        self._providers: dict[Lan, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()
        self._number = next(_numbers)
        self._boots = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._inside: BootedHost | None = None
        self._disk: Host | None = None
        self._directory = world.directory / f"computer-{self._number}"
        self._group = f"{os.getpid()}-{self._number}"
        self._root = self._directory / "mount" / "root"
        self.console_path = self._directory / "console.log"

    # -- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Computer:
        with contextlib.ExitStack() as stack:
            self._directory.mkdir()
            self._disk = finish_host(begin_host("disk", directory=self._directory / "disk", expose=(self._directory,)))
            stack.callback(self._close_disk)
            prepare_disk(self.disk, self._tree, self._directory / "mount")
            stack.callback(self.power_cut)
            # Let users ping, as on other distributions, so that this probe is possible too.
            (self.files / "etc/sysctl.d/90-ping.conf").write_text("net.ipv4.ping_group_range = 0 2147483647\n")
            self.world.disconnect_uplink(LAN_A)
            for lan in (LAN_A, LAN_B):
                host = self.world.hosts[lan.name]
                self._providers[lan] = start_provider(
                    host, lan, directory=self._directory, short_leases=self._short_leases
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _close_disk(self) -> None:
        remove_group(self.disk, self._group)
        self.disk.close()

    @property
    def disk(self) -> Host:
        """The host in whose mount namespace the disk is."""
        assert self._disk is not None
        return self._disk

    @property
    def files(self) -> Path:
        """The disk's root directory, available even while the computer is off."""
        return seen_by(self.disk, self._root)

    def run_off(self, argv: Sequence[str | Path]) -> None:
        """Run a program with the disk as its root directory, while the computer is off. Raises LabError."""
        self.disk.run(["chroot", self._root, *argv], timeout=60)

    def choose_manager(self, name: str) -> None:
        """Have "NetworkManager" or "systemd-networkd" configure the interfaces, from the next boot on."""
        for manager in ("NetworkManager", "systemd-networkd"):
            verb = "enable" if manager == name else "disable"
            self.disk.run(["systemctl", f"--root={self._root}", verb, f"{manager}.service"], timeout=60)
        wired = "[Match]\nName=eth*\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n"
        (self.files / "etc/systemd/network/50-wired.network").write_text(wired)

    # -- power --------------------------------------------------------------------------------------------------------

    def power_on(self, *, wait: bool = True) -> None:
        """Boot, on a kernel without earlier state. wait: until systemd has started everything.

        Raises:
            LabError: it does not boot.
        """
        if self._nspawn is not None:
            raise LabError("the computer is on already")
        self.world.renew_client(directory=self._directory / f"client-{self._boots}")
        if not read_kernel_state(self.world.client).is_pristine:
            raise LabError("the kernel's network state is not as after power-on")
        self._boots += 1
        self.world.set_carrier(LAN_A, up=True)
        with self.console_path.open("ab") as console:
            self._nspawn = start_nspawn(
                self.disk,
                self._root,
                group=self._group,
                network=self.world.client.netns_path,
                binds=self._binds,
                command=("--boot",),
                output=console,
            )
        self._inside = BootedHost("client", self._wait_leader())
        if wait:
            self.wait_booted()

    def _wait_leader(self) -> int:
        """The container's process 1: the supervisor's child, once it is systemd."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            for child in _read_children(pid):
                with contextlib.suppress(OSError):
                    arguments = Path(f"/proc/{child}/cmdline").read_bytes()
                    if b"nspawn" not in arguments and _is_first(child):
                        return child
            time.sleep(0.005)
        raise LabError(f"the container did not start: {self.read_console()[-1000:]}")

    def wait_booted(self, *, seconds: float = BOOT_SECONDS) -> str:
        """Wait until systemd has finished booting; returns "running", or "degraded" if a unit failed."""
        state = ""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._nspawn is None or self._nspawn.poll() is not None:
                raise LabError(f"the container ended: {self.read_console()[-1000:]}")
            # systemd may lose an early request, and systemctl would then wait 25 s for the answer.
            with contextlib.suppress(LabError):
                state = self.run(["systemctl", "is-system-running"], check=False, timeout=4).stdout.strip()
            if state in {"running", "degraded", "maintenance"}:
                return state
            time.sleep(0.1)
        jobs = self.run(["systemctl", "list-jobs"], check=False).stdout
        raise LabError(f"not booted within {seconds:g} s but {state}: {jobs}\n{self.read_console()[-2000:]}")

    def reboot(self, *, wait: bool = True) -> None:
        """Run `systemctl reboot`, wait for the end of the shutdown, and boot with a kernel without earlier state."""
        self.shut_down("reboot", code=REBOOT_ASKED)
        self.power_on(wait=wait)

    def shut_down(self, verb: str = "poweroff", *, code: int = 0) -> None:
        """Shut down. Raises LabError if that does not end."""
        assert self._nspawn is not None
        self.run(["systemctl", "--no-block", verb], check=False)
        ended = self._wait_shut_down(self._nspawn)
        self._forget()
        if ended != code:
            raise LabError(f"{verb} ended with {ended}: {self.read_console()[-1000:]}")

    def _wait_shut_down(self, nspawn: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a shutdown; returns the supervisor's exit code.

        At the end systemd-shutdown kills what still runs and waits for SIGCHLD from each process, up to 90 s. Processes
        that the lab has started have their parents outside, so that signal never comes. The lab sends it instead.
        """
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return nspawn.wait(timeout=0.1)
            with contextlib.suppress(OSError):
                if Path(f"/proc/{self.inside.pid}/comm").read_text().startswith("systemd-shutdow"):
                    os.kill(self.inside.pid, signal.SIGCHLD)
        raise LabError(f"the shutdown did not end: {self.read_console()[-2000:]}")

    def _forget(self) -> None:
        # Its network namespace is still there, and would still send what is due, such as IGMP reports.
        self.world.set_carrier(LAN_A, up=False)
        if self._inside is not None:
            self._inside.end()
        self._nspawn = self._inside = None

    def power_cut(self) -> None:
        """Cut the power."""
        if self._nspawn is None:
            return
        with contextlib.suppress(OSError):
            if self._inside is not None:
                os.kill(self._inside.pid, signal.SIGKILL)
        try:
            self._nspawn.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._forget()

    def power_cycle(self, *, wait: bool = True) -> None:
        """Cut the power and boot again: there is no shutdown, and the kernel has no earlier state."""
        self.power_cut()
        self.power_on(wait=wait)

    # -- what a user does ---------------------------------------------------------------------------------------------

    @property
    def inside(self) -> BootedHost:
        """The running system, as a host. Raises LabError while the computer is off."""
        if self._inside is None:
            raise LabError("the computer is off")
        return self._inside

    def run(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the running system and wait; see `Host.run`."""
        return self.inside.run(argv, **options)

    def read_console(self) -> str:
        """The console's output since the first boot."""
        return self.console_path.read_text(errors="replace") if self.console_path.exists() else ""

    def read_provider_log(self) -> str:
        """The log of the first provider's DHCP server."""
        return find_log(LAN_A, self._directory).read_text(errors="replace")

    def lease_for(self, seconds: int) -> None:
        """From now on the first provider leases its IPv4 address for so long, at least 120 s."""
        self._providers[LAN_A].kill()
        self._providers[LAN_A].wait()
        find_leases(LAN_A, self._directory).unlink(missing_ok=True)
        host = self.world.hosts[LAN_A.name]
        self._providers[LAN_A] = start_provider(host, LAN_A, directory=self._directory, seconds=seconds)

    def read_lease_end(self) -> float:
        """When the lease of the first provider's IPv4 address ends, Unix time; 0 if there is none."""
        path = find_leases(LAN_A, self._directory)
        lines = path.read_text().splitlines() if path.exists() else []
        return max((float(line.split()[0]) for line in lines if f" {LAN_A.client4} " in line), default=0.0)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, or of the manager if `unit` is empty (systemctl(1), "show")."""
        argv = ["systemctl", "show", *(f"--property={name}" for name in properties), *([unit] if unit else [])]
        lines = self.run(argv).stdout.splitlines()
        return {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}

    def wait_address(self, *, interface: str = LAN_A.interface, seconds: float = 40.0) -> None:
        """Wait until the interface has usable addresses of both families from the provider. Raises LabError."""

        def both() -> bool:
            shown = self.run(["ip", "-o", "address", "show", "dev", interface, "scope", "global"], check=False).stdout
            routes = self.run(["ip", "-6", "route", "show", "default"], check=False).stdout
            ready = [line for line in shown.splitlines() if "tentative" not in line]
            return all(any(word in line for line in ready) for word in (" inet ", " inet6 ")) and interface in routes

        wait_until(both, f"addresses on {interface}", timeout=seconds, pause=0.1)


def _read_children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_first(pid: int) -> bool:
    """Whether a process is number 1 of its process namespace (proc(5), NSpid)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1" and len(line.split()) > 2
    return False
