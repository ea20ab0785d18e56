# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that plays attacks inside a virtual machine, here in a namespace, with a socket as its link.

So everything except the emulated computer is tried at full speed. The kernel is this machine's.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psiphon_lab.addresses import Lan
from psiphon_lab.attacks import list_modules
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.leaktest.cell import Cell
from psiphon_lab.leaktest.matrix import conclude_all
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.testbed import Outside
from psiphon_lab.leaktest.virtual_machine import LANS, OuterWorld, VirtualMachine, reach_machine
from psiphon_lab.leaktest.worker import play_state
from psiphon_lab.namespace import Host, begin_host, finish_host
from psiphon_lab.server_process import run_server
from psiphon_lab.topology import add_cable
from psiphon_lab.world import World

pytestmark = pytest.mark.lab


class WorldAroundNamespace(OuterWorld):
    """A world in which one more host takes the machine's place."""

    machine: Host

    def prepare_hosts(self) -> None:
        made = begin_host("machine", directory=self.directory / "hosts" / "machine", expose=(self.directory,))
        self.hosts["machine"] = made
        self.machine = finish_host(made)
        for lan in LANS:
            add_cable(self.machine, lan.interface, self.hosts[lan.name], lan.port, mac=lan.mac)

    def set_carrier(self, lan: Lan, *, up: bool) -> None:
        World.set_carrier(self, lan, up=up)


@pytest.fixture(scope="module")
def reached() -> Iterator[tuple[Outside, VirtualMachine]]:
    ours, theirs = socket.socketpair()
    with (
        ForkServer(list_modules()) as fork_server,
        WorldAroundNamespace() as world,
        run_server(world) as server,
        ours,
    ):
        shared = world.directory / "shared"
        shared.mkdir()
        (shared / "entry").write_text(server.entry)
        with theirs, (world.directory / "inside.log").open("wb") as log:
            # Its own directory below /run, as in a machine that has just started.
            world.machine.spawn(
                ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", sys.executable, "-m",
                 "psiphon_lab.guest.inside", str(theirs.fileno()), str(shared), str(shared / "entry")],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        outside = Outside(world, server)
        machine = reach_machine(outside, fork_server, ours.fileno())
        machine.open()
        yield outside, machine
        ours.shutdown(socket.SHUT_RDWR)


def play(reached: tuple[Outside, VirtualMachine], attacks: list[str], mode: Mode, tmp_path: Path) -> list[Any]:
    reported: list[Any] = []
    play_state(*reached, attacks, mode, recordings=tmp_path, tell=reported.append)
    return reported


def test_attacks_inside_are_seen_outside_and_held(reached: tuple[Outside, VirtualMachine], tmp_path: Path) -> None:
    """A01 is inside, A07 begins before each lock, A11c needs a program outside, A14 shoots there, A16 moves cables."""
    wanted = ["A01", "A07", "A11c", "A14", "A16"]
    modes = (Mode.BOOT, Mode.CONNECTING, Mode.OPEN, Mode.FLUSHED)
    cells: list[Cell] = []
    for mode in (Mode.CONTROL, *modes):
        cells += play(reached, wanted if mode is not Mode.FLUSHED else ["A07", "A14"], mode, tmp_path)
    from psiphon_lab.attacks import load_attacks

    attacks = [attack for attack in load_attacks() if attack.id in wanted]
    result = conclude_all(attacks, modes, cells, seconds=0.0)
    poor = [(cell["attack"], cell["state"], cell["reason"]) for cell in result.cells if cell["verdict"] != "held"]
    assert not [entry for entry in poor if "lacks" not in entry[2] and "not played" not in entry[2]]
    assert result.count()["held"] >= 11


def test_what_its_kernel_lacks_is_asked_there(reached: tuple[Outside, VirtualMachine]) -> None:
    assert set(reached[1].find_missing()) <= {"fib", "rt", "bridge_ports", "egress_hook", "owner_flag"}
