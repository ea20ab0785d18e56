# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The process inside a guest that plays attacks there: `python -m psiphon_lab.guest.inside PORT SHARED ENTRY-FILE`.

PORT is the path of a port of the guest's serial device, or the number of an open descriptor.

It runs the same machine, states and attacks as the matrix does in namespaces. The link through a port of the guest's
serial device leads to what is outside.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from psiphon_lab.attacks import list_modules
from psiphon_lab.guest.distant import DistantServer, InnerTestbed, InnerWorld, SplitForkServer
from psiphon_lab.leaktest.model import Mode
from psiphon_lab.leaktest.player import LocalPlayer, Played
from psiphon_lab.leaktest.testbed import reserve_core_ports
from psiphon_lab.link import Link
from psiphon_lab.machine import Machine
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.standin_faults import write_faults

DIRECTORY = Path("/run/world")


class Inside:
    """What the laboratory may ask for."""

    def __init__(self, fork_server: SplitForkServer, *, shared: Path, entry: str) -> None:
        self._fork_server = fork_server
        self._shared = shared
        self._entry = entry
        self._stack = contextlib.ExitStack()
        self._player: LocalPlayer | None = None
        self.link: Link | None = None

    def list_answers(self) -> dict[str, Any]:
        """What can be asked, by name."""
        return {name: getattr(self, name) for name in ("open", "find_missing", "begin", "enter", "play", "leave")}

    def open(self) -> None:
        """Connect the client, and have everything ready for an attack."""
        assert self.link is not None
        stack, link = self._stack, self.link
        self._fork_server.link = link
        world = stack.enter_context(InnerWorld(link, directory=DIRECTORY, shared=self._shared))
        reserve_core_ports(world)
        place = DIRECTORY / "core"
        place.mkdir()
        place.chmod(0o755)
        faults = place / "faults.json"
        write_faults(faults)
        core = write_core_wrapper(place, faults)
        machine = stack.enter_context(Machine(world, core=core, entry=lambda: self._entry))
        testbed = InnerTestbed(link, world=world, server=DistantServer(self._entry), machine=machine, faults=faults)
        self._player = LocalPlayer(testbed, self._fork_server)

    def find_missing(self) -> tuple[str, ...]:
        """See `Player`."""
        assert self._player is not None
        return self._player.find_missing()

    def begin(self, mode: Mode, attacks: tuple[str, ...]) -> None:
        """See `Player`."""
        assert self._player is not None
        self._player.begin(mode, attacks)

    def enter(self) -> None:
        """See `Player`."""
        assert self._player is not None
        self._player.enter()

    def play(self, attack: str) -> Played:
        """See `Player`."""
        assert self._player is not None
        return self._player.play(attack)

    def leave(self) -> None:
        """See `Player`."""
        assert self._player is not None
        self._player.leave()


def main() -> int:
    """Answer until the laboratory closes the link."""
    port, shared, entry = sys.argv[1:]
    with SplitForkServer(list_modules()) as fork_server:
        inside = Inside(fork_server, shared=Path(shared), entry=Path(entry).read_text(encoding="ascii").strip())
        descriptor = int(port) if port.isdigit() else os.open(port, os.O_RDWR)
        inside.link = Link(descriptor, descriptor, inside.list_answers())
        inside.link.start()
        inside.link.wait_for_end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
