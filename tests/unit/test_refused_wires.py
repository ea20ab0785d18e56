# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Wires that were refused an egress guard: remembered by name and index, and tried again before long."""

from __future__ import annotations

import pytest

from psiphon_vpn.linux.refused_wires import FIRST_SECONDS, LAST_SECONDS, RefusedWires

pytestmark = pytest.mark.requirement("B4")
WIRES = ("eth0", "bad0", "eth1")


class Machine:
    """Interfaces and a clock."""

    def __init__(self) -> None:
        self.indexes = {"eth0": 2, "bad0": 3, "eth1": 4}
        self.now = 1000.0
        self.refused = RefusedWires(find=self.indexes.get, clock=lambda: self.now)

    def refuse(self, *names: str) -> None:
        self.refused.note(dict(self.indexes), set(self.indexes) - set(names))


def test_a_wire_that_was_refused_is_left_out_and_no_other() -> None:
    machine = Machine()
    assert machine.refused.leave_out(WIRES) == WIRES
    assert machine.refused.wait is None
    machine.refuse("bad0")
    assert machine.refused.leave_out(WIRES) == ("eth0", "eth1")
    assert machine.refused.wait == FIRST_SECONDS


def test_what_the_opening_rests_on_is_tried_each_time() -> None:
    machine = Machine()
    machine.refuse("bad0", "eth0")
    assert machine.refused.leave_out(WIRES, keep=("eth0",)) == ("eth0", "eth1")


@pytest.mark.parametrize("index", [9, None], ids=["another", "gone"])
def test_another_device_under_the_name_is_another_wire(index: int | None) -> None:
    machine = Machine()
    machine.refuse("bad0")
    if index is None:
        del machine.indexes["bad0"]
    else:
        machine.indexes["bad0"] = index
    assert machine.refused.leave_out(WIRES) == WIRES
    assert machine.refused.wait is None
    machine.indexes["bad0"] = 3
    assert machine.refused.leave_out(WIRES) == WIRES, "forgotten, even if the index comes again"


def test_a_device_that_came_or_went_while_the_rules_were_loaded_was_not_refused() -> None:
    machine = Machine()
    asked = {**machine.indexes, "bad0": 7}
    machine.refused.note(asked, {"eth0", "eth1"})
    del machine.indexes["eth1"]
    machine.refused.note(asked, {"eth0"})
    assert machine.refused.leave_out(WIRES) == WIRES


def test_it_is_tried_again_ever_more_slowly_and_never_given_up() -> None:
    machine = Machine()
    machine.refuse("bad0")
    assert machine.refused.take_due() == frozenset()
    pauses = []
    for _ in range(12):
        wait = machine.refused.wait
        assert wait is not None
        pauses.append(wait)
        machine.now += wait
        assert machine.refused.wait == 0
        assert machine.refused.take_due() == {"bad0"}
        # Another refused load meanwhile does not change when it is tried.
        machine.refuse("bad0")
    assert pauses[0] == FIRST_SECONDS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_SECONDS


def test_one_that_got_its_guard_is_a_wire_like_any_other() -> None:
    machine = Machine()
    machine.refuse("bad0")
    machine.refuse()
    assert machine.refused.leave_out(WIRES) == WIRES
    assert machine.refused.wait is None
