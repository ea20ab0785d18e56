# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""States that are a loop: attacks in them last for at least one whole turn."""

from __future__ import annotations

import threading

from psiphon_lab.leaktest.held_state import Loop


def test_a_loop_is_at_the_same_point_again_only_after_a_whole_turn() -> None:
    begun, turn = threading.Semaphore(0), threading.Semaphore(0)
    order: list[str] = []

    def make_turn() -> None:
        begun.release()
        turn.acquire()
        order.append("turn")

    loop = Loop(make_turn, pause=0.0)
    begun.acquire()
    point = loop.locate()

    def wait() -> None:
        loop.wait_past(point)
        order.append("past")

    waiting = threading.Thread(target=wait)
    waiting.start()
    turn.release()
    begun.acquire()
    waiting.join()
    turn.release(2)
    loop.end()
    assert order[:2] == ["turn", "past"]


def test_a_loop_that_has_trouble_is_not_waited_for() -> None:
    def fail() -> None:
        raise OSError("trouble")

    loop = Loop(fail)
    loop.wait_past((5, 0.0))
    loop.end()
    assert loop.trouble == "trouble"
