# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: root and the users that it lists may read, only root may change, and no client harms the daemon.

Everything that a client could make grow is bounded: its line, its unread answers, the number of clients, the time it
may be silent, and the pace of its requests, so that a flood cannot delay the renewal of the lease.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import stat
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.service.jsonrpc import (
    FAILED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MAX_LINE,
    METHOD_NOT_FOUND,
    PERMISSION_DENIED,
    RpcError,
    parse_request,
    render_error,
    render_notification,
    render_result,
)
from psiphon_vpn.service.peers import Peer, read_peer
from psiphon_vpn.service.readers import grant_readers
from psiphon_vpn.tasks import call_later

log = logging.getLogger(__name__)

MAX_CLIENTS: Final = 64
RESERVED_FOR_ROOT: Final = 8
"""Of these, so that other users cannot lock root out by connecting."""
MAX_OF_ONE: Final = 16
"""Clients of one user other than root, so that nobody can lock the others out."""
IDLE_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 5.0
"""A client that does not read its answer within this time is dropped."""
MAX_BACKLOG: Final = 256 * 1024
"""Bytes that a watcher may leave unread."""
PACE_SECONDS: Final = 0.02
"""Pause after each answer to one client."""
SOCKET_MODE: Final = 0o660
COMMANDS: Final = ("start", "stop", "restart", "reload", "sleep-begins", "sleep-ended")


class ControlBackend(Protocol):
    """What the socket gives access to."""

    async def status(self) -> dict[str, object]:
        """Return the status object, ready for JSON."""
        ...

    async def command(self, name: str) -> dict[str, object]:
        """Do one of COMMANDS and return the status after it.

        Raises:
            UserError: it cannot be done; the client receives the reason.
        """
        ...


