# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A mobile link between the client and provider B, like one of pppd: no Ethernet, no neighbours, no header.

Two TUN devices and a thread that carries packets between them, since not every kernel has PPP. What the client sends is
kept: it is the capture outside the machine.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Iterator

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_B
from psiphon_lab.frames import Frame
from psiphon_lab.packet_builder import BROADCAST_MAC, ip_frame
from psiphon_lab.tun_device import attach_tun
from psiphon_lab.world import World

NAME = "wwan0"
CLIENT, PEER = "100.64.0.2", "100.64.0.1"


@contextlib.contextmanager
def open_mobile_link(world: World, *, metric: int) -> Iterator[list[Frame]]:
    """The link as a modem manager sets it up; yields what the client has sent over it, framed for the judge."""
    sent: list[Frame] = []
    provider = world.hosts[LAN_B.name]
    with contextlib.ExitStack() as stack:
        near, far = (host.call(lambda: attach_tun(NAME)) for host in (world.client, provider))
        stop, stopping = os.pipe()
        for descriptor in (near, far, stop, stopping):
            stack.callback(os.close, descriptor)
        pump = threading.Thread(target=_pump, args=(near, far, stop, sent), name="mobile")
        pump.start()
        stack.callback(pump.join)
        stack.callback(os.write, stopping, b"x")
        for host, own, other in ((provider, PEER, CLIENT), (world.client, CLIENT, PEER)):
            host.run(["ip", "address", "add", own, "peer", other, "dev", NAME])
            host.run(["ip", "link", "set", NAME, "up"])
        world.backbone.run(["ip", "route", "add", f"{CLIENT}/32", "via", plan.BACKBONE_B4])
        stack.callback(world.backbone.run, ["ip", "route", "del", f"{CLIENT}/32"])
        world.client.run(["ip", "route", "add", "default", "dev", NAME, "metric", str(metric)])
        yield sent


def _pump(near: int, far: int, stop: int, sent: list[Frame]) -> None:
    with selectors.DefaultSelector() as selector:
        for descriptor in (near, far, stop):
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            for key, _events in selector.select():
                if key.fd == stop:
                    return
                with contextlib.suppress(OSError):
                    packet = os.read(key.fd, 65536)
                    if key.fd == near:
                        frame = ip_frame(BROADCAST_MAC, LAN_B.mac, packet)
                        sent.append(Frame(time=time.time(), wire=NAME, data=frame, from_client=True))
                    os.write(far if key.fd == near else near, packet)
