# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine under test as a virtual machine with a kernel of its own; everything around it stays outside.

Its cards are TAP interfaces of the providers. The captures are there, where no guest's kernel can lie.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.fork_server import ForkServer, Outcome, Shot
from psiphon_lab.guest.guest import Card, Guest, quote
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.guest.source import PLACE, UNPACK, pack_source, python
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.player import Played
from psiphon_lab.leaktest.testbed import Outside
from psiphon_lab.link import Link
from psiphon_lab.namespace import LabError
from psiphon_lab.pace import VARIABLE
from psiphon_lab.server_process import run_server
from psiphon_lab.tun_device import IFF_NO_PI, TUNSETIFF
from psiphon_lab.world import HOST_NAMES, World

LANS: Final = (LAN_A, LAN_B)
CALL_SECONDS: Final = 4 * 3600.0
"""How long the machine may take for anything that is asked of it."""
PACE: Final = 4
"""How many times slower than namespaces: limits and pauses of the laboratory inside are multiplied by it."""
IFF_TAP: Final = 0x0002  # <linux/if_tun.h>
_INSIDE = ("client", "container")
_LONG = 1e6


class OuterWorld(World):
    """A world whose client is a virtual machine: its cables end in TAP interfaces of the providers."""

    host_names = tuple(name for name in HOST_NAMES if name not in _INSIDE)
    guest: Guest | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.taps: dict[str, int] = {}

    def prepare_hosts(self) -> None:
        """Make the providers' ends of the cables."""
        for lan in LANS:
            self.taps[lan.name] = self.hosts[lan.name].call(lambda lan=lan: _open_tap(lan.port))  # type: ignore[misc]

    def _connect_client(self) -> None:
        """The machine does so itself."""

    def set_carrier(self, lan: Lan, *, up: bool) -> None:
        """Plug a cable in or out: the provider's port, and the carrier of the machine's card."""
        assert self.guest is not None
        if not up:
            self.guest.set_carrier(LANS.index(lan), up=False)
        super().set_carrier(lan, up=up)
        if up:
            self.guest.set_carrier(LANS.index(lan), up=True)

    def close_taps(self) -> None:
        """Close this process's descriptors; the interfaces end with the last one."""
        for descriptor in self.taps.values():
            os.close(descriptor)
        self.taps.clear()


def _open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


