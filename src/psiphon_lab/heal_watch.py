"""What is taken from the client's lock, and when it is back: by the kernel's announcements, on sockets of the lab's.

Rules, routes, addresses and the TUN by name; a piece is back when everything that was taken is there again.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_lab.announcements import Announcements
from psiphon_lab.namespace import Host
from psiphon_vpn.linux.monitor import open_network_monitor
from psiphon_vpn.linux.netlink import iterate_messages, read_attributes
from psiphon_vpn.linux.nfnetlink import open_generation_monitor
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.routing import Route, build_routes, build_rules

_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE = 16, 17, 20, 21, 24, 25, 32, 33
_NEWTABLE, _DELTABLE, _NEWGEN = 0xA00, 0xA02, 0xA0F
_IFLA_IFNAME, _ATTR_PRIORITY, _ATTR_TABLE = 3, 6, 15
_IFF_UP = 1
_VERSION = {2: 4, 10: 6}

Piece = tuple[str | int, ...]
LINK: Piece = ("TUN",)


@dataclass(frozen=True)
class Change:
    """A piece came (or came again), or went."""

    when: float
    piece: Piece
    came: bool


def table(name: str) -> Piece:
    """The piece that a table is."""
    return ("table", name)


def rules(identity: Identity) -> frozenset[Piece]:
    """The pieces that the routing rules are."""
    return frozenset(("rule", rule.version, rule.priority) for rule in build_rules(identity))


def _route_piece(route: Route) -> Piece:
    return ("route", route.version, int(route.destination.split("/")[1]), route.metric)


def routes(*, tun: bool) -> frozenset[Piece]:
    """The routes that stand in every state, or of these only those that go with the TUN."""
    built = build_routes(tun=True, open_ipv4=False, open_ipv6=False)
    return frozenset(_route_piece(route) for route in built if not (tun and route.unreachable))


ADDRESSES: frozenset[Piece] = frozenset({("address", 4), ("address", 6)})


class HealWatch(Announcements):
    """Collects changes while the block runs. Times are of time.monotonic(), seconds."""

    def __init__(self, host: Host, *, tun: int) -> None:
        super().__init__(host, open_generation_monitor, open_network_monitor)
        self._tun = tun
        self._changes: list[Change] = []
        self._committed: dict[str, bool] = {}

    def hear(self, number: int, now: float, data: bytes) -> None:
        """Take a message: the first socket tells of rules, the other of links, addresses, routes and routing rules."""
        self._changes += self._read_commits(now, data) if number == 0 else self._parse(now, data)

    def _read_commits(self, now: float, data: bytes) -> Iterable[Change]:
        for kind, body in iterate_messages(data):
            if kind in {_NEWTABLE, _DELTABLE}:
                name = read_attributes(body[4:]).get(1, b"").split(b"\0")[0].decode()
                # A table that is replaced is announced as both, and is there in the end.
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
        """When the first of the wanted pieces went, and when all of them were back; None as long as they are not."""
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
                    # What goes with a device is not announced piece by piece.
                    missing |= wanted
                back = None
            if lost is not None and not missing and back is None:
                back = change.when
        return None if lost is None or back is None else (lost, back)
