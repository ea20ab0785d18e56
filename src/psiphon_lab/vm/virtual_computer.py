# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual computer: the same disk as a booted computer's, in a machine of QEMU's with its own kernel.

It begins as a container (`booted/computer.py`), where an installation is quick. `become_virtual` makes an image of its
disk; from then on `power_on` starts QEMU, and power, sleep and cables are those of that machine. The processor is
emulated (TCG), so everything inside takes some ten times as long as outside.

Each card's cable is a tap on the client's host of the world, joined with a provider's cable, so the captures are where
they are for a container, and outside the guest: they run from before the firmware to the end.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.booted.booted_host import BootedHost
from psiphon_lab.booted.computer import Computer
from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import LabError
from psiphon_lab.qemu_monitor import Monitor
from psiphon_lab.vm.cables import Card, add_tap, join, prepare_client
from psiphon_lab.vm.disk import Disk, make_disk, prepare_root
from psiphon_lab.vm.qemu import PORTS, render_command
from psiphon_lab.vm.virtual_host import VirtualHost
from psiphon_lab.waiting import wait_until

BOOT_SECONDS = 1500.0
SLEEP_SECONDS = 900.0
CARDS = (Card(tap="tap0", mac=LAN_A.mac), Card(tap="tap1", mac=LAN_B.mac))


_INTERFACES = "allow-hotplug eth0\niface eth0 inet dhcp\niface eth0 inet6 auto\n"
"""See interfaces(5)."""


@dataclass(frozen=True)
class Moment:
    """A point in what a computer has said. announced: by QEMU; written: bytes on the console."""

    announced: int
    written: int


