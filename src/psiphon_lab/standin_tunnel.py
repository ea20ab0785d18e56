# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The running stand-in core: the tunnel, the packets, the local proxy, the faults."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psiphon_lab import tunnel_packet as ip
from psiphon_lab.server_entry import ServerEntry
from psiphon_lab.standin_candidates import Candidate, find_candidates, list_regions, order_candidates
from psiphon_lab.standin_config import CoreConfig
from psiphon_lab.standin_faults import FaultPlan, act_on_process_faults
from psiphon_lab.standin_notices import Notices
from psiphon_lab.standin_protocols import PROTOCOLS, dial
from psiphon_lab.standin_socks import Pipe, serve_socks

RETRY_PAUSE = 2.0
HEAD_START = 1.0
"""How long the server of the last tunnel has to answer before the core connects to others, seconds."""
WORKERS = 10
SILENCE = 15.0
"""The real core probes after 10 s without an answer, and waits 5 s for that."""
NO_SERVER_PAUSE = 0.25
UPSTREAM_LIMIT = 32 << 10
READ_BATCH = 64
FAULT_TICK = 0.02


@dataclass(frozen=True)
class Won:
    """The connection that became the tunnel. region: the server's own statement."""

    entry: ServerEntry
    protocol: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    region: str


def identify(entry: ServerEntry) -> str:
    """A server's name in notices, which does not show where it is."""
    return entry.fingerprint[:8]


