# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""On a network that censors: a page comes again by another server or protocol, or `status` says why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.conftest import Figure

from psiphon_lab.censor_figures import measure_bare
from psiphon_lab.censored import (
    Censored,
    Fetch,
    list_strikes,
    measure_next_page,
    open_censored,
    open_service,
    wait_for_page,
)
from psiphon_lab.judge import find_leaks
from psiphon_lab.machine import Machine
from psiphon_lab.pages import fetch_page
from psiphon_lab.provider_censor import ByAddress, ByPort, Throttle
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

TO_TELL_SECONDS = 30.0
"""Within which a censor that stops everything has to be explained."""
STRIKES = (
    "the server's address",
    "the server, by resets",
    "all ports but 80 and 443",
    "what is no TLS or HTTP",
    "what a connection carries after 40 kB",
)
BARE = "the server's address"


@dataclass
class Scene:
    """A network that can censor, and the service on it. bare: what the core alone took, in seconds."""

    censored: Censored
    machine: Machine
    bare: float

    @property
    def fetch(self) -> Fetch:
        return lambda: fetch_page(self.censored.world.client)

    def status(self) -> dict[str, Any]:
        status = self.machine.read_status()
        assert status is not None
        return status

    def assert_no_leak(self, mark: dict[str, int]) -> None:
        frames = self.censored.world.frames_since(mark)
        assert [leak.text for leak in find_leaks(frames, self.censored.internet.judge_by())] == []


@pytest.fixture(scope="module")
def module_scene() -> Iterator[Scene]:
    """The bare core comes first: the lock stays when a service ends."""
    with open_censored() as censored:
        bare = measure_bare(censored, list_strikes(censored)[BARE])
        with open_service(censored) as machine:
            yield Scene(censored, machine, bare)


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    """Open, and nothing is censored, before and after."""
    module_scene.censored.censor.lift()
    module_scene.censored.know("NL", "DE")
    module_scene.machine.command("restart")
    module_scene.machine.wait_state("OPEN")
    yield module_scene
    module_scene.censored.censor.lift()


def test_the_strikes_are_all_that_there_are(scene: Scene) -> None:
    assert tuple(list_strikes(scene.censored)) == STRIKES


@pytest.mark.requirement("R1", "R6")
@pytest.mark.parametrize("name", STRIKES)
def test_a_censor_that_leaves_a_way_is_survived_and_nothing_leaks_meanwhile(
    scene: Scene, name: str, figure: Figure
) -> None:
    mark = scene.censored.world.mark()
    page = measure_next_page(scene.censored, scene.fetch, list_strikes(scene.censored)[name])
    figure(f"a censor stops {name}: to the next page, s", page.seconds)
    if name == BARE:
        figure("the same with the bare core, s", scene.bare)
    assert name not in STRIKES[:2] or page.before != page.after
    assert (scene.machine.read_status() or {})["locked"] is True
    scene.assert_no_leak(mark)


@pytest.mark.requirement("R1")
def test_a_throttled_server_is_slow_and_carries_pages(scene: Scene) -> None:
    before = wait_for_page(scene.censored.internet, scene.fetch)
    scene.censored.censor.impose(Throttle(scene.censored.list_addresses(before), 20_000))
    wait_for_page(scene.censored.internet, scene.fetch)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("name", ["addresses", "ports"])
def test_when_all_known_servers_are_stopped_the_reason_says_how_many_are_known_and_that_none_answers(
    scene: Scene, name: str, figure: Figure
) -> None:
    mark = scene.censored.world.mark()
    every = scene.censored.list_addresses("NL", "DE", "SE")
    scene.censored.censor.impose(ByAddress(every) if name == "addresses" else ByPort((80,)))
    scene.machine.command("restart")
    scene.censored.censor.wait_until_it_stops_something()
    took = wait_until(lambda: scene.status()["reason_code"] == "slow", "the reason", timeout=TO_TELL_SECONDS)
    figure(f"a censor stops all {name}: until the reason says so, s", took)
    status = scene.status()
    assert (status["servers"]["known"], status["servers"]["tried"], status["locked"]) == (2, 2, True)
    assert "no Psiphon server has answered" in status["reason"]
    assert "another network" in status["next_step"]
    scene.censored.censor.lift()
    scene.machine.wait_state("OPEN")
    scene.assert_no_leak(mark)


@pytest.mark.requirement("R1")
def test_a_server_that_is_learned_of_brings_back_what_was_stopped(scene: Scene) -> None:
    scene.censored.censor.impose(ByAddress(scene.censored.list_addresses("NL", "DE")))
    scene.machine.command("restart")
    scene.censored.censor.wait_until_it_stops_something()
    scene.censored.know("NL", "DE", "SE")
    scene.machine.command("restart")
    assert wait_for_page(scene.censored.internet, scene.fetch) == "SE"
