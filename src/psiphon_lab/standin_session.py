# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in server's sessions: to which one a packet belongs, what is refused, how addresses are rewritten."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from dataclasses import dataclass, field

from psiphon_lab import tunnel_packet as ip

SESSION_IDLE = 300.0
FIRST_CLIENT4 = int(ipaddress.IPv4Address("10.0.1.1"))
FIRST_CLIENT6 = int(ipaddress.IPv6Address("fd19:ca83:e6d5:1c44:8c57:4434:ee00:101"))


@dataclass
class Session:
    """One client: its addresses on the server's TUN, and for each family the source address that gets the replies."""

    assigned: dict[int, bytes]
    first_source: dict[int, bytes] = field(default_factory=dict)
    writer: asyncio.StreamWriter | None = None
    last_used: float = 0.0


class SessionTable:
    """All sessions, and what happens to their packets in both directions. Changes nothing but its own tables."""

    def __init__(self, *, resolvers: list[str], allow_bogons: bool, ipv6: bool) -> None:
        self._resolvers = [ipaddress.ip_address(text).packed for text in resolvers]
        self._allow_bogons = allow_bogons
        self._ipv6 = ipv6
        self._sessions: dict[str, Session] = {}
        self._by_address: dict[bytes, Session] = {}
        self._count = 0

    def open_session(self, identifier: str) -> Session:
        """The session with that identifier; a new one if there is none. Forgets idle sessions."""
        now = time.monotonic()
        for key, old in list(self._sessions.items()):
            if old.writer is None and now - old.last_used > SESSION_IDLE:
                del self._sessions[key]
                for address in old.assigned.values():
                    self._by_address.pop(address, None)
        session = self._sessions.get(identifier)
        if session is None:
            assigned = {
                4: (FIRST_CLIENT4 + self._count).to_bytes(4, "big"),
                6: (FIRST_CLIENT6 + self._count).to_bytes(16, "big"),
            }
            self._count += 1
            session = self._sessions[identifier] = Session(assigned=assigned)
            self._by_address.update(dict.fromkeys(assigned.values(), session))
        return session

    def send_up(self, session: Session, data: bytes) -> bytes | None:
        """A client's packet, rewritten for the TUN; None if it is refused."""
        header = ip.read_header(data)
        if isinstance(header, str) or (header.version == 6 and not self._ipv6):
            return None
        changed = bytearray(data)
        if header.destination in (ip.TUNNEL_DNS4, ip.TUNNEL_DNS6):
            resolver = self._pick_resolver(header.version)
            if header.destination_port != ip.DNS_PORT or resolver is None:
                return None
            ip.rewrite_address(changed, header, new=resolver, source=False)
        elif ip.is_client_address(header.destination) or (not self._allow_bogons and ip.is_bogon(header.destination)):
            return None
        session.first_source.setdefault(header.version, header.source)
        ip.rewrite_address(changed, header, new=session.assigned[header.version], source=True)
        return bytes(changed)

    def send_down(self, data: bytes) -> tuple[Session, bytes] | None:
        """A packet from the TUN, rewritten, with its client's session; None if it is for no client."""
        header = ip.read_header(data)
        if isinstance(header, str):
            return None
        session = self._by_address.get(header.destination)
        if session is None or header.version not in session.first_source:
            return None
        changed = bytearray(data)
        if header.source_port == ip.DNS_PORT and header.source in self._resolvers:
            new = ip.TUNNEL_DNS4 if header.version == 4 else ip.TUNNEL_DNS6
            ip.rewrite_address(changed, header, new=new, source=True)
        ip.rewrite_address(changed, header, new=session.first_source[header.version], source=False)
        return session, bytes(changed)

    def _pick_resolver(self, version: int) -> bytes | None:
        length = 4 if version == 4 else 16
        return next((resolver for resolver in self._resolvers if len(resolver) == length), None)
