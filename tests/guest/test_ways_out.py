# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out that need modules which network namespaces of a test machine may not have, on Debian's kernels.

Each is tried three times in one guest: without the lock (the positive control), with the boot lock and no daemon, and
with the service, from when its tunnel was open. A device that one of them makes may have the service connect again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.guest.plain_line import UPLINK, Line, open_line, report
from tests.guest.ways import LIBRARY, SERVE, SHOOTER, WAYS, Way

from psiphon_lab.guest.kernels import Kernel

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(3600)]
PLUMBING = {"arp", "nd", "mld"}


class State(enum.StrEnum):
    """The states in which each way is tried."""

    CONTROL = "control"
    LOCKED = "locked"
    OPEN = "open"


@dataclass(frozen=True)
class Played:
    """What came of one way in one state.

    seen: how many of its frames were outside. leaks: every frame outside that is not innocent, in words.
    """

    made: bool
    seen: int
    leaks: tuple[str, ...]
    said: str


def play(line: Line, way: Way, state: State) -> Played:
    """Try it once."""
    mark = line.mark()
    done = line.guest.run(
        f"""{LIBRARY}
        (
            set -e
            {way.make}
        )
        made=$?
        [ "$made" = 0 ] && (
            {way.send}
        )
        (
            {way.end}
        ) >/dev/null 2>&1
        exit $made
        """,
        check=False,
    )
    frames = line.frames_since(mark)
    seen = sum(way.signs in frame.data for frame in frames)
    leaks = () if state is State.CONTROL else tuple(each.text for each in line.judge(frames) if each.is_leak)
    return Played(done.code == 0, seen, leaks, done.output)


def list_chosen(items: list[pytest.Item]) -> list[Way]:
    """The ways of the tests that will run."""
    specs = [getattr(item, "callspec", None) for item in items]
    chosen = [spec.params["way"].name for spec in specs if spec is not None and "way" in spec.params]
    return [way for way in WAYS if way.name in chosen]


@pytest.fixture(scope="module")
def played(
    kernel: Kernel, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[State, Played]]]:
    """Every way in every state."""
    ways = list_chosen(request.session.items)
    results: dict[str, dict[State, Played]] = {way.name: {} for way in ways}
    with open_line(kernel, tmp_path_factory.mktemp("guest")) as line:
        (line.guest.exchange / "shoot.py").write_text(SHOOTER)
        line.guest.run(UPLINK + SERVE)
        for state in State:
            if state is State.LOCKED:
                line.service.lock()
            elif state is State.OPEN:
                line.service.start()
                line.service.wait_open()
            for way in ways:
                found = results[way.name][state] = play(line, way, state)
                counts = {str(state): found.seen if found.made else None}
                report(name=way.title, kernel=kernel.version, beyond=way.beyond, **counts)
        line.service.wait_open()
        yield results


@pytest.mark.requirement("R2", "R5", "B4")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_way_that_is_open_without_the_lock_is_closed_with_it(
    played: dict[str, dict[State, Played]], way: Way
) -> None:
    """Or SECURITY.md says that it is not."""
    found = played[way.name]
    assert all(each.made for each in found.values()), found
    assert found[State.CONTROL].seen, ("the control", found)
    for state in (State.LOCKED, State.OPEN):
        if way.beyond:
            assert found[state].seen, (state, "it is closed after all: SECURITY.md says more than is true", found)
        else:
            assert found[state].seen == 0, (state, found)
            assert not found[state].leaks, (state, found)
