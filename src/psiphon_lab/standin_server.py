# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""THE STAND-IN SERVER: a test instrument in the place of a Psiphon server, for the stand-in core.

It accepts sessions over TLS, bare or obfuscated (`standin_protocols.py`; the server entry that it writes pins its
certificate), and carries their packets into a TUN interface; the kernel of its host masquerades them. It behaves like
the real server: each session has its own address, replies go only to the first source address of a family, its own
resolvers are behind 10.0.0.2, and there is no traffic between clients, and none to bogons unless allowed.

It records authenticated connections (flows.jsonl, JSON lines). From that record the judge knows which frames on the
client's wire are innocent: it relies on the server and not on the client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psiphon_lab import tunnel_packet as ip
from psiphon_lab.server_entry import ServerEntry, encode_server_entry
from psiphon_lab.standin_protocols import OSSH, TLS_OSSH, listen
from psiphon_lab.standin_session import SessionTable
from psiphon_lab.standin_socks import pump
from psiphon_lab.tun_device import attach_tun

HELLO_TIMEOUT = 30.0
QUEUE_LIMIT = 512 << 10
READ_BATCH = 64

RULESET = """
add table inet standin_nat
delete table inet standin_nat
table inet standin_nat {
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    iifname "lo" accept
    oifname "%(egress)s" ip saddr 10.0.0.0/8 masquerade
    oifname "%(egress)s" ip6 saddr fd19:ca83:e6d5:1c44::/64 masquerade
  }
}
"""


class StandinServer:
    """The server. tun: descriptor from attach_tun. record: called for each authenticated connection, with its mode."""

    def __init__(
        self,
        *,
        tun: int,
        secret: str,
        region: str,
        sessions: SessionTable,
        record: Callable[[asyncio.StreamWriter, str], None],
    ) -> None:
        self._tun = tun
        self._secret = secret
        self._region = region
        self._sessions = sessions
        self._record = record

    def read_tun(self) -> None:
        """Carry the packets that wait in the TUN to their clients; drop those that a client cannot receive now."""
        for _ in range(READ_BATCH):
            try:
                data = os.read(self._tun, 65536)
            except OSError:
                return
            delivery = self._sessions.send_down(data)
            if delivery is None or delivery[0].writer is None:
                continue
            writer = delivery[0].writer
            if not writer.is_closing() and writer.transport.get_write_buffer_size() < QUEUE_LIMIT:
                writer.write(ip.frame_packet(delivery[1]))

    async def serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection after its TLS handshake: hello, then packets or one forwarded stream."""
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), HELLO_TIMEOUT))
            if not hmac.compare_digest(str(hello["secret"]), self._secret):
                return
            mode = str(hello["mode"])
            self._record(writer, mode)
            if mode == "packet":
                await self._carry_packets(str(hello["session"]), reader, writer)
            else:
                await self._forward(hello["target"], reader, writer)
        except (OSError, EOFError, TimeoutError, ValueError, KeyError, TypeError):
            pass  # the client broke off or sent nonsense: its connection ends
        finally:
            writer.close()

    async def _carry_packets(self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = self._sessions.open_session(key)
        session.writer = writer
        writer.write(json.dumps({"region": self._region, "time": time.time()}).encode() + b"\n")
        buffer = bytearray()
        try:
            while chunk := await reader.read(65536):
                buffer += chunk
                for data in ip.split_frames(buffer):
                    up = self._sessions.send_up(session, data)
                    if up is not None:
                        with contextlib.suppress(OSError):  # queue full, or the kernel refuses it: dropped
                            os.write(self._tun, up)
        finally:
            session.last_used = time.monotonic()
            if session.writer is writer:
                session.writer = None

    async def _forward(self, target: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(target[0]), int(target[1])
        try:
            remote_reader, remote_writer = await asyncio.wait_for(asyncio.open_connection(host, port), 60)
        except (OSError, TimeoutError):
            writer.write(b'{"ok": false}\n')
            await writer.drain()
            return
        writer.write(b'{"ok": true}\n')
        try:
            await asyncio.gather(pump(reader, remote_writer), pump(remote_reader, writer))
        finally:
            remote_writer.close()


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key in `directory`; openssl(1) makes them once."""
    certificate, key = directory / "server.crt", directory / "server.key"
    if not certificate.exists():
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        argv += ["-subj", "/CN=stand-in", "-days", "30", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return certificate, key


def read_resolvers(path: Path) -> list[str]:
    """The `nameserver` lines of a resolv.conf."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [fields[1] for fields in lines if len(fields) == 2 and fields[0] == "nameserver"]


def configure_network(tun_name: str, egress: str) -> None:
    """Set the TUN's addresses and masquerading, in this process's network namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=tun_name)[0]
        for cidr in (ip.SERVER_TUN4, ip.SERVER_TUN6):
            address, prefix = cidr.split("/")
            ipr.addr("add", index=index, address=address, prefixlen=int(prefix))
        ipr.link("set", index=index, state="up", mtu=ip.MTU)
    subprocess.run(["nft", "-f", "-"], input=RULESET % {"egress": egress}, text=True, check=True, timeout=60)


