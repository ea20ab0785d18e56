"""The laboratory's DHCPv6 server: what it answers, and what it leaves to another server."""

from __future__ import annotations

import struct

import pytest

from psiphon_vpn.lab import dhcp6_server as dhcp6

OWN, OTHER = b"\0\3\0\1own", b"\0\3\0\1other"


def message(kind: int, *, server: bytes | None = None) -> bytes:
    options = [(dhcp6.CLIENT_ID, b"client"), (dhcp6.IA_NA, b"iaid" + bytes(8))]
    options += [] if server is None else [(dhcp6.SERVER_ID, server)]
    return bytes([kind]) + b"xid" + b"".join(struct.pack("!HH", code, len(data)) + data for code, data in options)


@pytest.fixture
def server() -> dhcp6.Server:
    return dhcp6.Server(identifier=OWN, address="2001:db8::d6", renew=3, rebind=6, valid=60)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (dhcp6.SOLICIT, dhcp6.ADVERTISE),
        (dhcp6.REQUEST, dhcp6.REPLY),
        (dhcp6.RENEW, dhcp6.REPLY),
        (dhcp6.REBIND, dhcp6.REPLY),
    ],
)
def test_it_lends_its_address_for_seconds(server: dhcp6.Server, kind: int, answer: int) -> None:
    said = server.answer(message(kind, server=OWN if kind in {dhcp6.REQUEST, dhcp6.RENEW} else None))
    assert said is not None
    assert said[:4] == bytes([answer]) + b"xid"
    assert b"iaid" + struct.pack("!II", 3, 6) in said
    assert bytes.fromhex("20010db8") + bytes(11) + b"\xd6" + struct.pack("!II", 60, 60) in said
    assert OWN in said


def test_it_does_not_answer_for_another_server_nor_what_a_server_says(server: dhcp6.Server) -> None:
    assert server.answer(message(dhcp6.RENEW, server=OTHER)) is None
    assert server.answer(message(dhcp6.REPLY)) is None
    assert server.answer(b"\x05xid") is None
