# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Shots: each in a process of its own, or several of a user in one, as an emulated machine has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks import list_modules
from psiphon_lab.fork_server import Child, ForkServer, Shot
from psiphon_lab.launch import clean_environment
from psiphon_lab.probe import FIRST_PORT
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.sending import ECHO, probe, send_frame
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

pytestmark = pytest.mark.lab
ROUTER = LAN_A.router4


class SharingForkServer(ForkServer):
    """As in a guest."""

    def launch(self) -> Child:
        code = "import sys; from psiphon_lab.fork_server import serve; serve(sys.argv[1:], sharing=True)"
        return subprocess.Popen(
            [sys.executable, "-c", code, *self.modules],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )


@pytest.fixture(params=[ForkServer, SharingForkServer])
def fork_server(request: pytest.FixtureRequest) -> Iterator[ForkServer]:
    with request.param(list_modules()) as made:
        yield made


def make_shot(number: int, name: str = "shot") -> Shot:
    return Shot(name=name, family=4, token=f"lk{number:08d}", source_port=FIRST_PORT + number)


def test_shots_of_root_and_of_a_user_leave_by_the_hosts_own_wires(fork_server: ForkServer, shared_world: World) -> None:
    mark = shared_world.mark()
    client = shared_world.client
    orders = [
        fork_server.order(client, probe, make_shot(number), uid=uid, arguments={
            "kind": "udp", "target": ROUTER, "port": ECHO})
        for number, uid in enumerate((0, NOBODY, 0))
    ]  # fmt: skip
    frame = {"interface": LAN_A.interface, "mac": LAN_A.mac, "source": LAN_A.client4, "target": ROUTER}
    allowed = fork_server.order(client, send_frame, make_shot(3), arguments=frame)
    refused = fork_server.order(client, send_frame, make_shot(4), uid=NOBODY, arguments=frame)
    assert [fork_server.wait(order).rounds for order in orders] == [1, 1, 1]
    assert fork_server.wait(allowed).results == {"sent": 1}
    assert fork_server.wait(refused).results == {"denied EPERM": 1}
    data = b"".join(frame.data for frame in shared_world.frames_since(mark))
    assert [make_shot(number).data in data for number in range(5)] == [True, True, True, True, False]


def test_a_shot_is_repeated_until_a_file_exists(fork_server: ForkServer, shared_world: World) -> None:
    mark = shared_world.mark()
    end = Path(shared_world.directory, "end")
    end.unlink(missing_ok=True)
    order = fork_server.order(
        shared_world.client, probe, make_shot(5), uid=NOBODY, until=end,
        arguments={"kind": "udp", "target": ROUTER, "port": ECHO},
    )  # fmt: skip
    seen = partial(shared_world.frames_since, mark)
    wait_until(lambda: sum(make_shot(5).data in frame.data for frame in seen()) > 2, "several rounds")
    end.touch()
    assert fork_server.wait(order).rounds > 2
