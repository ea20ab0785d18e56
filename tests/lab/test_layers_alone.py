# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each layer alone, without the others: it stops what the table says, and nothing else.

`psiphon_lab.layers_table` has the table, `layers_alone` the scene. A cell that says "stops" has its positive control in
the same world without any layer. An empty cell is tested as well, so that the table claims neither too much nor too
little.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.layers_alone import Scene
from psiphon_lab.layers_table import HOLDS, KINDS, REDIRECTED
from psiphon_lab.world import World

pytestmark = [pytest.mark.lab]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with World() as world:
        made = Scene(world)
        yield made
        made.close()


@pytest.fixture(scope="module")
def control(scene: Scene) -> dict[str, list[str]]:
    """The shots of each kind, all of which are seen without any layer; otherwise they prove nothing later."""
    with scene.layer(None):
        shots, seen, _ = scene.find_seen(KINDS, None)
    assert {name for group in shots.values() for name in group} == seen
    return shots


@pytest.mark.requirement("R1", "R2", "R4", "R5", "R7", "R9", "R19", "B3", "B4")
@pytest.mark.parametrize("layer", HOLDS)
def test_a_layer_alone_stops_what_the_table_says_and_nothing_else(
    scene: Scene, control: dict[str, list[str]], layer: str
) -> None:
    with scene.layer(layer):
        shots, seen, frames = scene.find_seen(HOLDS[layer], layer)
        assert seen == set()
        assert [leak.text for leak in find_leaks(frames, world_evidence())] == []
        assert all(len(shots[kind]) == len(control[kind]) for kind in HOLDS[layer])
    with scene.layer(layer):
        others = [kind for kind in KINDS if kind not in HOLDS[layer]]
        shots, seen, _ = scene.find_seen(others, layer)
        assert [kind for kind in others if not seen.intersection(shots[kind])] == [], "stopped, but not in the table"


def test_every_kind_of_traffic_is_stopped_by_at_least_two_layers_alone() -> None:
    """If a program removes one layer, another one remains, except for frames that traffic control moves."""
    few = {kind: n for kind in KINDS if (n := sum(kind in held for held in HOLDS.values())) < 2}
    assert few == {REDIRECTED: 1}
