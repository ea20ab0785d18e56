# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Records, from the kernel's announcements, what disappears from the client's lock and when it returns.

It follows tables, routing rules, routes, addresses and the TUN.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_lab.announcements import Announcements
from psiphon_lab.namespace import Host
from psiphon_lab.service_adapter import names
from psiphon_lab.service_adapter.boot_lock import Identity
from psiphon_lab.service_adapter.kernel_events import (
    iterate_messages,
    open_generation_monitor,
    open_network_monitor,
    read_attributes,
)
from psiphon_lab.service_adapter.routing import list_routes, list_rules

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE = 16, 17, 20, 21, 24, 25, 32, 33
_NEWTABLE, _DELTABLE, _NEWGEN = 0xA00, 0xA02, 0xA0F
_IFLA_IFNAME, _ATTR_PRIORITY, _ATTR_TABLE = 3, 6, 15
_IFF_UP = 1
_VERSION = {2: 4, 10: 6}

Piece = tuple[str | int, ...]
LINK: Piece = ("TUN",)


@dataclass(frozen=True)
class Change:
    """A piece appeared, or disappeared."""

    when: float
    piece: Piece
    came: bool


def table(name: str) -> Piece:
    """The piece for a table."""
    return ("table", name)


def rules(identity: Identity) -> frozenset[Piece]:
    """The pieces for the routing rules."""
    return frozenset(("rule", *rule) for rule in list_rules(identity))


def routes(*, tun: bool) -> frozenset[Piece]:
    """The pieces for the routes of every state. tun: only for those that disappear with the TUN."""
    return frozenset(("route", *route) for route in list_routes(through_tun=tun))


ADDRESSES: frozenset[Piece] = frozenset({("address", 4), ("address", 6)})


class HealWatch(Announcements):
    """Collects changes while the block runs. Times are of time.monotonic(), seconds."""

    def __init__(self, host: Host, *, tun: int) -> None:
        super().__init__(host, open_generation_monitor, open_network_monitor)
        self._tun = tun
        self._changes: list[Change] = []
        self._committed: dict[str, bool] = {}

    def receive(self, number: int, now: float, data: bytes) -> None:
        """Handle a message: tables on the first socket; links, addresses, routes and routing rules on the other."""
        self._changes += self._read_commits(now, data) if number == 0 else self._parse(now, data)

    def _read_commits(self, now: float, data: bytes) -> Iterable[Change]:
        for kind, body in iterate_messages(data):
            if kind in {_NEWTABLE, _DELTABLE}:
                name = read_attributes(body[4:]).get(1, b"").split(b"\0")[0].decode()
                # A replaced table is announced as deleted and as new, and exists afterwards.
                self._committed[name] = kind == _NEWTABLE or self._committed.get(name, False)
            elif kind == _NEWGEN:
                yield from (Change(now, table(name), came) for name, came in self._committed.items())
                self._committed.clear()

    def _parse(self, now: float, data: bytes) -> Iterable[Change]:
        for kind, body in iterate_messages(data):
            if kind in {_NEWLINK, _DELLINK} and len(body) >= 16:
                index, flags = struct.unpack_from("=iI", body, 4)
                name = read_attributes(body[16:]).get(_IFLA_IFNAME, b"").split(b"\0")[0].decode()
                if name == names.TUN_NAME or index == self._tun:
                    yield Change(now, LINK, kind == _NEWLINK and bool(flags & _IFF_UP) and name == names.TUN_NAME)
            elif kind in {_NEWADDR, _DELADDR} and len(body) >= 8:
                attributes = read_attributes(body[8:])
                # IFA_ADDRESS
                ours = (socket.inet_pton(socket.AF_INET, names.TUN_IPV4), socket.inet_pton(10, names.TUN_IPV6))
                if attributes.get(1) in ours:
                    yield Change(now, ("address", _VERSION[body[0]]), kind == _NEWADDR)
            elif kind in {_NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE} and len(body) >= 12:
                attributes = read_attributes(body[12:])
                metric = int.from_bytes(attributes.get(_ATTR_PRIORITY, b""), "little")
                number = int.from_bytes(attributes.get(_ATTR_TABLE, b""), "little")
                if kind in {_NEWRULE, _DELRULE}:
                    yield Change(now, ("rule", _VERSION[body[0]], metric), kind == _NEWRULE)
                elif number == names.ROUTE_TABLE:
                    yield Change(now, ("route", _VERSION[body[0]], body[1], metric), kind == _NEWROUTE)

    def measure(self, wanted: frozenset[Piece]) -> tuple[float, float] | None:
        """When the first of the wanted pieces disappeared, and when all of them were back; None before that."""
        missing: set[Piece] = set()
        lost = back = None
        for change in list(self._changes):
            piece, came = change.piece, change.came
            if piece not in wanted:
                continue
            if came:
                missing.discard(piece)
            else:
                missing.add(piece)
                lost = lost if lost is not None else change.when
                if piece == LINK:
                    # The kernel does not announce each piece that disappears with a device.
                    missing |= wanted
                back = None
            if lost is not None and not missing and back is None:
                back = change.when
        return None if lost is None or back is None else (lost, back)