class VirtualComputer(Computer):
    """A computer that `become_virtual` turns into a virtual one. See `Computer` for the rest."""

    _image: Disk | None = None
    _qemu: subprocess.Popen[bytes] | None = None
    _monitor: Monitor | None = None
    _guest: VirtualHost | None = None
    parameters: tuple[str, ...] = ()
    """Words for the kernel's command line, from the next `power_on` on."""
    started: float = 0.0
    """When the computer was started last, or reset, Unix time."""

    # -- from a container to a virtual computer -------------------------------------------------------------------

    def become_virtual(self) -> None:
        """Make the virtual disk, while the computer is off. Raises LabError."""
        if self._nspawn is not None:
            raise LabError("the computer is on")
        directory = self._directory / "virtual"
        directory.mkdir()
        prepare_root(self.disk, self._root, self.files, self._binds)
        self._image = make_disk(self.disk, self._root, self.files, directory)

    @property
    def image(self) -> Disk:
        """The virtual disk. Raises LabError before `become_virtual`."""
        if self._image is None:
            raise LabError("the computer is not virtual yet")
        return self._image

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor. Raises LabError while the computer is off."""
        if self._monitor is None:
            raise LabError("the computer is off")
        return self._monitor

    # -- power ----------------------------------------------------------------------------------------------------

    def power_on(self, *, wait: bool = True) -> None:
        """Start from the firmware. See `Computer.power_on`."""
        if self._image is None:
            super().power_on(wait=wait)
            return
        if self._qemu is not None:
            raise LabError("the computer is on already")
        self._boots += 1
        self.world.renew_client(directory=self._directory / f"client-{self._boots}")
        client = self.world.client
        prepare_client(client)
        for card, lan in zip(CARDS, (LAN_A, LAN_B), strict=True):
            add_tap(client, card)
            join(client, card, lan)
        place = self._directory / f"run-{self._boots}"
        place.mkdir()
        command = render_command(
            self.image, CARDS, directory=place, console=self.console_path, parameters=self.parameters
        )
        self.started = time.time()
        with (place / "qemu.log").open("wb") as log:
            self._qemu = client.spawn(command, env=clean_environment(), stdout=log, stderr=log)
        self._monitor = Monitor(self._connect(place / "monitor"))
        self._guest = VirtualHost("client", [self._connect(place / f"port{number}") for number in range(PORTS)])
        self.plug(LAN_A)
        self.unplug(LAN_B)
        if wait:
            self.wait_booted()

    def _connect(self, path: Path) -> socket.socket:
        assert self._qemu is not None
        qemu = self._qemu
        wait_until(lambda: path.exists() or qemu.poll() is not None, f"QEMU's socket {path.name}")
        if qemu.poll() is not None:
            raise LabError(f"QEMU ended: {(path.parent / 'qemu.log').read_text(errors='replace')[-1000:]}")
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(path))
        return made

    @property
    def inside(self) -> BootedHost | VirtualHost:  # type: ignore[override]
        """The running system, as a host. Raises LabError while the computer is off."""
        if self._image is None:
            return super().inside
        if self._guest is None:
            raise LabError("the computer is off")
        return self._guest

    def wait_booted(self, *, seconds: float = BOOT_SECONDS) -> str:
        """See `Computer.wait_booted`."""
        if self._image is None:
            return super().wait_booted()
        deadline = time.monotonic() + seconds
        try:
            while True:
                left = deadline - time.monotonic()
                argv = ["systemctl", "is-system-running", "--wait"]
                # The bus is not there at first; then systemctl fails at once.
                state = self.run(argv, check=False, timeout=max(left, 1.0)).stdout.strip()
                if state in {"running", "degraded", "maintenance"}:
                    return state
                time.sleep(0.2)
        except LabError as error:
            raise LabError(f"not booted within {seconds:g} s\n{self.read_console()[-3000:]}") from error

    def reboot(self, *, wait: bool = True) -> None:
        """Run `systemctl reboot`, and wait for the reset that ends the shutdown."""
        if self._image is None:
            super().reboot(wait=wait)
            return
        since = self.monitor.mark()
        self.run(["systemctl", "--no-block", "reboot"], check=False)
        self._wait_reset(since)
        if wait:
            self.wait_booted()

    def _wait_reset(self, since: int) -> None:
        try:
            self.started = self.monitor.wait_for("RESET", since=since, seconds=SLEEP_SECONDS).time
        except LabError as error:
            raise LabError(f"{error}\n{self.read_console()[-3000:]}") from error
        assert self._guest is not None
        self._guest.hang_up()

    def reset(self, *, wait: bool = True) -> None:
        """Cut the power and start again at once: the firmware begins, without any shutdown (QMP "system_reset")."""
        since = self.monitor.mark()
        self.monitor.execute("system_reset")
        self._wait_reset(since)
        if wait:
            self.wait_booted()

    def power_cut(self) -> None:
        """Cut the power."""
        if self._image is None:
            super().power_cut()
            return
        if self._guest is not None:
            self._guest.end()
        if self._monitor is not None:
            self._monitor.close()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        self._guest = self._monitor = self._qemu = None

    # -- sleep ------------------------------------------------------------------------------------------------------

    def mark(self) -> Moment:
        """Now, for the methods that wait."""
        return Moment(self.monitor.mark(), self.console_path.stat().st_size)

    def wait_asleep(self, since: Moment) -> None:
        """Wait until the computer sleeps in memory (ACPI S3)."""
        self._wait_announced("SUSPEND", since)

    def wait_hibernated(self, since: Moment) -> None:
        """Wait until the computer is off, with its memory on the disk."""
        self._wait_announced("SUSPEND_DISK", since)

    def wait_console(self, text: str, *, since: Moment) -> None:
        """Wait until a text is on the console."""

        def has() -> bool:
            return text.encode() in self.console_path.read_bytes()[since.written :]

        try:
            wait_until(has, f"{text!r} on the console", timeout=SLEEP_SECONDS)
        except LabError as error:
            raise LabError(f"{error}\n{self.read_console()[-3000:]}") from error

    def _wait_announced(self, name: str, since: Moment) -> None:
        try:
            self.monitor.wait_for(name, since=since.announced, seconds=SLEEP_SECONDS)
        except LabError as error:
            raise LabError(f"{error}\n{self.read_console()[-3000:]}") from error

    def wake(self) -> float:
        """Wake the computer up from S3. Returns the moment, Unix time."""
        since = self.monitor.mark()
        self.monitor.execute("system_wakeup")
        return self.monitor.wait_for("WAKEUP", since=since).time

    def start_again(self) -> float:
        """Switch a computer on that has switched itself off: from the firmware. Returns the moment, Unix time."""
        assert self._guest is not None
        self._guest.hang_up()
        since = self.monitor.mark()
        self.monitor.execute("system_reset")
        self.monitor.execute("cont")
        self.started = self.monitor.wait_for("RESET", since=since).time
        return self.started

    def cycle(self, *parameters: str) -> None:
        """Cut the power, and start again at once. parameters: words for the kernel's command line."""
        self.power_cut()
        self.parameters = parameters
        self.power_on(wait=False)

    def start_kernel(self, version: str) -> None:
        """Start a kernel in the place of this one, without the firmware (kexec(8)), after a shutdown.

        version: of an installed kernel, as in `uname -r`.
        """
        before = self._read_boot_id()
        load = ["kexec", "--load", f"/boot/vmlinuz-{version}", f"--initrd=/boot/initrd.img-{version}"]
        self.run([*load, "--reuse-cmdline"], timeout=SLEEP_SECONDS)
        self.run(["systemctl", "--no-block", "kexec"], check=False)
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(LabError):
                if self._read_boot_id() not in ("", before):
                    self.started = self.read_kernel_start()
                    return
        raise LabError(f"no new kernel within {BOOT_SECONDS:g} s\n{self.read_console()[-3000:]}")

    def _read_boot_id(self) -> str:
        return self.run(["cat", "/proc/sys/kernel/random/boot_id"], check=False, timeout=20.0).stdout.strip()

    def switch_manager(self, name: str) -> None:
        """Have "NetworkManager", "systemd-networkd" or "ifupdown" configure the interfaces, from the next boot on."""
        for manager in ("NetworkManager", "systemd-networkd"):
            self.run(["systemctl", "enable" if manager == name else "disable", f"{manager}.service"], timeout=300)
        self.run(["tee", "/etc/network/interfaces"], input=_INTERFACES if name == "ifupdown" else "")

    # -- cables -----------------------------------------------------------------------------------------------------

    def plug(self, lan: Lan) -> None:
        """Give the provider's card its carrier."""
        self.world.set_carrier(lan, up=True)
        self.show_carrier(lan, up=True)

    def unplug(self, lan: Lan) -> None:
        """Take the carrier of the provider's card away."""
        self.show_carrier(lan, up=False)
        self.world.set_carrier(lan, up=False)

    def show_carrier(self, lan: Lan, *, up: bool) -> None:
        """Show a card's carrier to the guest. What changes while it sleeps, its driver does not see."""
        self.monitor.execute("set_link", name=_name_card(lan), up=up)

    # -- time ---------------------------------------------------------------------------------------------------------

    def read_kernel_start(self) -> float:
        """When the guest's kernel started, in Unix time of the laboratory, to some 0.1 s."""
        before = time.time()
        uptime = float(self.run(["cat", "/proc/uptime"]).stdout.split()[0])
        return (before + time.time()) / 2 - uptime


def _name_card(lan: Lan) -> str:
    return f"card{(LAN_A, LAN_B).index(lan)}"
