# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that lack a part of nf_tables: what is missing is named, the rest holds, and the service opens."""

from __future__ import annotations

import os

import pytest
from tests.integration.nft_without_parts import put_limited_nft
from tests.integration.testbed import open_testbed

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

PARTS = {
    "fib": "fib daddr",
    "nat": "type nat ",
    "rt": "rt ip6? nexthop",
    "reject": "reject with",
}


@pytest.mark.requirement("R1", "R2", "R22")
@pytest.mark.parametrize("part", [*PARTS, "all"])
def test_without_a_part_it_says_so_opens_and_lets_nothing_else_out(part: str) -> None:
    with open_testbed(start=False) as testbed:
        put_limited_nft(testbed.world, PARTS.get(part, "|".join(PARTS.values())))
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        status = testbed.machine.read_status()
        assert status is not None
        assert sorted(status["missing_features"]) == (sorted(PARTS) if part == "all" else [part])
        assert status["locked"]
        testbed.probe()
