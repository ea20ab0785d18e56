# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of attacks, faults and commands: a short run of what `leaktest --chaos` does for hours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from psiphon_lab.attacks import list_modules
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.leaktest import chaos
from psiphon_lab.leaktest.chaos import STEPS, Failure, draw_steps, play_episode, shrink

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]


def test_a_seed_gives_the_same_steps_again_and_another_seed_others() -> None:
    assert draw_steps("1:0") == draw_steps("1:0")
    assert draw_steps("1:0") != draw_steps("1:1")
    assert {name for number in range(60) for name in draw_steps(f"x:{number}")} == set(STEPS)


def test_a_failure_is_made_as_small_as_it_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def play(steps: tuple[str, ...], _hands: object, _recording: Path) -> tuple[Failure | None, int]:
        bad = "TUN down" in steps and "stop" in steps
        return (Failure(what="leak", steps=tuple(steps)) if bad else None), 1

    monkeypatch.setattr(chaos, "play_episode", play)
    steps = ("start", "stop", "reload", "TUN down", "link flaps", "restart", "core killed")
    fork_server: ForkServer = ForkServer.__new__(ForkServer)
    assert shrink(Failure(what="leak", steps=steps), fork_server, tmp_path / "r").steps == ("stop", "TUN down")


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=4, max_size=6))
def test_no_frame_leaks_whatever_happens_in_whatever_order_and_the_service_comes_back(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ForkServer(list_modules()) as fork_server:
        failure, frames = play_episode(steps, fork_server, tmp_path_factory.mktemp("chaos") / "frames.pcapng")
    assert failure is None, failure
    assert frames
