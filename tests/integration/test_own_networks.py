# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""This machine's network has the tunnel's own addresses: the status says so, and its advice works."""

from __future__ import annotations

import pytest
from tests.integration.testbed import open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R10")]

CARD = LAN_A.interface


@pytest.mark.parametrize("has_route", [True, False], ids=["with a route", "whose route was refused"])
def test_it_is_said_and_it_opens_once_the_router_has_other_addresses(*, has_route: bool) -> None:
    with open_testbed(start=False) as testbed:
        client, router, machine = testbed.world.client, testbed.world.provider_a, testbed.machine
        before = client.run(["ip", "route", "show", "default", "dev", CARD]).stdout.split()
        router.run(["ip", "addr", "add", f"{names.TUN_IPV4}/24", "dev", LAN_A.port])
        client.run(["ip", "-6", "route", "del", "default"], check=False)
        client.run(["ip", "-4", "addr", "flush", "dev", CARD])
        client.run(["ip", "addr", "add", "10.200.3.57/24", "dev", CARD])
        if has_route:
            client.run(["ip", "route", "add", "default", "via", names.TUN_IPV4, "dev", CARD])
        machine.start_daemon()
        mark = testbed.world.mark()
        machine.wait_for(lambda: (machine.read_status() or {}).get("reason_code") == "subnet_taken", "the reason")
        status = machine.read_status() or {}
        assert names.TUN_IPV4_SUBNET in status["reason"]
        assert "router" in status["next_step"]
        assert not machine.lease_remains()
        testbed.assert_no_leak(mark)
        # Follow the advice: the router gets other addresses, and so does this machine.
        client.run(["ip", "-4", "addr", "flush", "dev", CARD])
        client.run(["ip", "addr", "add", f"{LAN_A.client4}/25", "dev", CARD])
        client.run(["ip", "route", "replace", *before, "dev", CARD])
        machine.wait_state("OPEN", seconds=60)
        assert testbed.page(4) == plan.SERVER4