class _Answers:
    """What the process inside may ask of the world around it."""

    def __init__(self, outside: Outside, fork_server: ForkServer) -> None:
        self._outside = outside
        self._world = outside.world
        self._fork_server = fork_server
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def list_answers(self) -> dict[str, Any]:
        return {
            "run": self.run, "spawn": self.spawn, "poll": self.poll, "await": self.wait, "end": self.end,
            "order": self.order, "outcome": self.outcome, "set_carrier": self.set_carrier,
            "signal_server": self._outside.signal_server,
        }  # fmt: skip

    def run(self, host: str, words: list[str], input: str | None, timeout: float) -> tuple[int, str, str]:
        done = self._world.hosts[host].run(words, input=input, check=False, timeout=timeout)
        return done.returncode, done.stdout, done.stderr

    def spawn(self, host: str, words: list[str]) -> int:
        child = self._world.hosts[host].spawn(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._children[child.pid] = child
        return child.pid

    def poll(self, number: int) -> int | None:
        return self._children[number].poll()

    def wait(self, number: int, timeout: float | None) -> int | None:
        try:
            return self._children[number].wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None

    def end(self, number: int, at_once: bool) -> None:
        child = self._children[number]
        (child.kill if at_once else child.terminate)()

    def order(self, host: str, place: tuple[str, str], shot: Shot, options: dict[str, Any]) -> int:
        module, name = place
        function = getattr(importlib.import_module(module), name)
        return self._fork_server.order(self._world.hosts[host], function, shot, **options)

    def outcome(self, number: int, seconds: float) -> Outcome:
        return self._fork_server.wait(number, seconds=seconds)

    def set_carrier(self, lan: str, up: bool) -> None:
        self._world.set_carrier(next(known for known in LANS if known.name == lan), up=up)


class VirtualMachine:
    """The machine under test, through the link to the process inside. See `Player`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def _ask(self, name: str, *arguments: Any) -> Any:
        return self._link.ask(name, *arguments, seconds=CALL_SECONDS)

    def open(self) -> None:
        """Have it connected and ready."""
        self._ask("open")

    def find_missing(self) -> tuple[str, ...]:
        """See `Player`."""
        return tuple(self._ask("find_missing"))

    def begin(self, mode: Mode, attacks: Sequence[str]) -> None:
        """See `Player`."""
        self._ask("begin", mode, tuple(attacks))

    def enter(self) -> None:
        """See `Player`."""
        self._ask("enter")

    def play(self, attack: str) -> Played:
        """See `Player`."""
        played = self._ask("play", attack)
        assert isinstance(played, Played)
        return played

    def leave(self) -> None:
        """See `Player`."""
        self._ask("leave")


def reach_machine(outside: Outside, fork_server: ForkServer, descriptor: int) -> VirtualMachine:
    """The machine with the process inside at the other end of a descriptor. Call its `open` next."""
    link = Link(descriptor, descriptor, _Answers(outside, fork_server).list_answers())
    link.start()
    return VirtualMachine(link)


@contextlib.contextmanager
def open_virtual_machine(
    kernel: Kernel, fork_server: ForkServer, *, memory: int = 768
) -> Iterator[tuple[Outside, VirtualMachine]]:
    """A machine with this kernel and this machine's programs, without a lock yet, connected to provider A.

    memory: in MiB. Raises LabError, with the end of its console.
    """
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(OuterWorld())
        stack.callback(world.close_taps)
        server = stack.enter_context(run_server(world))
        outside = Outside(world, server)
        directory = world.directory / "guest"
        directory.mkdir()
        cards = [Card(mac=lan.mac, descriptor=world.taps[lan.name]) for lan in LANS]
        guest = Guest(
            world.backbone,
            kernel,
            cards=cards,
            modules=(),
            directory=directory,
            player=True,
            memory=memory,
            own_time=True,
        )
        world.guest = stack.enter_context(guest)
        for lan in LANS:
            guest.set_carrier(LANS.index(lan), up=False)
        (guest.exchange / "source.tar").write_bytes(pack_source())
        (guest.exchange / "entry").write_text(server.entry)
        number = guest.start(_render_script(guest.exchange))
        assert guest.player is not None
        machine = reach_machine(outside, fork_server, guest.player.fileno())
        threading.Thread(target=_watch, args=(guest, number), name="inside", daemon=True).start()
        try:
            machine.open()
            yield outside, machine
        except LabError as error:
            raise LabError(f"{error}\n{_read_output(guest, number)}\n{guest.read_console()}") from error


def _render_script(exchange: Path) -> str:
    inside = python("-m", "psiphon_lab.guest.inside", "/dev/vport0p2", str(exchange), "/exchange/entry")
    return f"""
        set -e
        {UNPACK}
        mkdir -p {quote(exchange)} /run/lock
        mount --bind /exchange {quote(exchange)}
        chmod 666 /dev/net/tun # as udev does
        export {VARIABLE}={PACE} PYTHONPATH={PLACE}
        cd /
        exec {inside}
        """


def _read_output(guest: Guest, number: int) -> str:
    path = guest.exchange / f"{number}.out"
    return path.read_text(errors="replace")[-3000:] if path.exists() else ""


def _watch(guest: Guest, number: int) -> None:
    """Close the link when the process inside has ended, so that nobody waits for it."""
    with contextlib.suppress(LabError, OSError):
        guest.finish(number, seconds=_LONG)
    if guest.player is not None:
        with contextlib.suppress(OSError):
            guest.player.shutdown(2)
