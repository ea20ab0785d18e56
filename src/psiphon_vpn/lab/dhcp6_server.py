"""A DHCPv6 server of the laboratory (RFC 8415) that lends one address for seconds: `python -m ... --interface lan ...`.

The servers that distributions have lend for two minutes at the least, so that a test would wait a minute for a renewal
and almost two for a rebinding. It answers what a client asks to get and keep an address, and records what it has
answered, a word a line. It is an instrument; the clients that it is for are real.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

SERVER_PORT = 547
ALL_SERVERS = "ff02::1:2"
SOLICIT, ADVERTISE, REQUEST, CONFIRM, RENEW, REBIND, REPLY, RELEASE, INFORMATION = 1, 2, 3, 4, 5, 6, 7, 8, 11
NAMES = {SOLICIT: "solicit", REQUEST: "request", CONFIRM: "confirm", RENEW: "renew", REBIND: "rebind",
         RELEASE: "release", INFORMATION: "information"}  # fmt: skip
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, STATUS = 1, 2, 3, 5, 13


def _read_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        code, length = struct.unpack_from("!HH", data)
        yield code, data[4 : 4 + length]
        data = data[4 + length :]


def _option(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


class Server:
    """What it lends: one address, for `valid` seconds, to be renewed after `renew` and rebound after `rebind`."""

    def __init__(self, *, identifier: bytes, address: str, renew: int, rebind: int, valid: int) -> None:
        self._identifier = identifier
        self._address = ipaddress.IPv6Address(address).packed
        self._times = struct.pack("!II", renew, rebind)
        self._lifetimes = struct.pack("!II", valid, valid)

    def answer(self, message: bytes) -> bytes | None:
        """The answer to a message; None where it is for another server, or asks for nothing that there is here."""
        kind, options = message[0], dict(_read_options(message[4:]))
        if kind not in NAMES or CLIENT_ID not in options:
            return None
        if options.get(SERVER_ID, self._identifier) != self._identifier:
            return None
        reply = _option(CLIENT_ID, options[CLIENT_ID]) + _option(SERVER_ID, self._identifier)
        if IA_NA in options and kind != CONFIRM:
            lent = _option(IA_ADDRESS, self._address + self._lifetimes)
            reply += _option(IA_NA, options[IA_NA][:4] + self._times + lent)
        elif kind == CONFIRM:
            reply += _option(STATUS, struct.pack("!H", 0))
        return bytes([ADVERTISE if kind == SOLICIT else REPLY]) + message[1:4] + reply


def main(argv: list[str] | None = None) -> int:
    """Command line entry. Ends only by a signal."""
    parser = argparse.ArgumentParser(prog="psiphon_vpn.lab.dhcp6_server", description=__doc__)
    parser.add_argument("--interface", required=True)
    parser.add_argument("--address", required=True)  # what it lends
    parser.add_argument("--identifier", required=True)  # its DUID, hexadecimal
    parser.add_argument("--record", required=True)  # file for what it has answered
    for name in ("renew", "rebind", "valid"):
        parser.add_argument(f"--{name}", type=int, required=True)  # seconds
    options = parser.parse_args(argv)
    server = Server(
        identifier=bytes.fromhex(options.identifier),
        address=options.address,
        renew=options.renew,
        rebind=options.rebind,
        valid=options.valid,
    )
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
        Path(options.record).open("a", encoding="ascii", buffering=1) as record,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.interface.encode() + b"\0")
        group = ipaddress.IPv6Address(ALL_SERVERS).packed + struct.pack("@I", socket.if_nametoindex(options.interface))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        sock.bind(("::", SERVER_PORT))
        os.write(1, b"ready\n")
        while True:
            message, caller = sock.recvfrom(65535)
            answer = server.answer(message) if len(message) >= 4 else None
            if answer is not None:
                sock.sendto(answer, caller)
                record.write(f"{NAMES[message[0]]}\n")


if __name__ == "__main__":
    sys.exit(main())
