# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with the service at a plain cable, a second card whose cable leads nowhere, and a container.

Both cables end outside of the guest, and what is captured is captured there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.guest.service import GuestService

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.capture import Capture
from psiphon_lab.frames import Frame
from psiphon_lab.guest.guest import MEMORY_MIB, Card, Guest
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.judge import Verdict, judge_frames, world_evidence
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.world import World

MODULES: Final = (*NFT_MODULES, "nft_socket", "sch_ingress", "cls_bpf", "veth", "bridge")
SECOND: Final = "second"
"""The second card's cable."""
FAR_CARD: Final = "02:50:53:00:0f:02"
PHONE: Final = "phone"
"""The cable of a USB card."""
PHONE_CARD: Final = "02:50:53:00:0f:03"
REPORT: Final = "PSIPHON_VPN_WAYS_REPORT"
"""Names a file that gets a line for each result, for docs/ways_out.md."""

# A container is a namespace behind a pair, routed by this machine.
CONTAINER: Final = f"""
    set -e
    mkdir -p /run/netns /root
    sysctl -qw net.ipv4.ping_group_range='0 2147483647'
    ip netns add ct
    ip link add ctr0 index 88 type veth peer name eth0 netns ct
    ip link set ctr0 up
    ip address add {plan.CONTAINER_GATEWAY4}/24 dev ctr0
    ip address add {plan.CONTAINER_GATEWAY6}/64 dev ctr0 nodad
    ip netns exec ct sh -ec '
        ip link set lo up
        ip link set eth0 up
        ip address add {plan.CONTAINER4}/24 dev eth0
        ip address add {plan.CONTAINER6}/64 dev eth0 nodad
        ip route add default via {plan.CONTAINER_GATEWAY4}
        ip -6 route add default via {plan.CONTAINER_GATEWAY6}'
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""
UPLINK: Final = f"""
    set -e
    ip link set eth0 up
    ip address add {LAN_A.client4}/{LAN_A.prefix4} dev eth0
    ip address add {LAN_A.client6}/{LAN_A.prefix6} dev eth0 nodad
    ip route add default via {LAN_A.router4} dev eth0 proto dhcp metric 100
    ip -6 route add default via {LAN_A.router6} dev eth0 proto ra metric 100
"""


@dataclass(frozen=True)
class Line:
    """A guest that is on, and the captures of its cables."""

    guest: Guest
    kernel: Kernel
    world: World
    server: ServerProcess
    captures: dict[str, Capture]
    service: GuestService

    def mark(self) -> dict[str, int]:
        """A point in all captures."""
        return {name: capture.mark() for name, capture in self.captures.items()}

    def frames_since(self, mark: dict[str, int]) -> list[Frame]:
        """What the guest sent since then, by any cable."""
        frames = []
        for name, capture in self.captures.items():
            frames += [frame for frame in capture.frames_since(mark[name], settle=0.3) if frame.from_client]
            assert not capture.dropped
            assert capture.alive
        return frames

    def judge(self, frames: list[Frame]) -> list[Verdict]:
        """Each frame's verdict. The second card is at the link of provider B, where nobody is."""
        return judge_frames(frames, world_evidence(self.server.read_flows(), core_ports=plan.CORE_PORTS))


@contextlib.contextmanager
def open_line(
    kernel: Kernel,
    directory: Path,
    *,
    modules: Iterable[str] = (),
    joined: bool = False,
    pluggable: bool = False,
    memory: int = MEMORY_MIB,
) -> Iterator[Line]:
    """Without a lock, and without an uplink: `UPLINK` makes one.

    Args:
        kernel: the guest's.
        directory: an existing one, for its files.
        modules: names of further ones to load.
        joined: whether the second card's cable leads to provider A too, and so does that of a third one, eth2, for a
            far end inside of the guest.
        pluggable: whether cards can be plugged in and out; then the last one is a USB card at provider A.
        memory: of the guest, in MiB.
    """
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        server = stack.enter_context(run_server(world))
        client = world.client
        client.set_sysctls({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        client.run(["ip", "address", "flush", "dev", LAN_A.interface])
        client.run(["ip", "link", "set", LAN_A.interface, "address", "02:50:53:00:0f:01"])
        client.run(["ip", "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"])
        client.run(["ip", "link", "set", "switch", "up"])
        client.run(["ip", "link", "set", LAN_A.interface, "master", "switch"])
        cards = [Card(tap="wire", mac=LAN_A.mac), Card(tap=SECOND, mac=LAN_B.mac)]
        cards += [Card(tap="far", mac=FAR_CARD)] if joined else []
        cards += [Card(tap=PHONE, mac=PHONE_CARD, usb=True)] if pluggable else []
        guest = stack.enter_context(
            Guest(
                client,
                kernel,
                cards=cards,
                modules=(*MODULES, *modules),
                directory=directory,
                pluggable=pluggable,
                memory=memory,
                # On a busy machine the kernel measures the processor's own clock wrongly, and minutes pass in seconds.
                parameters=["clocksource=hpet"],
            )
        )
        client.run(["ip", "link", "set", SECOND, "up"])
        for card in cards:
            if joined or card.tap != SECOND:
                client.run(["ip", "link", "set", card.tap, "master", "switch", "up"])
        captures = {
            LAN_A.name: stack.enter_context(Capture(client, "wire", wire=LAN_A.name)),
            SECOND: stack.enter_context(Capture(client, SECOND, wire=(LAN_A if joined else LAN_B).name)),
        }
        if pluggable:
            captures[PHONE] = stack.enter_context(Capture(client, PHONE, wire=LAN_A.name))
        guest.run(CONTAINER)
        service = GuestService(guest, entry=server.entry, settings={"ipv6_probe": [plan.INTERNET6]})
        yield Line(guest, kernel, world, server, captures, service)


def report(**fields: Any) -> None:
    """Keep a result for docs/ways_out.md, if somebody asked for it."""
    if path := os.environ.get(REPORT):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
