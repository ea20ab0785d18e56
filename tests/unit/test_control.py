# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: server and client, over real Unix sockets."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Figure

from psiphon_vpn import client
from psiphon_vpn.errors import DaemonDownError, NotRootError, UserError
from psiphon_vpn.service import control
from psiphon_vpn.service.control import COMMANDS, MAX_CLIENTS, MAX_OF_ONE, RESERVED_FOR_ROOT, ControlServer
from psiphon_vpn.service.jsonrpc import MAX_LINE, RpcError, parse_request
from psiphon_vpn.tasks import call_later

GROUP = 54321
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acting as other users needs root")


class Backend:
    """Records the commands that it gets."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failure: Exception | None = None

    async def status(self) -> dict[str, object]:
        if self.failure:
            raise self.failure
        return {"state": "LOCKED", "locked": True, "done": list(self.done)}

    async def command(self, name: str) -> dict[str, object]:
        self.done.append(name)
        return await self.status()


class Conversation:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, line: bytes) -> None:
        self.writer.write(line)
        await self.writer.drain()

    async def receive(self) -> dict[str, object]:
        async with asyncio.timeout(60):
            message = json.loads(await self.reader.readuntil(b"\n"))
        assert isinstance(message, dict)
        return message

    async def call(self, method: str) -> dict[str, object]:
        await self.send(json.dumps({"jsonrpc": "2.0", "id": "x", "method": method}).encode() + b"\n")
        return await self.receive()

    async def is_closed(self) -> bool:
        async with asyncio.timeout(60):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def is_cut_off(self) -> bool:
        """Whether the connection ends after what was sent before."""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                await self.reader.read()
            return self.reader.at_eof() or self.reader.exception() is not None


def find_error_code(answer: dict[str, object]) -> object:
    error = answer.get("error")
    return error.get("code") if isinstance(error, dict) else None


@contextlib.contextmanager
def become(uid: int, groups: Sequence[int]) -> Iterator[None]:
    """Connect as somebody else: the kernel records the effective ids at connect()."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(NOBODY)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


class Bench:
    """A server on a socket of its own, and clients for it."""

    def __init__(self, directory: Path, backend: Backend, server: ControlServer) -> None:
        self.path = directory / client.SOCKET_NAME
        self.backend = backend
        self.server = server
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, *, uid: int = 0, groups: Sequence[int] = ()) -> Conversation:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with become(uid, groups) if uid else contextlib.nullcontext():
                sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        self._writers.append(writer)
        return Conversation(reader, writer)

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await self.server.close()


@contextlib.asynccontextmanager
async def serving(*, idle_seconds: float = 30) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        backend = Backend()
        gid = GROUP if os.geteuid() == 0 else os.getegid()
        bench = Bench(
            directory,
            backend,
            ControlServer(directory / client.SOCKET_NAME, gid=gid, backend=backend, idle_seconds=idle_seconds),
        )
        await bench.server.start()
        try:
            yield bench
        finally:
            await bench.close()


def run_with_bench(test: Callable[[Bench], Awaitable[None]], *, idle_seconds: float = 30) -> None:
    async def go() -> None:
        async with asyncio.timeout(60), serving(idle_seconds=idle_seconds) as bench:
            await test(bench)

    asyncio.run(go())


def test_status_is_answered() -> None:
    async def check(bench: Bench) -> None:
        answer = await (await bench.connect()).call("status")
        assert answer == {"jsonrpc": "2.0", "id": "x", "result": await bench.backend.status()}

    run_with_bench(check)


@needs_root
def test_root_can_give_every_command() -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect()
        for name in control.COMMANDS:
            assert "result" in await talk.call(name)
        assert bench.backend.done == list(control.COMMANDS)

    run_with_bench(check)


@needs_root
def test_a_member_of_the_group_can_read_but_change_nothing() -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect(uid=NOBODY, groups=[GROUP])
        assert "result" in await talk.call("status")
        for name in control.COMMANDS:
            assert find_error_code(await talk.call(name)) == -32001
        await talk.send(b'{"jsonrpc":"2.0","method":"stop"}\n')  # a JSON-RPC notification does not bypass the check
        assert "result" in await talk.call("status")
        assert bench.backend.done == []

    run_with_bench(check)


@needs_root
def test_a_stranger_cannot_even_connect_and_is_refused_if_handed_a_connection() -> None:
    async def check(bench: Bench) -> None:
        with pytest.raises(PermissionError):
            await bench.connect(uid=NOBODY)
        bench.path.chmod(0o666)
        talk = await bench.connect(uid=NOBODY)
        assert find_error_code(await talk.call("status")) == -32001
        assert await talk.is_closed()

    run_with_bench(check)


