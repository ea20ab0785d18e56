# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""All known servers are blocked, and the rescue is censored in every way: a page comes, or the status says why not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import Figure

from psiphon_lab import addresses as plan
from psiphon_lab import provider_censor
from psiphon_lab.censored import Censored, open_censored
from psiphon_lab.censored_rescue import LIE, NEW, RESCUE_CENSORS, forget, measure_rescue, open_rescued
from psiphon_lab.dns_message import encode_query, read_answers
from psiphon_lab.frames import decode_ip
from psiphon_lab.judge import find_leaks
from psiphon_lab.machine import Machine

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")
CONSTANTS = "RESCUE_SECONDS=1,FIRST_SECONDS=0.1,SLOW_SECONDS=1,CONNECT_SECONDS=2"
SECONDS = 120.0
WAYS = {"ByAddress", "ByPort", "ByProtocol", "ByReset", "AfterBytes", "Throttle", "PoisonedNames", "ByServerName"}


@dataclass
class Scene:
    censored: Censored
    machine: Machine


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with open_censored() as censored, open_rescued(censored, program=[str(HASTY), CONSTANTS]) as machine:
        yield Scene(censored, machine)


def test_every_way_to_censor_is_tried() -> None:
    ways = {name for name, kind in vars(provider_censor).items() if isinstance(kind, type) and hasattr(kind, "render")}
    assert ways - {"Censor"} == WAYS
    tried = {type(censor).__name__ for case in RESCUE_CENSORS.values() for censor in case.censors}
    assert tried == WAYS


def look_up(name: str) -> list[str]:
    """The answer to a DNS query from a host without the service."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((plan.INTERNET4, 53))
        sock.send(encode_query(7, name, 1))
        return list(read_answers(sock.recv(4096))[2])


@pytest.mark.requirement("R1", "R3", "R11")
@pytest.mark.parametrize("name", RESCUE_CENSORS)
def test_a_censored_rescue_is_survived_or_reported_in_one_right_sentence_and_nothing_leaks(
    scene: Scene, name: str, figure: Figure
) -> None:
    case, censored = RESCUE_CENSORS[name], scene.censored
    censored.censor.lift()
    forget(scene.machine)
    mark = censored.world.mark()
    try:
        found = measure_rescue(censored, scene.machine, case.censors, seconds=SECONDS)
        # Before the censor is lifted: then it connects, and has nothing to advise.
        status = scene.machine.read_status()
        assert censored.censor.count() > 0
        frames = censored.world.frames_since(mark)
        if "poisoned" in name:
            # The positive control: a host that looks the name up gets a false answer.
            assert censored.world.neighbour.call(lambda: look_up(plan.LIST_NAME)) == [LIE]
    finally:
        censored.censor.lift()
    packets = [packet for packet in (decode_ip(frame.data) for frame in frames if frame.from_client) if packet]
    assert not [packet for packet in packets if packet.protocol in {6, 17} and packet.destination_port == 53]
    asked = [packet for packet in packets if packet.destination in {plan.LIST_HOST4, plan.LIST_HOST6}]
    assert asked, "the captures see the rescue"
    assert [leak.text for leak in find_leaks(frames, censored.internet.judge_by())] == []
    if case.survived:
        assert found.region == NEW
        figure(f"the rescue's times shortened, stopped: {name}: to the next page, s", found.page)
    else:
        assert (found.region, found.reason) == (None, "slow")
        assert "no Psiphon server has answered" in found.sentence
        assert "2 servers known" in found.sentence
        assert status is not None
        assert status["locked"] is True
        assert "another network" in status["next_step"]
