# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""With the real core, an upstream proxy that wants a password, and nobody else on the wire: the tunnel, and the rescue.

The stand-in core knows no upstream proxy, so this needs the real programs: --core PATH --server PATH.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from psiphon_lab import addresses as plan
from psiphon_lab.censored import Censored, open_censored
from psiphon_lab.censored_rescue import KNOWN, NETWORK, NEW, forget, open_rescued
from psiphon_lab.frames import decode_ip
from psiphon_lab.pages import fetch_page
from psiphon_lab.proxy_host import PASSWORD, PORT, USER, run_proxy
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.waiting import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SECONDS = 120.0


def list_calls(censored: Censored, mark: dict[str, int]) -> set[tuple[str, int]]:
    """The hosts to which the machine has sent TCP or UDP since a mark."""
    packets = (decode_ip(frame.data) for frame in censored.world.frames_since(mark) if frame.from_client)
    return {
        (packet.destination, packet.destination_port) for packet in packets if packet and packet.protocol in {6, 17}
    }


def wall_off(censored: Censored, *regions: str) -> None:
    """Cut the proxy's host off from these servers; the censor at home does not see them."""
    lines = ["add table inet wall", "add chain inet wall out { type filter hook output priority 0; }"]
    for address in censored.list_addresses(*regions):
        family = "ip6" if ":" in address else "ip"
        lines.append(f"add rule inet wall out {family} daddr {address} reject with icmpx type admin-prohibited")
    censored.world.internet.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")


@pytest.mark.requirement("R1", "R5", "R9", "R11")
def test_tunnel_and_rescue_go_through_the_upstream_proxy_and_nothing_else_leaves(pytestconfig: pytest.Config) -> None:
    core, server = (pytestconfig.getoption(option) for option in ("--core", "--server"))
    if core is None or server is None:
        pytest.skip("no real programs: --core PATH --server PATH")
    real = RealPrograms(core=Path(core).resolve(), server=Path(server).resolve())
    with (
        open_censored(real) as censored,
        run_proxy(censored.world, password=True) as proxy,
        open_rescued(censored) as machine,
    ):
        url = f"http://{USER}:{quote(PASSWORD, safe='')}@{plan.INTERNET4}:{PORT}"
        settings = [f"servers = {json.dumps(NETWORK)}", f"upstream_proxy = {json.dumps(url)}"]
        machine.write_config("\n".join([*settings, "[core.advanced]", "DisableRemoteServerListFetcher = true", ""]))
        mark = censored.world.mark()
        forget(machine)
        assert censored.internet.find_region(fetch_page(censored.world.client)) in KNOWN
        assert list_calls(censored, mark) == {(plan.INTERNET4, PORT)}, "the positive control, and nobody else"
        # The proxy reaches no known server: the core calls the proxy dead, and the rescue helps.
        wall_off(censored, *KNOWN)
        mark = censored.world.mark()
        machine.command("restart")
        wait_until(
            lambda: censored.internet.find_region(fetch_page(censored.world.client)) == NEW,
            "a page by the new server",
            timeout=SECONDS,
        )
        assert list_calls(censored, mark) == {(plan.INTERNET4, PORT)}
        assert {plan.LIST_HOST4, plan.LIST_HOST6} & {target for target, _port in proxy.read_targets()}
        assert PASSWORD not in machine.read_log()
