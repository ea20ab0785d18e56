# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A storm: sends all the time inside a virtual computer, through boots and sleeps, in many ways at once.

Runs there as `python -m psiphon_lab.vm.storm LABEL`. Whatever leaves can be recognised on a wire: by a token, TCP by
its source port. It writes a line of JSON whenever answers from the internet begin or cease. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psiphon_lab import addresses as plan

UDP, TCP, ICMP, FRAME = "udp", "tcp", "icmp", "frame"
INTERFACE: Final = "eth0"
ROOT, USER = "root", "user"
FIRST_PORT: Final = {ROOT: 31000, USER: 31500}
"""Source ports above those of the probes (`probe.py`), and below the kernel's own range."""
PAUSE: Final = 0.2
"""The least seconds between two rounds."""
SHARE: Final = 9
"""A pause lasts at least so many times as long as the round before it: an emulated processor has other things to do."""
QUIET: Final = 0.7
"""Seconds without an answer, beside those of a round and its pause, that count as silence."""
SO_BINDTODEVICE: Final = 25
ETHERTYPE: Final = 0x88B5
"""For experiments (IEEE 802)."""
ECHO: Final = 7


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What is sent in each round. token: its payload begins with it."""

    token: str
    kind: str
    family: int
    target: str
    port: int
    interface: str
    source_port: int


def list_shots(label: str) -> tuple[Shot, ...]:
    """All shots. label: ROOT or USER; only root sends frames of its own making."""
    shots: list[Shot] = []
    wheres = {
        "internet": (plan.INTERNET4, plan.INTERNET6),
        "server": (plan.SERVER4, plan.SERVER6),
        "neighbour": (plan.NEIGHBOUR4, plan.NEIGHBOUR6),
    }
    kinds = ((UDP, ECHO), (TCP, 80), (ICMP, 0), (UDP, 53))
    for where, targets in wheres.items():
        for family, target in zip((4, 6), targets, strict=True):
            for kind, port in kinds:
                for interface in ("", INTERFACE):
                    name = f"{kind}{port or ''}-ipv{family}-{where}{'-bound' if interface else ''}"
                    shots.append(
                        Shot(
                            token=f"storm-{label}-{name};",
                            kind=kind,
                            family=family,
                            target=target,
                            port=port,
                            interface=interface,
                            source_port=FIRST_PORT[label] + len(shots),
                        )
                    )
    if label == ROOT:
        shots.append(
            Shot(
                token=f"storm-{label}-frame;",
                kind=FRAME,
                family=0,
                target="",
                port=0,
                interface=INTERFACE,
                source_port=0,
            )
        )
    return tuple(shots)


class _Gun:
    """Fires one shot again and again."""

    def __init__(self, shot: Shot) -> None:
        self.shot = shot
        self._socket: socket.socket | None = None

    def fire(self) -> bool:
        """Send; True if something was received since the last time."""
        shot, heard = self.shot, False
        try:
            if self._socket is not None:
                heard = self._listen(self._socket)
            if self._socket is None or shot.kind == TCP:
                self.close()
                self._socket = self._open()
            if shot.kind == FRAME:
                self._socket.send(b"\xff" * 6 + b"\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big") + shot.token.encode())
            elif shot.kind == TCP:
                self._socket.connect((shot.target, shot.port))
            else:
                self._socket.sendto(self._render(), (shot.target, shot.port))
        except BlockingIOError:
            pass
        except OSError:
            if shot.kind in (TCP, FRAME):
                self.close()
        return heard

    def _listen(self, sock: socket.socket) -> bool:
        if self.shot.kind in (TCP, FRAME):
            return False
        try:
            return bool(sock.recv(2048))
        except OSError:
            return False

    def _render(self) -> bytes:
        token = self.shot.token.encode()
        if self.shot.kind == ICMP:
            return struct.pack("!BBHHH", 8 if self.shot.family == 4 else 128, 0, 0, 0, 1) + token
        return token

    def _open(self) -> socket.socket:
        shot = self.shot
        if shot.kind == FRAME:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.bind((shot.interface, 0))
            return made
        family = socket.AF_INET if shot.family == 4 else socket.AF_INET6
        icmp = socket.IPPROTO_ICMP if shot.family == 4 else socket.IPPROTO_ICMPV6
        kind = socket.SOCK_STREAM if shot.kind == TCP else socket.SOCK_DGRAM
        made = socket.socket(family, kind, icmp if shot.kind == ICMP else 0)
        made.setblocking(False)
        if shot.interface:
            made.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, shot.interface.encode() + b"\0")
        if shot.kind == TCP:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if shot.kind != ICMP:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", shot.source_port))
        return made

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def rage(shots: Iterable[Shot]) -> None:
    """Send for ever, and write when answers begin and cease."""
    guns = [_Gun(shot) for shot in shots]
    heard_at, was_heard, pause = 0.0, False, 0.0
    while True:
        begin = time.monotonic()
        for gun in guns:
            if gun.fire() and gun.shot.target in (plan.INTERNET4, plan.INTERNET6):
                heard_at = time.monotonic()
        took = time.monotonic() - begin
        heard = time.monotonic() - heard_at < QUIET + pause + took and heard_at > 0
        if heard != was_heard:
            was_heard = heard
            line = json.dumps({"answers": heard, "time": time.time()})
            with contextlib.suppress(OSError):
                os.write(1, line.encode() + b"\n")
        pause = max(PAUSE, SHARE * took)
        time.sleep(pause)


if __name__ == "__main__":
    rage(list_shots(sys.argv[1]))