@needs_root
def test_the_socket_has_mode_0660_and_the_group() -> None:
    async def check(bench: Bench) -> None:
        status = bench.path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert status.st_gid == GROUP

    run_with_bench(check)


def test_watchers_get_the_status_and_every_change() -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect()
        assert "result" in await talk.call("watch")
        for number in range(3):
            bench.server.publish({"number": number})
        for number in range(3):
            assert await talk.receive() == {"jsonrpc": "2.0", "method": "status", "params": {"number": number}}
        assert "result" in await talk.call("status")  # a watcher may still ask

    run_with_bench(check)


def test_a_watcher_that_does_not_read_is_dropped_and_the_others_go_on() -> None:
    async def check(bench: Bench) -> None:
        deaf, good = await bench.connect(), await bench.connect()
        await deaf.call("watch")
        await good.call("watch")
        hearing = deaf.writer.transport
        assert isinstance(hearing, asyncio.Transport)
        hearing.pause_reading()
        for _ in range(40):
            bench.server.publish({"large": "x" * 30000})
            await good.receive()
        assert "result" in await good.call("status"), "the answer comes after all that was published"
        hearing.resume_reading()
        assert await deaf.is_cut_off()

    run_with_bench(check)


def record_timers(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[float]:
    """The timers that the server starts; they run out at once."""
    started: asyncio.Queue[float] = asyncio.Queue()

    def start(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        started.put_nowait(seconds)
        return call_later(0, function)

    monkeypatch.setattr(control, "call_later", start)
    return started


def test_a_client_that_has_read_everything_leaves_nothing_that_wakes_the_daemon_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check(bench: Bench) -> None:
        started = record_timers(monkeypatch)
        done = await bench.connect()
        await done.call("status")
        done.writer.write_eof()
        assert await done.is_closed()
        silent = await bench.connect()
        assert await silent.is_closed()
        assert started.empty()

    run_with_bench(check, idle_seconds=0.2)


def test_a_client_that_leaves_its_answer_unread_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(bench: Bench) -> None:
        started = record_timers(monkeypatch)
        monkeypatch.setattr(control, "DRAIN_SECONDS", 0.1)

        async def answer() -> dict[str, object]:
            return {"large": "x" * 4_000_000}

        monkeypatch.setattr(bench.backend, "status", answer)
        deaf = await bench.connect()
        hearing = deaf.writer.transport
        assert isinstance(hearing, asyncio.Transport)
        hearing.pause_reading()
        await deaf.send(b'{"jsonrpc": "2.0", "id": "x", "method": "status"}\n')
        assert await started.get() == 0.1
        hearing.resume_reading()
        assert await deaf.is_cut_off()

    run_with_bench(check)


def test_a_silent_client_is_dropped_but_a_watcher_is_not() -> None:
    async def check(bench: Bench) -> None:
        silent, watcher = await bench.connect(), await bench.connect()
        await watcher.call("watch")
        await silent.send(b'{"half a line')
        assert await silent.is_closed()
        bench.server.publish({"still": "there"})
        assert (await watcher.receive())["params"] == {"still": "there"}

    run_with_bench(check, idle_seconds=1.5)


def test_a_line_that_is_too_long_is_refused() -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect()
        with contextlib.suppress(ConnectionError):
            await talk.send(b"x" * (3 * MAX_LINE))
        assert find_error_code(await talk.receive()) == -32600
        assert await talk.is_closed()
        assert "result" in await (await bench.connect()).call("status")

    run_with_bench(check)


@needs_root
def test_members_of_the_group_cannot_crowd_root_out() -> None:
    async def check(bench: Bench) -> None:
        crowd = []
        for number in range(MAX_CLIENTS - RESERVED_FOR_ROOT):
            crowd.append(await bench.connect(uid=NOBODY - number // MAX_OF_ONE, groups=[GROUP]))
            assert "result" in await crowd[-1].call("status")
        refused = await bench.connect(uid=NOBODY, groups=[GROUP])
        assert find_error_code(await refused.receive()) == -32000
        assert "result" in await (await bench.connect()).call("stop")

    run_with_bench(check)


@needs_root
def test_one_user_cannot_crowd_the_others_out() -> None:
    async def check(bench: Bench) -> None:
        crowd = [await bench.connect(uid=NOBODY, groups=[GROUP]) for _ in range(MAX_OF_ONE)]
        for talk in crowd:
            assert "result" in await talk.call("status")
        refused = await bench.connect(uid=NOBODY, groups=[GROUP])
        assert find_error_code(await refused.receive()) == -32000
        other = await bench.connect(uid=NOBODY - 1, groups=[GROUP])
        assert "result" in await other.call("status")
        # A client that leaves makes room.
        crowd[0].writer.transport.abort()
        async with asyncio.timeout(60):
            while find_error_code(await (await bench.connect(uid=NOBODY, groups=[GROUP])).call("status")):
                await asyncio.sleep(0.05)

    run_with_bench(check)


@needs_root
def test_whom_root_allows_may_look_and_change_nothing_and_nobody_else_reaches_the_daemon() -> None:
    async def check(bench: Bench) -> None:
        bench.server.allow(frozenset({NOBODY}))
        assert stat.S_IMODE(bench.path.stat().st_mode) == 0o660
        talk = await bench.connect(uid=NOBODY)
        assert "result" in await talk.call("status")
        for command in COMMANDS:
            assert find_error_code(await talk.call(command)) == -32001
        assert "result" in await (await bench.connect(uid=4242, groups=[GROUP])).call("status")
        with pytest.raises(PermissionError):
            await bench.connect(uid=NOBODY - 1)
        bench.server.allow(frozenset())
        with pytest.raises(PermissionError):
            await bench.connect(uid=NOBODY)
        assert "result" in await (await bench.connect(uid=4242, groups=[GROUP])).call("status")

    run_with_bench(check)


@needs_root
def test_a_socket_that_is_made_again_lets_readers_in_from_the_first_moment() -> None:
    async def check(bench: Bench) -> None:
        await bench.server.close()
        bench.server.allow(frozenset({NOBODY}))
        await bench.server.start()
        assert "result" in await (await bench.connect(uid=NOBODY)).call("watch")

    run_with_bench(check)


def test_no_more_than_the_limit_of_clients_is_served() -> None:
    async def check(bench: Bench) -> None:
        limit = MAX_CLIENTS if os.geteuid() == 0 else MAX_OF_ONE
        for _ in range(limit):
            assert "result" in await (await bench.connect()).call("status")
        assert find_error_code(await (await bench.connect()).receive()) == -32000

    run_with_bench(check)


def test_a_flood_of_requests_does_not_keep_others_from_an_answer(figure: Figure) -> None:
    async def check(bench: Bench) -> None:
        flood = await bench.connect()
        flood.writer.write(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n' * 20000)
        loop = asyncio.get_running_loop()
        worst = 0.0
        for _ in range(50):
            before = loop.time()
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - before)
        # The lease must be renewed within seconds.
        figure("the longest that a flood of requests keeps the daemon busy, ms", worst * 1000)
        assert "result" in await (await bench.connect()).call("status")

    run_with_bench(check)


def test_a_failure_of_a_command_reaches_the_client_in_its_parts() -> None:
    async def check(bench: Bench) -> None:
        bench.backend.failure = UserError("Cannot", "because", "Do this.")
        error = (await (await bench.connect()).call("status"))["error"]
        assert isinstance(error, dict)
        assert error["data"] == {"what": "Cannot", "why": "because", "next_step": "Do this."}

    run_with_bench(check)


def test_a_fault_of_the_daemon_is_answered_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def check(bench: Bench) -> None:
        bench.backend.failure = RuntimeError("hunter2")
        answer = await (await bench.connect()).call("status")
        assert find_error_code(answer) == -32603
        assert "hunter2" not in str(answer)
        bench.backend.failure = None
        assert "result" in await (await bench.connect()).call("status")

    run_with_bench(check)
    assert "status failed" in caplog.text


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 50000, -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"status"}', -32700),
        (b"[]", -32600),
        (b"5", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"status"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"status"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"status"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"a":1}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"release"}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"__class__"}', -32601),
    ],
)
def test_a_bad_request_gets_its_error_and_the_conversation_goes_on(line: bytes, code: int) -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect()
        await talk.send(line + b"\n")
        assert find_error_code(await talk.receive()) == code
        assert "result" in await talk.call("status")

    run_with_bench(check)


