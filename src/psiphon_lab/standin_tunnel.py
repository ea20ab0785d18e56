"""What the stand-in core does once it runs: the tunnel, the packets, the local proxy, the misbehaviour."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import ssl
import time
from typing import Any

from psiphon_lab import packet as ip
from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.server_entry import ServerEntry
from psiphon_lab.standin_config import CoreConfig
from psiphon_lab.standin_faults import FaultPlan, act_on_process_faults
from psiphon_lab.standin_notices import Notices
from psiphon_lab.standin_socks import Pipe, serve_socks

DIAL_TIMEOUT = 20.0
RETRY_PAUSE = 2.0
NO_SERVER_PAUSE = 0.25
UPSTREAM_LIMIT = 32 << 10
READ_BATCH = 64
FAULT_TICK = 0.02
PROTOCOL = "OSSH"
SO_BINDTODEVICE = 25
TCP_USER_TIMEOUT_MS = 20_000


def _bind_core_port(sock: socket.socket) -> None:
    """A source port of the stand-in's own range, which the judge knows it by before the server has recorded it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for port in random.sample(CORE_PORTS, len(CORE_PORTS)):
        try:
            sock.bind(("", port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no source port is free")


class Core:
    """The whole life of one run."""

    def __init__(self, *, config: CoreConfig, tun: int | None, bind_interface: str | None, plan: FaultPlan,
                 notices: Notices) -> None:  # fmt: skip
        self._config = config
        self._tun = tun
        self._bind_interface = bind_interface
        self._plan = plan
        self._notices = notices
        self._session = secrets.token_hex(16)
        self._diagnostic_id = secrets.token_hex(4)
        self._writer: asyncio.StreamWriter | None = None
        self._tunnels: int | None = None
        self._ever_connected = False
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Run until a signal or a fault ends it; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, 0)
        loop.add_signal_handler(signal.SIGUSR1, self._plan.reload)
        tasks = [asyncio.ensure_future(self._watch_faults())]
        if not await self._start_socks():
            return 0
        if self._tun is not None:
            loop.add_reader(self._tun, self._read_tun)
        if self._config.establish_timeout:
            loop.call_later(self._config.establish_timeout, self._check_establish_timeout)
        tasks.append(asyncio.ensure_future(self._keep_connected()))
        code = await self._exit_code
        self._drop_connection()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._report_tunnels(0)
        self._notices.emit("Exiting")
        return code

    def _stop(self, code: int) -> None:
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    def _check_establish_timeout(self) -> None:
        if not self._ever_connected:
            self._notices.emit("EstablishTunnelTimeout", timeout=f"{self._config.establish_timeout:g}s")
            self._stop(0)

    def _report_tunnels(self, count: int) -> None:
        if self._tunnels is None and count == 0 and not self._ever_connected and not self._exit_code.done():
            return  # not emitted at start
        if self._tunnels != count:
            self._tunnels = count
            self._notices.emit("Tunnels", count=count)

    # -- the tunnel ---------------------------------------------------------------------------------------------

    async def _dial(
        self, hello: dict[str, object]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, object]]:
        """A connection to the server through its hello; raises OSError or TimeoutError."""
        entry = self._config.entry
        assert entry is not None
        reader, writer = await asyncio.wait_for(self._open_stream(entry), DIAL_TIMEOUT)
        try:
            writer.write(json.dumps({"secret": entry.secret, **hello}).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(reader.readline(), DIAL_TIMEOUT) or b"null")
        except (ValueError, OSError, TimeoutError) as error:
            writer.close()
            raise OSError(errno.EPROTO, "no answer from the server") from error
        if not isinstance(answer, dict):
            writer.close()
            raise OSError(errno.ECONNRESET, "the server closed the connection")
        return reader, writer, answer

    async def _open_stream(self, entry: ServerEntry) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # The family is the entry's, as in the real core: it parses the address and opens a socket of that family.
        family = socket.AF_INET6 if ":" in entry.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._bind_interface is not None:
                sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, self._bind_interface.encode() + b"\0")
            _bind_core_port(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
            await asyncio.get_running_loop().sock_connect(sock, (entry.address, entry.port))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the fingerprint below is what is checked
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")
        except BaseException:
            sock.close()
            raise
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        if hashlib.sha256(certificate).hexdigest() != entry.fingerprint:
            writer.close()
            raise OSError(errno.EPROTO, "unexpected server certificate")
        return reader, writer

    async def _keep_connected(self) -> None:
        config = self._config
        empty = self._plan.find("empty_list") is not None
        regions = [config.entry.region] if config.entry and not empty else []
        if self._plan.find("no_region") is not None:
            regions = regions or ["US"]
        self._notices.emit("AvailableEgressRegions", regions=regions)
        told_upstream = False
        while True:
            if self._plan.find("liar") is not None:
                self._announce(config.entry.region if config.entry else "XX", channel=True)
                await asyncio.sleep(3600)
            fits = config.entry is not None and config.egress_region in ("", config.entry.region)
            none = self._plan.find("no_region") or self._plan.find("empty_list")
            count = 1 if fits and none is None else 0
            self._notices.emit("CandidateServers", region=config.egress_region, initialCount=count, count=count,
                               limitTunnelProtocols=[], duration="1ms")  # fmt: skip
            if count == 0:
                await asyncio.sleep(NO_SERVER_PAUSE)
                continue
            if self._plan.find("upstream_error") is not None:
                if not told_upstream:
                    self._notices.emit("UpstreamProxyError", message="dial tcp [redacted]: connection refused")
                told_upstream = True
            elif self._plan.find("disconnect") is None:
                await self._run_tunnel()
            await asyncio.sleep(RETRY_PAUSE)

    async def _run_tunnel(self) -> None:
        entry = self._config.entry
        assert entry is not None
        about: dict[str, Any] = {"diagnosticID": self._diagnostic_id, "region": entry.region, "protocol": PROTOCOL,
                 "isReplay": False, "candidateNumber": 0, "networkType": "UNKNOWN"}  # fmt: skip
        self._notices.emit("ConnectingServer", **about)
        try:
            reader, writer, answer = await self._dial({"mode": "packet", "session": self._session})
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else "timeout"  # a TimeoutError is an OSError
            self._notices.emit("Warning", message=f"failed to connect to {self._diagnostic_id}: {reason}")
            return
        self._notices.emit("ConnectedServer", **about)
        carries = self._plan.find("no_packet_channel") is None
        self._writer = writer if carries else None
        try:
            self._announce(str(answer.get("region")), channel=carries)
            await self._receive(reader)
        except (OSError, EOFError) as error:
            self._notices.emit(
                "Warning", message=f"operate tunnel error for {self._diagnostic_id}: {error.__class__.__name__}"
            )
        finally:
            self._writer = None
            writer.close()
            self._notices.emit("Warning", message=f"tunnel failed: {self._diagnostic_id}")
            self._report_tunnels(0)

    def _announce(self, region: str, *, channel: bool) -> None:
        self._ever_connected = True
        self._report_tunnels(1)
        self._notices.emit("ActiveTunnel", diagnosticID=self._diagnostic_id, protocol=PROTOCOL)
        self._notices.emit("ConnectedServerRegion", serverRegion=region)
        wrong = self._plan.find("wrong_clock")
        ahead = wrong.number("seconds", 3600.0) if wrong is not None else 0.0
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ahead))
        self._notices.emit("ServerTimestamp", diagnosticID=self._diagnostic_id, timestamp=now)
        if self._tun is not None:
            if channel:
                self._notices.emit("Info", message="DialPacketTunnelChannel: established channel")
            else:
                self._notices.emit("Warning", message="dial packet tunnel channel failed: EOF")

    def _drop_connection(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    # -- packets ------------------------------------------------------------------------------------------------

    def _read_tun(self) -> None:
        assert self._tun is not None
        writer, blackhole = self._writer, self._plan.find("blackhole") is not None
        frames = bytearray()
        for _ in range(READ_BATCH):
            try:
                data = os.read(self._tun, ip.MTU)
            except OSError:
                break  # EAGAIN; a device that was deleted too, as with the real core
            upstream = ip.rewrite_query(data, self._config.resolver4, self._config.resolver6)
            if upstream is not None:
                frames += ip.frame_packet(upstream)
        full = writer is None or writer.transport.get_write_buffer_size() > UPSTREAM_LIMIT
        if frames and writer is not None and not (full or blackhole or writer.is_closing()):
            writer.write(bytes(frames))

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        while chunk := await reader.read(65536):
            buffer += chunk
            for data in ip.split_frames(buffer):
                downstream = ip.rewrite_response(data, self._config.resolver4, self._config.resolver6)
                if downstream is None or self._tun is None or self._plan.find("blackhole") is not None:
                    continue
                with contextlib.suppress(OSError):  # the interface is down, or refuses the packet
                    os.write(self._tun, downstream)

    # -- the local proxy ----------------------------------------------------------------------------------------

    async def _start_socks(self) -> bool:
        port = self._config.socks_port
        if port is None:
            return True
        try:
            if self._plan.find("port_in_use") is not None:
                raise OSError(errno.EADDRINUSE, "fault")
            server = await asyncio.start_server(self._serve_socks, "127.0.0.1", port)
        except OSError:
            self._notices.emit("SocksProxyPortInUse", port=port)
            return False
        self._notices.emit("ListeningSocksProxyPort", port=server.sockets[0].getsockname()[1])
        return True

    async def _serve_socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_socks(reader, writer, self._connect_through)

    async def _connect_through(self, host: str, port: int) -> Pipe:
        if self._config.entry is None or not self._tunnels:
            raise OSError(errno.ENETUNREACH, "no tunnel")
        reader, writer, answer = await self._dial({"mode": "forward", "target": [host, port]})
        if not answer.get("ok"):
            writer.close()
            raise OSError(errno.ECONNREFUSED, "refused at the far end")
        return reader, writer

    # -- misbehaviour -------------------------------------------------------------------------------------------

    async def _watch_faults(self) -> None:
        flapped = 0.0
        while True:
            self._plan.reload()
            act_on_process_faults(self._plan, self._notices)
            if self._plan.take("establish_timeout") is not None:
                self._notices.emit("EstablishTunnelTimeout", timeout="5m0s")
                self._stop(0)
            if self._plan.find("disconnect") is not None:
                self._drop_connection()
            flap = self._plan.find("flap")
            if flap is not None and time.monotonic() - flapped > flap.number("period", 0.2) / 2:
                flapped = time.monotonic()
                self._report_tunnels(0 if self._tunnels else 1)
            await asyncio.sleep(FAULT_TICK)
