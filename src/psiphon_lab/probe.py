# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes: attempts to get something out of the machine. Runs on the client as `python -m psiphon_lab.probe`.

It reads {"limit": seconds, "specs": [...]} from standard input, runs all probes at once and writes one JSON object for
each. Every probe can be recognised on a wire: TCP and UDP by a unique source port, ICMP and DNS by a token. It imports
little, and only from the standard library, because each demonstration starts it many times.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.dns_message import TXT, encode_query, read_answers

LIMIT = 1.2
SO_BINDTODEVICE = 25
PATTERN = r"probe\d{7}"  # of tokens
FIRST_PORT, PORTS = 10_000, 20_000  # below the ephemeral range, so that nothing else uses them
TCP, UDP, ICMP, DNS_UDP, DNS_TCP = "tcp", "udp", "icmp", "dns-udp", "dns-tcp"

UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EHOSTDOWN)
DENIED = (errno.EPERM, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """One attempt. interface: for SO_BINDTODEVICE; "" for an unbound socket. token: part of the payload or the name."""

    id: str
    kind: str
    family: int
    where: str
    target: str
    port: int
    interface: str
    source_port: int
    token: str


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The result of a probe.

    outcome: "answered", "refused" (the connection was rejected), "unreachable", "denied" (the kernel refused to send),
    "timeout" or "error". error: the errno's name or "". answer: the far end's answer (an address, a mark).
    """

    id: str
    outcome: str
    error: str
    elapsed_ms: float
    answer: str


TARGETS = {
    "internet": {4: plan.INTERNET4, 6: plan.INTERNET6},
    "server": {4: plan.SERVER4, 6: plan.SERVER6},
    "neighbour": {4: plan.NEIGHBOUR4, 6: plan.NEIGHBOUR6},
    "lan-resolver": {4: plan.LAN_A.router4, 6: plan.LAN_A.router6},
}
BATTERY = (
    (TCP, "internet", 80), (TCP, "server", plan.SERVER_PORT), (TCP, "neighbour", 80),
    (UDP, "internet", 7), (UDP, "server", 7), (UDP, "neighbour", 7),
    (ICMP, "internet", 0), (ICMP, "server", 0), (ICMP, "neighbour", 0),
    (DNS_UDP, "lan-resolver", 53), (DNS_UDP, "internet", 53),
    (DNS_TCP, "lan-resolver", 53), (DNS_TCP, "internet", 53),
)  # fmt: skip


def probe_specs(*, salt: int, interface: str = "eth0", label: str = "") -> tuple[ProbeSpec, ...]:
    """All probes: every kind and destination, both families, unbound and bound to `interface`.

    salt: a different number for each run and uid in a world, so that each probe can be recognised on a wire.
    label: the beginning of each id, for example "root".
    """
    specs: list[ProbeSpec] = []
    for kind, where, port in BATTERY:
        for family in (4, 6):
            for bound in ("", interface):
                number = salt * len(BATTERY) * 4 + len(specs)
                how = f"via-{bound}" if bound else "plain"
                name = "-".join(filter(None, (label, kind, f"ipv{family}", where, how)))
                specs.append(
                    ProbeSpec(
                        id=name,
                        kind=kind,
                        family=family,
                        where=where,
                        target=TARGETS[where][family],
                        port=port,
                        interface=bound,
                        source_port=FIRST_PORT + number % PORTS,
                        token=f"probe{number:07d}",
                    )
                )
    return tuple(specs)


def _open(spec: ProbeSpec, kind: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET if spec.family == 4 else socket.AF_INET6
    sock = socket.socket(family, kind, protocol)
    if spec.interface:
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, spec.interface.encode() + b"\0")
    if kind != socket.SOCK_RAW and protocol == 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", spec.source_port))
    return sock


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(spec: ProbeSpec, deadline: float) -> socket.socket:
    sock = _open(spec, socket.SOCK_STREAM)
    # Closing sends a reset, so that nothing of this probe is on the wire later.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.settimeout(_left(deadline))
    try:
        sock.connect((spec.target, spec.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _read_all(sock: socket.socket, deadline: float) -> bytes:
    data = b""
    while True:
        sock.settimeout(_left(deadline))
        chunk = sock.recv(65536)
        if not chunk:
            return data
        data += chunk


def probe_tcp(spec: ProbeSpec, deadline: float) -> str:
    """Connect. From a web server, read the client address that it saw."""
    with _connect(spec, deadline) as sock:
        if spec.port != 80:
            return "connected"
        sock.sendall(f"GET /{spec.token} HTTP/1.1\r\nHost: {plan.ECHO_NAME}\r\n\r\n".encode())
        body = _read_all(sock, deadline).partition(b"\r\n\r\n")[2]
        return str(json.loads(body)["address"])


def probe_udp(spec: ProbeSpec, deadline: float) -> str:
    """Send the token and wait for the echo."""
    with _open(spec, socket.SOCK_DGRAM) as sock:
        sock.connect((spec.target, spec.port))
        sock.send(spec.token.encode())
        sock.settimeout(_left(deadline))
        return sock.recv(2048).decode("ascii", "replace")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def probe_icmp(spec: ProbeSpec, deadline: float) -> str:
    """Send an echo request: as root by a raw socket, otherwise by a ping socket."""
    protocol = socket.IPPROTO_ICMP if spec.family == 4 else socket.IPPROTO_ICMPV6
    request, reply = (8, 0) if spec.family == 4 else (128, 129)
    payload = spec.token.encode()
    message = struct.pack("!BBHHH", request, 0, 0, spec.source_port, 1) + payload
    if spec.family == 4:
        message = struct.pack("!BBHHH", request, 0, _checksum(message), spec.source_port, 1) + payload
    with _open(spec, socket.SOCK_RAW if os.geteuid() == 0 else socket.SOCK_DGRAM, protocol) as sock:
        sock.connect((spec.target, 0))
        sock.send(message)
        while True:
            sock.settimeout(_left(deadline))
            data = sock.recv(2048)
            if spec.family == 4 and os.geteuid() == 0:
                data = data[(data[0] & 15) * 4 :]
            if data[:1] == bytes([reply]) and data.endswith(payload):
                return "echo"


def _dns_name(spec: ProbeSpec) -> str:
    return f"{spec.token}.{plan.RESOLVER_NAME}"


def probe_dns_udp(spec: ProbeSpec, deadline: float) -> str:
    """Query for the resolver's mark, which shows which one answered."""
    with _open(spec, socket.SOCK_DGRAM) as sock:
        sock.connect((spec.target, spec.port))
        sock.send(encode_query(spec.source_port, _dns_name(spec), TXT))
        sock.settimeout(_left(deadline))
        return ",".join(read_answers(sock.recv(4096))[2])


def probe_dns_tcp(spec: ProbeSpec, deadline: float) -> str:
    """The same over TCP."""
    with _connect(spec, deadline) as sock:
        query = encode_query(spec.source_port, _dns_name(spec), TXT)
        sock.sendall(struct.pack("!H", len(query)) + query)
        data = b""
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            sock.settimeout(_left(deadline))
            chunk = sock.recv(4096)
            if not chunk:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            data += chunk
        return ",".join(read_answers(data[2:])[2])


PROBES = {TCP: probe_tcp, UDP: probe_udp, ICMP: probe_icmp, DNS_UDP: probe_dns_udp, DNS_TCP: probe_dns_tcp}


def classify_error(error: BaseException) -> tuple[str, str]:
    """(outcome, errno name) of what a probe raised."""
    if isinstance(error, TimeoutError) and getattr(error, "errno", None) is None:
        return "timeout", ""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        return "error", type(error).__name__
    name = errno.errorcode.get(number, str(number))
    if number in (errno.ECONNREFUSED, errno.ECONNRESET):
        return "refused", name
    if number in UNREACHABLE:
        return "unreachable", name
    if number in DENIED:
        return "denied", name
    return ("timeout" if number == errno.ETIMEDOUT else "error"), name


def run_probe(spec: ProbeSpec, limit: float) -> ProbeResult:
    """Run one probe, for at most `limit` seconds."""
    start = time.monotonic()
    outcome, error, answer = "answered", "", ""
    try:
        answer = PROBES[spec.kind](spec, start + limit)
    except Exception as raised:  # noqa: BLE001 - any error is an outcome of the probe
        outcome, error = classify_error(raised)
    elapsed = (time.monotonic() - start) * 1000
    return ProbeResult(id=spec.id, outcome=outcome, error=error, elapsed_ms=round(elapsed, 1), answer=answer)


def run_all(specs: list[ProbeSpec], limit: float) -> list[ProbeResult]:
    """Run probes in parallel."""
    results: list[ProbeResult | None] = [None] * len(specs)

    def run_one(at: int) -> None:
        results[at] = run_probe(specs[at], limit)

    threads = [threading.Thread(target=run_one, args=(at,)) for at in range(len(specs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [result for result in results if result is not None]


def main() -> int:
    """Command line entry."""
    order: dict[str, Any] = json.load(sys.stdin)
    threading.stack_size(256 << 10)
    specs = [ProbeSpec(**fields) for fields in order["specs"]]
    for result in run_all(specs, float(order.get("limit", LIMIT))):
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