@given(st.binary(max_size=300))
def test_any_line_is_a_request_or_an_error(line: bytes) -> None:
    try:
        assert parse_request(line).method is not None
    except RpcError as error:
        assert error.code in {-32700, -32600, -32602}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=4))
def test_garbage_on_the_socket_never_stops_the_server(chunks: list[bytes]) -> None:
    async def check(bench: Bench) -> None:
        talk = await bench.connect()
        for chunk in chunks:
            with contextlib.suppress(ConnectionError):
                await talk.send(chunk)
        talk.writer.transport.abort()
        assert "result" in await (await bench.connect()).call("status")
        assert bench.backend.done == []

    run_with_bench(check)


@pytest.mark.defect(15)
def test_a_stale_socket_is_replaced_and_a_newer_one_is_left_alone() -> None:
    async def check(bench: Bench) -> None:
        old_inode = bench.path.stat().st_ino
        successor = ControlServer(bench.path, gid=bench.path.stat().st_gid, backend=Backend())
        await successor.start()
        assert bench.path.stat().st_ino != old_inode
        await bench.server.close()  # the old one ends after the new one has started
        assert "result" in await (await bench.connect()).call("status")
        await successor.close()
        assert list(bench.path.parent.iterdir()) == []

    run_with_bench(check)


def test_a_socket_that_cannot_be_made_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken" / "x").mkdir(parents=True)

    async def check() -> None:
        for path in (tmp_path / "taken", tmp_path / "none" / "control.sock"):
            with pytest.raises(UserError, match="The control socket"):
                await ControlServer(path, gid=os.getegid(), backend=Backend()).start()

    asyncio.run(check())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# The client.


