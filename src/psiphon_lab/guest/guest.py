# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest: a machine with its own kernel, emulated by QEMU (TCG), with its cables on a host of the laboratory.

Each network card is a TAP interface of that host, so captures there are outside the guest. Everything ends with the
host.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from psiphon_lab.guest.image import READY, build_image
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.guest.near_files import list_near_files
from psiphon_lab.launch import clean_environment, python_paths
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.qemu_monitor import Monitor

PROGRAM = "qemu-system-x86_64"
BOOT_SECONDS = 900.0
RUN_SECONDS = 180.0
MEMORY_MIB = 512
_PARAMETERS = (
    "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off random.trust_cpu=on tsc=reliable no_timer_check"
)

_CARD = "virtio-net-pci,speed=1000,duplex=full"
"""Like a real card, which knows its speed: without it a bond in 802.3ad does not use the card (Linux 6.12)."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A network card of a guest. mac: its address, as colon-separated hex. usb: on USB; it is plugged in later.

    Its other end is a TAP interface: of the host, by its name (`tap`), or of any, by an open `descriptor`.
    """

    mac: str
    tap: str = ""
    descriptor: int | None = None
    usb: bool = False


@dataclass(frozen=True)
class Done:
    """The result of a script."""

    code: int
    output: str


class Guest:
    """A guest that runs from `__enter__` to `__exit__`.

    Args:
        host: the host with the other ends of its cables.
        kernel: the kernel to boot.
        cards: its network cards, in the guest eth0 and so on.
        modules: names of kernel modules to load.
        directory: an existing directory for its files.
        parameters: words for the kernel's command line.
        player: whether there is a second port of the serial device, for a program that answers the laboratory.
        memory: in MiB.
        pluggable: whether its cards can be plugged in and out (`plug`, `unplug`).
        own_time: whether its clock goes by its own instructions, so that nothing in it comes too late however busy this
            machine is. Seen from outside it is slow.
    """

    def __init__(
        self,
        host: Host,
        kernel: Kernel,
        *,
        cards: Sequence[Card],
        modules: Sequence[str],
        directory: Path,
        parameters: Sequence[str] = (),
        player: bool = False,
        memory: int = MEMORY_MIB,
        pluggable: bool = False,
        own_time: bool = False,
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._cards = tuple(cards)
        self._modules = tuple(modules)
        self._directory = directory
        self._parameters = tuple(parameters)
        self._player = player
        self._memory = memory
        self._pluggable = pluggable
        self._own_time = own_time
        self._numbers = itertools.count(1)
        self._codes: dict[int, int] = {}
        self._unread = b""
        self._stack = contextlib.ExitStack()
        self._machine: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self.exchange = directory / "exchange"
        """A directory that the guest has as /exchange."""
        self.console_path = directory / "console.log"
        self.player: socket.socket | None = None
        """This machine's end of the second port."""
        self._monitor: Monitor | None = None

    def __enter__(self) -> Guest:
        with contextlib.ExitStack() as stack:
            self.exchange.mkdir()
            stack.callback(self._power_off)
            self._power_on()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, script: str, *, check: bool = True, seconds: float = RUN_SECONDS) -> Done:
        """Run a shell script in the guest and wait. Raises LabError if it fails (if check) or after `seconds`."""
        number = self.start(script)
        done = self.finish(number, seconds=seconds)
        if check and done.code != 0:
            raise LabError(f"guest: rc {done.code}: {script.strip()}\n{done.output}")
        return done

    def start(self, script: str) -> int:
        """Start a shell script in the guest; returns a number for `finish`."""
        number = next(self._numbers)
        (self.exchange / f"{number}.sh").write_text(script)
        assert self._channel is not None
        self._channel.sendall(b"%d\n" % number)
        return number

    def finish(self, number: int, *, seconds: float = RUN_SECONDS) -> Done:
        """Wait for the end of a script that `start` began. Raises LabError."""
        deadline = time.monotonic() + seconds
        while number not in self._codes:
            line = self._read_line(deadline, f"the end of script {number}")
            ended, _space, code = line.partition(" ")
            self._codes[int(ended)] = int(code)
        output = (self.exchange / f"{number}.out").read_text(errors="replace")
        return Done(self._codes.pop(number), output)

    # -- power ------------------------------------------------------------------------------------------------------

    def _power_on(self) -> None:
        shares = list_shares(self._kernel)
        image = self._directory / "image.gz"
        near = list_near_files() if self._own_time else {}
        image.write_bytes(build_image(self._kernel, self._modules, shares, near=near))
        channel = self._directory / "channel"
        argv: list[str] = [
            PROGRAM, "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", str(self._memory), "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{self.console_path}",
            "-kernel", str(self._kernel.image), "-initrd", str(image),
            "-append", " ".join((_PARAMETERS, *self._parameters)),
            "-chardev", f"socket,id=channel,path={channel},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=lab",
            "-virtfs", f"local,path={self.exchange},mount_tag=exchange,security_model=none,multidevs=remap",
        ]  # fmt: skip
        if self._own_time:
            argv += ["-icount", "shift=0"]
        monitor, player = self._directory / "monitor", self._directory / "player"
        argv += ["-qmp", f"unix:{monitor},server=on,wait=off"]
        if self._player:
            argv += ["-chardev", f"socket,id=player,path={player},server=on,wait=off"]
            argv += ["-device", "virtserialport,chardev=player,name=player"]
        for number, path in enumerate(shares):
            argv += ["-virtfs"]
            argv += [f"local,path={path},mount_tag=share{number},security_model=none,readonly=on,multidevs=remap"]
        argv += ["-device", "qemu-xhci,id=usb"] if self._pluggable else []
        for number, card in enumerate(self._cards):
            end = f"ifname={card.tap},script=no,downscript=no" if card.descriptor is None else f"fd={card.descriptor}"
            argv += ["-netdev", f"tap,id=card{number},{end}"]
            if card.usb:
                continue
            # Cards directly on the first bus of PCI Express cannot be unplugged.
            argv += ["-device", f"pcie-root-port,id=slot{number},chassis={number}"] if self._pluggable else []
            bus = f",bus=slot{number}" if self._pluggable else ""
            argv += ["-device", f"{_CARD},id=nic{number},netdev=card{number},mac={card.mac},romfile={bus}"]
        descriptors = [card.descriptor for card in self._cards if card.descriptor is not None]
        self._machine = self._host.spawn(argv, env=clean_environment(), stderr=subprocess.PIPE, pass_fds=descriptors)
        self._channel = self._connect(channel)
        self._monitor = Monitor(self._connect(monitor))
        self.player = self._connect(player) if self._player else None
        if self._read_line(time.monotonic() + BOOT_SECONDS, "the guest's start") != READY:
            raise LabError("the guest did not report that it is ready")

    def set_carrier(self, card: int, *, up: bool) -> None:
        """Plug the cable of a card in or out. card: its number, from 0. Raises LabError."""
        assert self._monitor is not None
        self._monitor.execute("set_link", name=f"card{card}", up=up)

    def unplug(self, card: int) -> None:
        """Take a card out of its slot, and wait until it is out. card: its number, from 0. Raises LabError."""
        assert self._monitor is not None
        mark = self._monitor.mark()
        self._monitor.execute("device_del", id=f"nic{card}")
        self._monitor.wait_for("DEVICE_DELETED", since=mark, seconds=RUN_SECONDS, device=f"nic{card}")

    def plug(self, card: int) -> None:
        """Plug a card in, at its cable. card: its number, from 0. Raises LabError."""
        assert self._monitor is not None
        fields: dict[str, Any] = {"id": f"nic{card}", "netdev": f"card{card}", "mac": self._cards[card].mac}
        if self._cards[card].usb:
            self._monitor.execute("device_add", driver="usb-net", bus="usb.0", **fields)
        else:
            self._monitor.execute(
                "device_add",
                driver="virtio-net-pci",
                bus=f"slot{card}",
                romfile="",
                speed=1000,
                duplex="full",
                **fields,
            )

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(path))
            except OSError:
                made.close()
                self._check_alive()
                if time.monotonic() > deadline:
                    raise LabError("QEMU opened no channel") from None
                time.sleep(0.02)
            else:
                return made

    def _read_line(self, deadline: float, what: str) -> str:
        assert self._channel is not None
        while b"\n" not in self._unread:
            if not select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise LabError(f"{what} did not come in time\n{self.read_console()}")
            data = self._channel.recv(4096)
            if not data:
                self._check_alive(grace=2.0)
                raise LabError(f"the guest closed its channel\n{self.read_console()}")
            self._unread += data
        line, _newline, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _check_alive(self, *, grace: float = 0.0) -> None:
        assert self._machine is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._machine.wait(timeout=grace)
            assert self._machine.stderr is not None
            said = self._machine.stderr.read().decode(errors="replace")
            raise LabError(f"QEMU ended with {self._machine.returncode}: {said}\n{self.read_console()}")

    def _power_off(self) -> None:
        for end in (self._channel, self.player, self._monitor):
            if end is not None:
                end.close()
        if self._machine is not None:
            self._machine.kill()
            self._machine.wait()
            if self._machine.stderr is not None:
                self._machine.stderr.close()

    def read_console(self) -> str:
        """The end of the console's output, from the guest's kernel and its first script."""
        return self.console_path.read_text(errors="replace")[-3000:] if self.console_path.exists() else ""


def quote(*words: str | Path) -> str:
    """Quote words of a command for a shell script."""
    return shlex.join(map(str, words))


def list_shares(kernel: Kernel) -> tuple[Path, ...]:
    """The directories with this machine's programs, this Python, the project, and the kernel's modules, none twice."""
    wanted = [Path("/usr"), *python_paths(), kernel.loader]
    kept: list[Path] = []
    for path in sorted({path.resolve() for path in wanted}):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(kept)
