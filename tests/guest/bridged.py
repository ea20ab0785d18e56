# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge in a guest with a host behind it, and the second card, which may become its port."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from tests import bridge_of_guests
from tests.bridge_of_guests import BRIDGE, NETWORK4, NETWORK6, NOBODY4, PROGRAMS, render_inside
from tests.guest.access import Bench

from psiphon_lab.frames import Frame

GUESTS = (ipaddress.ip_network(NETWORK4), ipaddress.ip_network(NETWORK6))
SHOUTS = {"host", "host raw", "guest", "guest raw"}

# The second card, as one that is plugged in: no guard has known it.
JOIN = f"ip netns exec far ip link set eth3 netns 1; ip link set eth3 master {BRIDGE} up"
LEAVE = "ip link set eth3 down nomaster; ip link set eth3 netns far"
# Until it has sent so often, or is to be silent. No faster than a capture can hear.
SHOUT = f"""
import contextlib, os, socket, sys, time
name, who, times = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
head = bytes.fromhex("ffffffffffff" "025053000c02" "88b5")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind((name, 0))
    for number in range(times):
        with contextlib.suppress(OSError): sock.sendto(b"[" + who + b"]", ("{NOBODY4}", 4000 + number % 20))
        with contextlib.suppress(OSError): raw.send(head + b"[" + who + b" raw]")
        if os.path.exists("/run/hush"): break
        time.sleep(0.02)
print(number)
"""


def make_bridge(bench: Bench) -> None:
    """The bridge, and hosts that answer on both sides of it."""
    for name, text in {**PROGRAMS, "shout.py": SHOUT}.items():
        (bench.guest.exchange / name).write_text(text)
    bench.guest.run(render_inside("/exchange"))


def look(bench: Bench) -> dict[str, bool]:
    """What passes between this machine and its guest."""
    return bridge_of_guests.look(lambda script: bench.guest.run(script).output, "/exchange")


def shout(*, times: int) -> str:
    """A script in which both sides send."""
    shouts = "python3 -S /exchange/shout.py"
    return f"{shouts} {BRIDGE} host {times} & ip netns exec inside {shouts} eth0 guest {times} && wait $!"


def read_shouts(frames: Iterable[Frame]) -> set[str]:
    """Which of what was sent came out."""
    data = b"".join(frame.data for frame in frames if frame.from_client)
    return {found[1].decode() for found in re.finditer(rb"\[((?:host|guest)(?: raw)?)\]", data)}