class Core:
    """One run of the stand-in core."""

    def __init__(self, *, config: CoreConfig, tun: int | None, bind_interface: str | None, plan: FaultPlan,
                 notices: Notices) -> None:  # fmt: skip
        self._config = config
        self._tun = tun
        self._bind_interface = bind_interface
        self._plan = plan
        self._notices = notices
        self._session = secrets.token_hex(16)
        self._writer: asyncio.StreamWriter | None = None
        self._won: Won | None = None
        self._last: ServerEntry | None = None
        self._unanswered: float | None = None
        self._tunnels: int | None = None
        self._ever_connected = False
        self._sent = self._received = 0
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

    async def _keep_connected(self) -> None:
        config, limit = self._config, self._config.protocols
        known = (config.entry,) if config.entry is not None else config.known
        empty = self._plan.find("empty_list") is not None
        regions = [] if empty else list_regions(known, limit=limit)
        if self._plan.find("no_region") is not None:
            regions = regions or ["US"]
        self._notices.emit("AvailableEgressRegions", regions=regions)
        reported_upstream = False
        turn = 0
        while True:
            if self._plan.find("liar") is not None:
                self._announce(config.entry.region if config.entry else "XX", PROTOCOLS[0], channel=True)
                await asyncio.sleep(3600)
            candidates = find_candidates(known, region=config.egress_region, limit=limit)
            if self._plan.find("no_region") or self._plan.find("empty_list"):
                candidates = []
            self._report_known(len(known))
            self._notices.emit("CandidateServers", region=config.egress_region, initialCount=0, count=len(candidates),
                               limitTunnelProtocols=list(limit), duration="1ms")  # fmt: skip
            if not candidates:
                await asyncio.sleep(NO_SERVER_PAUSE)
                continue
            if self._plan.find("upstream_error") is not None:
                if not reported_upstream:
                    self._notices.emit("UpstreamProxyError", message="dial tcp [redacted]: connection refused")
                reported_upstream = True
            elif self._plan.find("disconnect") is not None:
                pass
            elif config.entry is not None:
                # One attempt at a time, with one protocol. Some tests rely on that.
                await self._call(candidates[0], turn=0, number=0)
            else:
                turn = await self._establish(candidates, turn)
            if self._won is not None:
                await self._run_tunnel(self._won)
            await asyncio.sleep(RETRY_PAUSE)

    def _report_known(self, count: int) -> None:
        """Report the number of known servers before each round, as the real core does if it has no target server."""
        if self._config.entry is not None:
            return
        if self._plan.find("empty_list") is not None:
            count = 0
        elif self._plan.find("no_region") is not None:
            count = max(count, 1)
        self._notices.emit(
            "Info", message=f"ServerEntryIterator.reset: entries {count}, moved-to-front 0; durations: 1ms"
        )

    async def _establish(self, candidates: Sequence[Candidate], turn: int) -> int:
        """Connect to servers until one answers or a fault prevents it; returns the number of the next round.

        A round connects to all of them in parallel, up to the number of workers. The next round follows after a pause.
        """
        calls: set[asyncio.Task[None]] = set()
        number = 0
        try:
            while self._won is None and self._plan.find("disconnect") is None:
                for candidate in order_candidates(candidates, last=self._last):
                    if len(calls) < WORKERS and self._won is None:
                        calls.add(asyncio.ensure_future(self._call(candidate, turn=turn, number=number)))
                        number += 1
                        if candidate.entry == self._last and len(candidates) > 1:
                            await self._wait_for_answer(calls, HEAD_START)
                turn += 1
                await self._wait_for_answer(calls, RETRY_PAUSE)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return turn

    async def _wait_for_answer(self, calls: set[asyncio.Task[None]], seconds: float) -> None:
        until = time.monotonic() + seconds
        while calls and self._won is None and (left := until - time.monotonic()) > 0:
            done, _pending = await asyncio.wait(calls, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            calls -= done
        if self._won is None and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _call(self, candidate: Candidate, *, turn: int, number: int) -> None:
        """Connect to one server. The first that answers becomes `_won`."""
        entry, protocol = candidate.entry, candidate.pick_protocol(turn)
        about: dict[str, Any] = {"diagnosticID": identify(entry), "region": entry.region, "protocol": protocol,
                 "isReplay": False, "candidateNumber": number, "networkType": "UNKNOWN"}  # fmt: skip
        self._notices.emit("ConnectingServer", **about)
        hello: dict[str, object] = {"mode": "packet", "session": self._session}
        try:
            reader, writer, answer = await dial(entry, protocol, hello, bind_interface=self._bind_interface)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else "timeout"  # a TimeoutError is an OSError
            self._notices.emit("Warning", message=f"failed to connect to {identify(entry)}: {reason}")
            return
        self._notices.emit("ConnectedServer", **about)
        if self._won is not None:
            writer.close()
            return
        self._won = Won(entry, protocol, reader, writer, str(answer.get("region")))

    async def _run_tunnel(self, won: Won) -> None:
        carries = self._plan.find("no_packet_channel") is None
        self._writer = won.writer if carries else None
        self._last = won.entry
        name = identify(won.entry)
        try:
            self._announce(won.region, won.protocol, channel=carries, server=name)
            await self._receive(won.reader)
        except (OSError, EOFError) as error:
            self._notices.emit("Warning", message=f"operate tunnel error for {name}: {error.__class__.__name__}")
        finally:
            self._writer = None
            self._won = None
            won.writer.close()
            self._notices.emit("Warning", message=f"tunnel failed: {name}")
            self._report_tunnels(0)

    def _announce(self, region: str, protocol: str, *, channel: bool, server: str = "") -> None:
        self._ever_connected = True
        self._report_tunnels(1)
        self._notices.emit("ActiveTunnel", diagnosticID=server, protocol=protocol)
        self._notices.emit("ConnectedServerRegion", serverRegion=region)
        self._notices.emit("TrafficRateLimits", upstreamBytesPerSecond=0, downstreamBytesPerSecond=0)
        wrong = self._plan.find("wrong_clock")
        ahead = wrong.number("seconds", 3600.0) if wrong is not None else 0.0
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + ahead))
        self._notices.emit("ServerTimestamp", diagnosticID=server, timestamp=now)
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
                break  # EAGAIN, or the device was deleted; the real core does the same
            upstream = ip.rewrite_query(data, self._config.resolver4, self._config.resolver6)
            if upstream is not None:
                frames += ip.frame_packet(upstream)
        if frames and writer is not None:
            self._suspect_silence(writer)
        full = writer is None or writer.transport.get_write_buffer_size() > UPSTREAM_LIMIT
        if frames and writer is not None and not (full or blackhole or writer.is_closing()):
            writer.write(bytes(frames))
            self._sent += len(frames)

    def _suspect_silence(self, writer: asyncio.StreamWriter) -> None:
        """Give the tunnel up when nothing has answered for long, seen by the next write, as the real core does."""
        now = time.monotonic()
        if self._unanswered is None:
            self._unanswered = now
        elif now - self._unanswered > SILENCE:
            writer.transport.abort()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        self._unanswered = None
        while chunk := await reader.read(65536):
            self._unanswered = None
            buffer += chunk
            for data in ip.split_frames(buffer):
                downstream = ip.rewrite_response(data, self._config.resolver4, self._config.resolver6)
                if downstream is None or self._tun is None or self._plan.find("blackhole") is not None:
                    continue
                with contextlib.suppress(OSError):  # the interface is down, or the kernel refuses the packet
                    self._received += os.write(self._tun, downstream)

    def _report_bytes(self) -> None:
        """Report the bytes since the last time, if any, as the real core does each second."""
        sent, received, self._sent, self._received = self._sent, self._received, 0, 0
        if self._config.count_bytes and (sent or received):
            self._notices.emit("BytesTransferred", sent=sent, received=received)

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
        won = self._won
        if won is None or not self._tunnels:
            raise OSError(errno.ENETUNREACH, "no tunnel")
        hello: dict[str, object] = {"mode": "forward", "target": [host, port]}
        reader, writer, answer = await dial(won.entry, won.protocol, hello, bind_interface=self._bind_interface)
        if not answer.get("ok"):
            writer.close()
            raise OSError(errno.ECONNREFUSED, "refused at the far end")
        return reader, writer

    # -- faults -------------------------------------------------------------------------------------------------

    async def _watch_faults(self) -> None:
        flapped = counted = 0.0
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
            if time.monotonic() - counted >= 1:
                counted = time.monotonic()
                self._report_bytes()
            await asyncio.sleep(FAULT_TICK)