@contextlib.contextmanager
def answering(directory: Path, *answers: bytes) -> Iterator[None]:
    """A server on the control socket that sends one client what the test says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(directory / client.SOCKET_NAME))
    listener.listen()
    listener.settimeout(60)

    def answer() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as sock:
            sock.recv(65536)
            for text in answers:
                sock.sendall(text)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()
        (directory / client.SOCKET_NAME).unlink()


def result(status: dict[str, object]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": status}).encode() + b"\n"


def error(code: int, **data: str) -> bytes:
    body = {"code": code, "message": "short", "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": body}).encode() + b"\n"


def test_the_client_returns_what_the_daemon_says(tmp_path: Path) -> None:
    with answering(tmp_path, result({"state": "OPEN"})):
        assert client.request_status(tmp_path) == {"state": "OPEN"}


def test_the_client_yields_changes_and_says_when_the_daemon_has_gone(tmp_path: Path) -> None:
    change = b'{"jsonrpc":"2.0","method":"status","params":{"state":"OPEN"}}\n'
    with answering(tmp_path, result({"state": "LOCKED"}), b'{"method":"new"}\n', change[:10], change[10:]):
        changes = client.watch_status(tmp_path)
        assert next(changes) == {"state": "LOCKED"}
        assert next(changes) == {"state": "OPEN"}
        with pytest.raises(DaemonDownError, match="closed the connection"):
            next(changes)


def test_the_client_asks_again_when_nothing_changes_if_that_is_wanted() -> None:
    async def scenario() -> None:
        async with serving() as bench:
            statuses = client.watch_status(bench.path.parent, refresh=0.01)
            for _ in range(4):
                # Nothing changes: what comes are answers to further requests.
                assert "state" in await asyncio.to_thread(next, statuses)
            bench.server.publish({"state": "CHANGED"})
            async with asyncio.timeout(60):
                while (await asyncio.to_thread(next, statuses))["state"] != "CHANGED":
                    pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (error(-32001), NotRootError, "only root"),
        (error(-32000, what="Cannot", why="be\x1b[2Jcause", next_step="Do."), UserError, "Cannot: be [2Jcause. Do."),
        (error(-32603), UserError, "The service refused: short"),
        (b"garbage\n", DaemonDownError, "not the service"),
        (b"[" * 50000 + b"\n", DaemonDownError, "not the service"),
        (b'{"result":5}\n', DaemonDownError, "not the service"),
        (b"x" * (client.MAX_ANSWER + 2), DaemonDownError, "not the service"),
        (b"", DaemonDownError, "closed the connection"),
    ],
)
def test_the_client_turns_every_bad_answer_into_one_line(
    tmp_path: Path, answer: bytes, kind: type[UserError], text: str
) -> None:
    with answering(tmp_path, answer), pytest.raises(kind) as caught:
        client.send_command(tmp_path, "stop")
    assert text in str(caught.value)


def test_the_client_does_not_wait_for_a_daemon_that_hangs(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / client.SOCKET_NAME))
    with listener:
        with pytest.raises(DaemonDownError, match="not running"):
            client.request_status(tmp_path)
        listener.listen()
        with pytest.raises(DaemonDownError, match="did not answer within"):
            client.request_status(tmp_path, timeout=0.1)


@needs_root
def test_the_client_says_who_may_ask_when_it_may_not() -> None:
    async def check(bench: Bench) -> None:
        with become(NOBODY, []), pytest.raises(UserError, match="only root and the users that"):
            client.request_status(bench.path.parent)

    run_with_bench(check)
