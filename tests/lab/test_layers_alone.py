"""Each layer alone, with all the others taken away: what it is said to stop it stops, and what not comes through.

`psiphon_lab.layers_table` holds the table, `layers_alone` the scene. A cell that says "stops" has its positive
control in the same world without any layer; one that says nothing is held to that too, so that the table neither boasts
nor hides.
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
    """What is seen of each kind without any layer: every shot, or it proves nothing later."""
    with scene.layer(None):
        shots, seen, _ = scene.find_seen(KINDS, None)
    assert {name for group in shots.values() for name in group} == seen
    return shots


@pytest.mark.requirement("R1", "R2", "R4", "R5", "R7", "R9", "R19", "B3", "B4")
@pytest.mark.parametrize("layer", HOLDS)
def test_a_layer_alone_stops_what_it_is_said_to_stop_and_no_more(
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
        assert [kind for kind in others if not seen.intersection(shots[kind])] == [], "stopped, and the table says no"


def test_every_kind_of_traffic_is_stopped_by_at_least_two_layers_alone() -> None:
    """Whatever one program takes away, another layer stands. But for what traffic control moves past all others."""
    few = {kind: n for kind in KINDS if (n := sum(kind in held for held in HOLDS.values())) < 2}
    assert few == {REDIRECTED: 1}
