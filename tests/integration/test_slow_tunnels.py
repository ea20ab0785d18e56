# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A tunnel over a slow, lossy or throttled line does not count as dead: it stays open, with the same core."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.integration.transitions import list_ends

from psiphon_lab import addresses as plan
from psiphon_lab.censored import Censored, open_censored, open_service, wait_for_page
from psiphon_lab.machine import Machine
from psiphon_lab.pages import fetch_page
from psiphon_lab.provider_censor import ByAddress, Throttle
from psiphon_lab.slow_line import SlowLine
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.core_sockets import read_last_heard

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

QUESTIONS = 8
"""So many have to be asked and answered before a test takes the tunnel to have lasted."""
PATIENCE = 120.0
NOBODY_ANSWERS = plan.INTERNET4, 9
"""The discard port: applications that send there get no answer, so that the tunnel is asked again and again."""
ENDLESS_PORT = 8181
SEND_FOR_EVER = f"""
import socket, threading
def serve(peer):
    while True:
        peer.sendall(bytes(65536))
listening = socket.create_server(("{plan.INTERNET4}", {ENDLESS_PORT}))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()
"""
READ_FOR_EVER = f"""
import socket
peer = socket.create_connection(("{plan.INTERNET4}", {ENDLESS_PORT}))
while peer.recv(65536):
    pass
"""
ASK_IN_VAIN = f"""
import socket, time
sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        sending.sendto(b"anybody?", {NOBODY_ANSWERS})
    except OSError:
        pass  # locked
    time.sleep(0.2)
"""


@dataclass
class Scene:
    """A network that can be slow, and the service on it."""

    censored: Censored
    machine: Machine

    def count_questions(self) -> int:
        """How many questions of the service a tunnel has carried so far. Each has a port, and is sent repeatedly."""
        hosts = [server.place.host for server in self.censored.internet.servers.values()]
        rows = [(host, row) for host in hosts for row in self.censored.world.read_record(host)]
        return len({(host, row["port"]) for host, row in rows if (row.get("name"), row.get("kind")) == ("", "NS")})

    @contextlib.contextmanager
    def use(self, script: str) -> Iterator[subprocess.Popen[bytes]]:
        """An application on the client, meanwhile."""
        child = self.censored.world.client.spawn([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        try:
            yield child
        finally:
            child.kill()
            child.wait()

    def outlast(self, questions: int = QUESTIONS) -> None:
        """Until the tunnel has been asked so often; fail unless it stayed open with the same core meanwhile."""
        status = self.machine.wait_state("OPEN", seconds=PATIENCE)
        logged, before = len(self.machine.read_log()), self.count_questions()
        self.machine.wait_for(
            lambda: self.count_questions() >= before + questions, "the questions, carried", seconds=PATIENCE
        )
        assert list_ends(self.machine.read_log()[logged:]) == []
        assert self.machine.wait_state("OPEN", seconds=PATIENCE)["core_pid"] == status["core_pid"]


@pytest.fixture(scope="module")
def module_scene() -> Iterator[Scene]:
    with open_censored() as censored, open_service(censored) as machine:
        yield Scene(censored, machine)


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    """Open, on a quick line."""
    module_scene.machine.command("restart")
    module_scene.machine.wait_state("OPEN")
    yield module_scene
    module_scene.censored.censor.lift()


@pytest.mark.requirement("R1")
def test_two_seconds_of_latency_and_lost_packets_are_no_dead_tunnel(scene: Scene) -> None:
    with SlowLine(scene.censored.world.provider_a, delay=1.0, loss=0.03), scene.use(ASK_IN_VAIN):
        scene.outlast()


@pytest.mark.requirement("R1")
def test_a_quick_line_that_loses_every_tenth_packet_is_no_dead_tunnel(scene: Scene) -> None:
    with SlowLine(scene.censored.world.provider_a, delay=0.03, loss=0.1), scene.use(ASK_IN_VAIN):
        scene.outlast(2 * QUESTIONS)


@pytest.mark.requirement("R1")
def test_a_throttled_tunnel_that_is_full_is_no_dead_tunnel(scene: Scene) -> None:
    region = wait_for_page(scene.censored.internet, lambda: fetch_page(scene.censored.world.client))
    sender = scene.censored.world.internet.spawn([sys.executable, "-c", SEND_FOR_EVER], stdout=subprocess.PIPE)
    try:
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"ready\n"
        with scene.use(READ_FOR_EVER):
            scene.censored.censor.impose(Throttle(scene.censored.list_addresses(region), 20_000))
            scene.censored.censor.wait_until_it_stops_something()
            scene.outlast(3)
    finally:
        sender.kill()
        sender.wait()


@pytest.mark.requirement("R1")
def test_a_dead_tunnel_is_a_dead_tunnel(scene: Scene) -> None:
    """The positive control: on the same slow line, with the same application, a server that is blocked is given up."""
    region = wait_for_page(scene.censored.internet, lambda: fetch_page(scene.censored.world.client))
    with SlowLine(scene.censored.world.provider_a, delay=0.3, loss=0.03), scene.use(ASK_IN_VAIN):
        logged = len(scene.machine.read_log())
        scene.censored.censor.impose(ByAddress(scene.censored.list_addresses(region)))
        # Found by a question, or by the check after a lease that a busy machine renewed too late.
        given_up = re.compile("(OPEN|VERIFYING) -> (CONNECTING|LOCKED)")
        wait_until(lambda: given_up.search(scene.machine.read_log()[logged:]) is not None, "given up", timeout=PATIENCE)


def test_the_kernel_tells_when_it_heard_of_the_server_last(scene: Scene) -> None:
    """And that it has heard nothing any more, once packets are dropped on their way."""
    client = scene.censored.world.client
    index = client.netlink(lambda ipr: int(ipr.link_lookup(ifname=plan.LAN_A.interface)[0]))

    def hear() -> float | None:
        return client.call(lambda: read_last_heard(scene.machine.identity.uid, index))

    region = wait_for_page(scene.censored.internet, lambda: fetch_page(client))
    wait_until(lambda: (heard := hear()) is not None and heard < 1.0, "what was just heard")
    scene.censored.censor.impose(ByAddress(scene.censored.list_addresses(region)))
    wait_until(lambda: (heard := hear()) is not None and heard >= 1.0, "silence")
    assert client.call(lambda: read_last_heard(scene.machine.identity.uid + 1, index)) is None