def read_ports(options: argparse.Namespace) -> dict[str, int]:
    """The protocols that are served, and where."""
    return {OSSH: options.port, **({} if options.tls_port is None else {TLS_OSSH: options.tls_port})}


def write_server_entries(options: argparse.Namespace, secret: str, certificate: Path) -> None:
    """Write the server entries for clients: server-entry.dat, and server-entry-ipv6.dat for those with only IPv6."""
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
    for address, name in ((options.address, "server-entry.dat"), (options.address6, "server-entry-ipv6.dat")):
        if address is None:
            continue
        entry = ServerEntry(
            address=address,
            ports=read_ports(options),
            secret=secret,
            fingerprint=hashlib.sha256(der).hexdigest(),
            region=options.region,
        )
        (Path(options.directory) / name).write_text(encode_server_entry(entry), encoding="ascii")


def read_secret(path: Path) -> str:
    """The secret by which clients authenticate; made at the first start."""
    if not path.exists():
        path.write_text(secrets.token_hex(16), encoding="ascii")
    return path.read_text(encoding="ascii")


async def serve(server: StandinServer, options: argparse.Namespace, context: ssl.SSLContext, tun: int) -> None:
    """Listen, print "ready", and serve for ever."""
    asyncio.get_running_loop().add_reader(tun, server.read_tun)
    addresses = [address for address in (options.address, options.address6) if address is not None]
    for protocol, port in read_ports(options).items():
        await listen(server.serve_client, addresses, port, protocol, context)
    os.write(1, b"ready\n")
    await asyncio.Event().wait()


def run(options: argparse.Namespace, *, make: type[StandinServer], configure: Callable[[str, str], None]) -> None:
    """Set everything up and serve for ever. For make and configure see `main`."""
    directory = Path(options.directory)
    certificate, key = make_certificate(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    secret = read_secret(directory / "secret")
    tun = attach_tun(options.tun)
    configure(options.tun, options.egress)
    write_server_entries(options, secret, certificate)
    with (directory / "flows.jsonl").open("a", encoding="utf-8") as flows:

        def record(writer: asyncio.StreamWriter, mode: str) -> None:
            peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
            line = {"time": time.time(), "protocol": "tcp", "mode": mode, "client": peer[0], "client_port": peer[1]}
            flows.write(json.dumps({**line, "server": own[0], "server_port": own[1]}) + "\n")
            flows.flush()

        sessions = SessionTable(
            resolvers=options.resolver or read_resolvers(Path("/etc/resolv.conf")),
            allow_bogons=options.allow_bogons,
            ipv6=not options.no_ipv6,
        )
        server = make(tun=tun, secret=secret, region=options.region, sessions=sessions, record=record)
        asyncio.run(serve(server, options, context, tun))


def main(
    argv: list[str] | None = None,
    *,
    make: type[StandinServer] = StandinServer,
    configure: Callable[[str, str], None] = configure_network,
) -> int:
    """Command line entry. Ends only by a signal.

    make: what serves. configure: prepares the network, given the TUN and the interface by which traffic leaves.
    """
    parser = argparse.ArgumentParser(prog="psiphon_lab.standin_server", description=__doc__)
    parser.add_argument("--address", required=True, help="IPv4 address to listen on")
    parser.add_argument("--address6", help="IPv6 address to listen on too")
    parser.add_argument("--port", type=int, required=True, help="for OSSH")
    parser.add_argument("--tls-port", type=int, help="for TLS-OSSH, if it is to be served")
    parser.add_argument("--directory", required=True, help="for certificate, secret, server-entry.dat, flows.jsonl")
    parser.add_argument("--egress", default="eth0", help="interface by which clients' traffic leaves")
    parser.add_argument("--tun", default="tun0")
    parser.add_argument("--region", default="XX")
    parser.add_argument("--resolver", action="append", default=[], help="default: those of /etc/resolv.conf")
    parser.add_argument("--allow-bogons", action="store_true", help="carry documentation and private addresses")
    parser.add_argument("--no-ipv6", action="store_true", help="a server without IPv6 egress")
    options = parser.parse_args(argv)
    # asyncio warns of each write between the loss of a connection and its notification. Nothing is wrong then.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    run(options, make=make, configure=configure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
