"""A guest: a machine with a kernel of its own, in software (QEMU's TCG), with its cables in a host of the laboratory.

Each network card is a TAP interface of that host: what is captured there was captured outside of the guest. Everything
ends with the host.
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

from psiphon_lab.guest.image import READY, build_image
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.launch import clean_environment, python_paths
from psiphon_lab.namespace import Host, LabError

PROGRAM = "qemu-system-x86_64"
BOOT_SECONDS = 300.0
RUN_SECONDS = 180.0
MEMORY_MIB = 512
_PARAMETERS = "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off random.trust_cpu=on tsc=reliable"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A network card of a guest. tap: its other end's name on the host; mac: its address, as colon-separated hex."""

    tap: str
    mac: str


@dataclass(frozen=True)
class Done:
    """What a script came to."""

    code: int
    output: str


class Guest:
    """A guest that runs from `__enter__` to `__exit__`.

    Args:
        host: where its cables end.
        kernel: what it boots.
        cards: its network cards, in the guest eth0 and so on.
        modules: names of kernel modules to have.
        directory: for its files; it must exist.
        parameters: words for the kernel's command line.
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
    ) -> None:
        self._host = host
        self._kernel = kernel
        self._cards = tuple(cards)
        self._modules = tuple(modules)
        self._directory = directory
        self._parameters = tuple(parameters)
        self._numbers = itertools.count(1)
        self._codes: dict[int, int] = {}
        self._unread = b""
        self._stack = contextlib.ExitStack()
        self._machine: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self.exchange = directory / "exchange"
        """A directory that the guest sees under /exchange."""
        self.console_path = directory / "console.log"

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
        """Run a shell script in the guest to its end. Raises LabError on a failure (if check) or when it takes long."""
        number = self.start(script)
        done = self.finish(number, seconds=seconds)
        if check and done.code != 0:
            raise LabError(f"guest: rc {done.code}: {script.strip()}\n{done.output}")
        return done

    def start(self, script: str) -> int:
        """Begin a shell script in the guest; the number is for `finish`."""
        number = next(self._numbers)
        (self.exchange / f"{number}.sh").write_text(script)
        assert self._channel is not None
        self._channel.sendall(b"%d\n" % number)
        return number

    def finish(self, number: int, *, seconds: float = RUN_SECONDS) -> Done:
        """Wait for the end of what `start` began. Raises LabError."""
        deadline = time.monotonic() + seconds
        while number not in self._codes:
            line = self._read_line(deadline, f"the end of script {number}")
            told, _space, code = line.partition(" ")
            self._codes[int(told)] = int(code)
        output = (self.exchange / f"{number}.out").read_text(errors="replace")
        return Done(self._codes.pop(number), output)

    # -- power ------------------------------------------------------------------------------------------------------

    def _power_on(self) -> None:
        shares = _shares()
        image = self._directory / "image.gz"
        image.write_bytes(build_image(self._kernel, self._modules, shares))
        channel = self._directory / "channel"
        argv: list[str] = [
            PROGRAM, "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{self.console_path}",
            "-kernel", str(self._kernel.image), "-initrd", str(image),
            "-append", " ".join((_PARAMETERS, *self._parameters)),
            "-chardev", f"socket,id=channel,path={channel},server=on,wait=off",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=lab",
            "-virtfs", f"local,path={self.exchange},mount_tag=exchange,security_model=none,multidevs=remap",
        ]  # fmt: skip
        for number, path in enumerate(shares):
            argv += ["-virtfs"]
            argv += [f"local,path={path},mount_tag=share{number},security_model=none,readonly=on,multidevs=remap"]
        for number, card in enumerate(self._cards):
            argv += ["-netdev", f"tap,id=card{number},ifname={card.tap},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev=card{number},mac={card.mac},romfile="]
        self._machine = self._host.spawn(argv, env=clean_environment(), stderr=subprocess.PIPE)
        self._channel = self._connect(channel)
        if self._read_line(time.monotonic() + BOOT_SECONDS, "the guest's start") != READY:
            raise LabError("the guest said something else than that it is ready")

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
        if self._channel is not None:
            self._channel.close()
        if self._machine is not None:
            self._machine.kill()
            self._machine.wait()
            if self._machine.stderr is not None:
                self._machine.stderr.close()

    def read_console(self) -> str:
        """The last of what the guest's kernel and first script have said."""
        return self.console_path.read_text(errors="replace")[-3000:] if self.console_path.exists() else ""


def quote(*words: str | Path) -> str:
    """Words of a command as a shell script has them."""
    return shlex.join(map(str, words))


def _shares() -> tuple[Path, ...]:
    """This machine's programs, and this Python with the project; none twice."""
    wanted = [Path("/usr"), *python_paths()]
    kept: list[Path] = []
    for path in sorted({path.resolve() for path in wanted}):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return tuple(kept)
