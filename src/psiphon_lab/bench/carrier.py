# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""THE FAST CARRIER, both ends: stand-ins that look into no packet, so that the lock's own cost is a visible part.

The stand-in core checks and rewrites every packet in Python, and is slower than the rules that are to be measured. Here
a packet is only moved between the TUN and the stream, and the kernel of the server's host translates addresses. It
serves one client at a time. Everything else, from notices to protocols, is the stand-ins'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time

from psiphon_lab import standin_core, standin_server
from psiphon_lab import tunnel_packet as ip
from psiphon_lab.addresses import RESOLVER4, SERVER_RESOLVER4, TUNNEL_NETWORKS
from psiphon_lab.standin_tunnel import UPSTREAM_LIMIT, Core

READ_BATCH = 64
QUEUE_LIMIT = 512 << 10

_RULESET = """
table inet carrier_nat {
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    iifname "%(tun)s" ip daddr %(resolver)s meta l4proto { 6, 17 } th dport 53 dnat ip to %(own)s
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname "%(egress)s" ip saddr %(network4)s masquerade
    oifname "%(egress)s" ip6 saddr %(network6)s masquerade
  }
}
"""


def read_batch(tun: int) -> bytes:
    """The packets that wait in a TUN, each as it is in the stream."""
    parts: list[bytes] = []
    with contextlib.suppress(OSError):  # none is left, or the device was deleted
        for _ in range(READ_BATCH):
            data = os.read(tun, ip.MTU)
            parts += (len(data).to_bytes(2, "big"), data)
    return b"".join(parts)


def write_packets(tun: int, data: bytes) -> bytes:
    """Write the complete packets of a piece of the stream into a TUN; returns what is left."""
    view, at, end = memoryview(data), 0, len(data)
    while end - at >= 2:
        after = at + 2 + ((data[at] << 8) | data[at + 1])
        if after > end:
            break
        with contextlib.suppress(OSError):  # queue full, or the kernel refuses it: dropped
            os.write(tun, view[at + 2 : after])
        at = after
    return data[at:]


class CarrierCore(Core):
    """The client's end."""

    def _read_tun(self) -> None:
        assert self._tun is not None
        frames, writer = read_batch(self._tun), self._writer
        if frames and writer is not None and not writer.is_closing():
            self._suspect_silence(writer)
            if writer.transport.get_write_buffer_size() < UPSTREAM_LIMIT:
                writer.write(frames)
                self._sent += len(frames)

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        self._unanswered = None
        rest = b""
        while chunk := await reader.read(1 << 18):
            self._unanswered = None
            self._received += len(chunk)
            if self._tun is not None:
                rest = write_packets(self._tun, rest + chunk)


class CarrierServer(standin_server.StandinServer):
    """The far end."""

    _client: asyncio.StreamWriter | None = None

    def read_tun(self) -> None:
        """Carry what waits in the TUN to the client."""
        frames, writer = read_batch(self._tun), self._client
        if writer is not None and not writer.is_closing() and writer.transport.get_write_buffer_size() < QUEUE_LIMIT:
            writer.write(frames)

    async def _carry_packets(self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client = writer
        writer.write(json.dumps({"region": self._region, "time": time.time()}).encode() + b"\n")
        rest = b""
        while chunk := await reader.read(1 << 18):
            rest = write_packets(self._tun, rest + chunk)


def _configure_network(tun: str, egress: str) -> None:
    standin_server.configure_network(tun, egress)
    network4, network6 = TUNNEL_NETWORKS
    subprocess.run(["ip", "-6", "route", "replace", network6, "dev", tun], check=True, timeout=60)
    values = {"tun": tun, "resolver": RESOLVER4, "own": SERVER_RESOLVER4, "egress": egress}
    rules = _RULESET % {**values, "network4": network4, "network6": network6}
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=60)


def main() -> int:
    """Command line entry: `core` or `server`, then the stand-in's own arguments."""
    end, arguments = sys.argv[1], sys.argv[2:]
    if end == "core":
        return standin_core.main(arguments, make=CarrierCore)
    return standin_server.main(arguments, make=CarrierServer, configure=_configure_network)


if __name__ == "__main__":
    sys.exit(main())
