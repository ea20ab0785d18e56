# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The service connects with nothing but a stored list: verified, sealed, and handed to the core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_lab.internet import Internet, open_internet
from psiphon_lab.machine import Machine
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.world import World
from psiphon_vpn.servers.profile import load_profile_in
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.system.layout import Layout

pytestmark = pytest.mark.lab


class Scene:
    """A machine whose configuration names no server, and root's lists."""

    def __init__(self, world: World, internet: Internet, core: Path) -> None:
        self.internet = internet
        self.machine = Machine(world, core=core, entry=lambda: internet.entry, settings={"servers": "lab"})

    def prepare(self) -> None:
        self.machine.trust_network("lab", self.internet.list_host.signer.render_profile("https://list.example/list"))
        self.machine.write_config(target=False)
        self.profile = load_profile_in(self.machine.config_path.with_name("profiles"), "lab")
        self.layout = Layout(root=self.machine.config_path.with_name("root"))
        self.store = ServerStore(self.layout)

    def add(self, *regions: str) -> None:
        self.store.add(self.internet.sign(*regions), source="a stick", profile=self.profile)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with World() as world, open_internet(world) as internet:
        directory = world.directory / "core"
        directory.mkdir()
        directory.chmod(0o755)
        made = Scene(world, internet, write_core_wrapper(directory))
        with made.machine as machine:
            made.prepare()
            machine.boot_lock()
            machine.hold_guard()
            yield made


@pytest.mark.requirement("R11", "R13")
def test_a_machine_with_a_stored_list_connects_and_asks_nobody_for_a_name(scene: Scene) -> None:
    scene.add("NL", "DE")
    scene.machine.start_daemon()
    status = scene.machine.wait_state("OPEN")
    assert status["region"] in {"NL", "DE"}
    assert status["servers"]["list"]["entries"] == 2
    assert status["servers"]["list_flaw"] is None


@pytest.mark.requirement("R13")
def test_a_list_that_was_changed_on_the_disk_is_not_used_and_the_status_says_so(scene: Scene) -> None:
    scene.add("NL", "DE")
    place = scene.layout.servers_current / "list"
    content = place.read_bytes()
    place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    scene.machine.start_daemon()

    def says_so() -> bool:
        status = scene.machine.read_status() or {}
        return bool(status.get("servers", {}).get("list_flaw") == "damaged")

    scene.machine.wait_for(says_so, "the flaw is in the status")
    scene.add("DE")
    scene.machine.command("restart")
    assert scene.machine.wait_state("OPEN")["region"] == "DE"