class ControlServer:
    """Serves a backend on a Unix socket.

    Args:
        path: of the socket; an existing file there is replaced in one step.
        gid: group that may read.
        backend: answers all requests.
        idle_seconds: after which a silent client that does not watch is dropped.
    """

    def __init__(self, path: Path, *, gid: int, backend: ControlBackend, idle_seconds: float = IDLE_SECONDS) -> None:
        self._path = path
        self._gid = gid
        self._backend = backend
        self._idle_seconds = idle_seconds
        self._daemon_uid = os.geteuid()
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._readers: frozenset[int] = frozenset()
        self._clients: set[asyncio.Task[None]] = set()
        self._crowd: Counter[int] = Counter()
        self._watchers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            UserError: the socket cannot be made.
        """
        try:
            sock, self._inode = _make_socket(self._path, gid=self._gid, readers=self._readers)
        except OSError as cause:
            raise UserError(
                _("The control socket {path} cannot be made").format(path=self._path),
                cause.strerror or str(cause),
                _("Check that its directory exists and belongs to the service."),
            ) from cause
        # asyncio accepts as often in a row as its backlog says, and when descriptors run out it schedules another
        # attempt for each time (asyncio/selector_events.py, _accept_connection): a hundred become ten thousand a
        # second later. So it accepts one at a time; the kernel limits how many may wait.
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=MAX_LINE, backlog=1)
        sock.listen(MAX_CLIENTS)

    def allow(self, readers: frozenset[int]) -> None:
        """Let only these users read, besides root and the group. Existing connections stay."""
        self._readers = readers
        if self._server is not None:
            grant_readers(self._path, readers)

    async def close(self) -> None:
        """Stop listening, drop the clients and remove the socket file if it is still ours."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in tuple(self._clients):
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        await server.wait_closed()
        with contextlib.suppress(FileNotFoundError):
            # A later daemon may have put its own socket there.
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    @property
    def watched(self) -> bool:
        """Whether a client waits for changes."""
        return bool(self._watchers)

    def publish(self, status: dict[str, object]) -> None:
        """Send the status to every watcher; drop one that has left too much unread."""
        line = render_notification("status", status)
        for writer in tuple(self._watchers):
            if writer.transport.get_write_buffer_size() > MAX_BACKLOG:
                log.warning("dropping a watcher that does not read")
                self._watchers.discard(writer)
                writer.transport.abort()
            else:
                writer.write(line)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # gone, silent or not reading: drop it
        except asyncio.CancelledError:
            if self._server is not None:
                raise
        finally:
            self._clients.discard(task)
            self._watchers.discard(writer)
            # close() sends what is unsent; a client that does not read it is cut off, at shutdown at once. With nothing
            # unsent it is closed already, and nothing has to wake for it later.
            unsent = writer.transport.get_write_buffer_size() > 0
            writer.close()
            if unsent:
                call_later(DRAIN_SECONDS if self._server is not None else 0, writer.transport.abort)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = read_peer(writer.get_extra_info("socket"))
        if refusal := self._find_refusal(peer):
            writer.write(render_error(refusal))
            return
        self._crowd[peer.uid] += 1
        try:
            await self._serve_peer(peer, reader, writer)
        finally:
            self._crowd[peer.uid] -= 1

    async def _serve_peer(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(None if writer in self._watchers else self._idle_seconds):
                try:
                    line = await reader.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    writer.write(render_error(RpcError(INVALID_REQUEST, f"a line is longer than {MAX_LINE} bytes")))
                    return
            answer = await self._answer(line, peer, writer)
            if answer is not None:
                writer.write(answer)
            async with asyncio.timeout(DRAIN_SECONDS):
                await writer.drain()
            await asyncio.sleep(PACE_SECONDS)

    def _find_refusal(self, peer: Peer) -> RpcError | None:
        if not peer.may_read(daemon_uid=self._daemon_uid, gid=self._gid, readers=self._readers):
            return RpcError(PERMISSION_DENIED, "permission denied")
        is_crowded = len(self._clients) > MAX_CLIENTS - (0 if peer.may_change() else RESERVED_FOR_ROOT)
        if is_crowded or (not peer.may_change() and self._crowd[peer.uid] >= MAX_OF_ONE):
            return RpcError(FAILED, "too many clients", data=_describe_crowd())
        return None

    async def _answer(self, line: bytes, peer: Peer, writer: asyncio.StreamWriter) -> bytes | None:
        try:
            request = parse_request(line)
        except RpcError as error:
            return render_error(error)
        try:
            result = await self._do(request.method, peer, writer)
            answer = render_result(request.request_id, result)
        except RpcError as error:
            error.request_id = request.request_id
            answer = render_error(error)
        except UserError as error:
            data = {"what": error.what, "why": error.why, "next_step": error.next_step}
            answer = render_error(RpcError(FAILED, str(error), data=data, request_id=request.request_id))
        except Exception:
            # The socket survives any fault of a method: the user needs it to learn what is wrong.
            log.exception("%s failed", request.method)
            answer = render_error(RpcError(INTERNAL_ERROR, "internal error", request_id=request.request_id))
        return None if request.is_notification else answer

    async def _do(self, method: str, peer: Peer, writer: asyncio.StreamWriter) -> dict[str, object]:
        if method in COMMANDS:
            if not peer.may_change():
                raise RpcError(PERMISSION_DENIED, "permission denied")
            log.info("uid %d requests: %s", peer.uid, method)
            return await self._backend.command(method)
        if method == "status":
            return await self._backend.status()
        if method == "watch":
            status = await self._backend.status()
            # No await before the answer is written, so that no change gets lost before the first notification.
            self._watchers.add(writer)
            return status
        raise RpcError(METHOD_NOT_FOUND, "there is no such method")


def _describe_crowd() -> dict[str, str]:
    return {
        "what": _("The service cannot answer"),
        "why": _("too many programs are connected to it at once"),
        "next_step": _("Close other status displays and try again."),
    }


def _make_socket(path: Path, *, gid: int, readers: frozenset[int]) -> tuple[socket.socket, int]:
    """Bind under a temporary name, set owner and mode, then rename: never absent, never with a wrong mode."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        try:
            # Nobody can connect before listen().
            sock.bind(str(beside))
            os.chown(beside, -1, gid)
            os.chmod(beside, SOCKET_MODE)
            if readers:
                grant_readers(beside, readers)
            sock.listen(MAX_CLIENTS)
            inode = os.lstat(beside)
            assert stat.S_ISSOCK(inode.st_mode)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except BaseException:
        sock.close()
        raise
    return sock, inode.st_ino
