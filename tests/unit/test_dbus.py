"""D-Bus as bytes, against a real bus where one is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.buses import run_bus

from psiphon_vpn.linux.dbus import BUS_NAME, BUS_PATH, BusError, find_socket, open_bus
from psiphon_vpn.linux.dbus_wire import (
    MAX_MESSAGE,
    Message,
    WireError,
    measure,
    parse_message,
    render_call,
    split_signature,
)

CALL = {"destination": "a.b", "path": "/c", "interface": "d.e", "member": "F"}


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.integers(0, 2**32 - 1),
    st.lists(st.text("abc")),
    st.booleans(),
)
def test_what_is_written_is_what_is_read(text: str, number: int, many: list[str], yes: bool) -> None:
    arguments = (text, number, many, {"k": ("s", text)}, yes)
    data = render_call(7, **CALL, signature="suasa{sv}b", arguments=arguments)
    assert measure(data) == len(data)
    message = parse_message(data)
    assert message.arguments == (text, number, many, {"k": text}, yes)
    assert (message.serial, message.member, message.path, message.signature) == (7, "F", "/c", "suasa{sv}b")


@given(st.binary(max_size=200))
def test_whatever_the_bytes_they_are_a_message_or_an_error(data: bytes) -> None:
    for prefix in (b"", b"l\x02\x00\x01", b"B\x04\x00\x01"):
        with contextlib.suppress(WireError):
            assert isinstance(parse_message(prefix + data), Message)


@given(st.data())
def test_a_good_message_with_a_byte_changed_is_a_message_or_an_error(data: st.DataObject) -> None:
    good = bytearray(render_call(7, **CALL, signature="sa{sv}(ub)", arguments=("x", {"k": ("s", "v")}, (1, True))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        parse_message(bytes(good))


@given(st.text("ybnqiuxtdsogvah(){}", max_size=40))
def test_a_signature_is_split_into_what_it_consists_of_or_refused(signature: str) -> None:
    with contextlib.suppress(WireError):
        assert "".join(split_signature(signature)) == signature


@pytest.mark.parametrize("signature", ["()", "a()", "a", "(", "(s", "z", "a" * 100, "(" * 100])
def test_signatures_that_have_no_end_or_no_size_are_refused(signature: str) -> None:
    with pytest.raises(WireError):
        split_signature(signature)


def test_a_message_that_says_it_is_huge_is_refused_before_it_is_read() -> None:
    head = b"l\x04\x00\x01" + (MAX_MESSAGE + 1).to_bytes(4, "little") + bytes(8)
    with pytest.raises(WireError, match="too long"):
        measure(head)


def test_the_socket_of_an_address_is_found() -> None:
    assert find_socket("unix:path=/run/a%20b,guid=1") == "/run/a b"
    assert find_socket("tcp:host=x;unix:abstract=/tmp/y") == "\0/tmp/y"
    with pytest.raises(BusError):
        find_socket("tcp:host=x")


@pytest.fixture(scope="module")
def bus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_bus(tmp_path_factory.mktemp("bus") / "socket") as (address, _process):
        yield address


def test_a_real_bus_answers_and_its_errors_are_errors(bus_address: str) -> None:
    async def scenario() -> None:
        bus = await open_bus(bus_address, lambda _message: None)
        names = (await bus.call(BUS_NAME, BUS_PATH, BUS_NAME, "ListNames"))[0]
        assert BUS_NAME in names
        assert await bus.find_owner("org.example.Nobody") is None
        with pytest.raises(BusError, match="UnknownMethod"):
            await bus.call(BUS_NAME, BUS_PATH, BUS_NAME, "Nonsense")
        bus.close()

    asyncio.run(scenario())


def test_signals_are_heard_and_the_end_of_the_bus_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard: list[Message] = []
        with run_bus(tmp_path / "socket") as (address, process):
            bus = await open_bus(address, heard.append)
            await bus.listen(f"type='signal',sender='{BUS_NAME}',member='NameOwnerChanged'")
            other = await open_bus(address, lambda _message: None)
            other.close()
            async with asyncio.timeout(60):
                while not [one for one in heard if one.member == "NameOwnerChanged"]:
                    await asyncio.sleep(0.01)
            assert {one.sender for one in heard} == {BUS_NAME}
            process.terminate()
            async with asyncio.timeout(60):
                await bus.closed.wait()
            with pytest.raises(BusError):
                await bus.call(BUS_NAME, BUS_PATH, BUS_NAME, "ListNames")

    asyncio.run(scenario())


def test_without_a_bus_there_is_an_error_and_no_descriptor_is_left(tmp_path: Path) -> None:
    async def scenario() -> int:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(BusError):
                await open_bus(f"unix:path={tmp_path / 'none'}", lambda _message: None)
        return len(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(scenario()) == 0


@pytest.mark.parametrize("said", [b"", b"REJECTED\r\n", b"OK 1\r\nAGREE_UNIX_FD\r\n" + b"\xff" * 400])
def test_something_that_is_no_bus_is_an_error_and_not_a_hang(tmp_path: Path, said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(said)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_unix_server(talk, tmp_path / "socket")
        async with server, asyncio.timeout(60):
            with pytest.raises(BusError):
                await open_bus(f"unix:path={tmp_path / 'socket'}", lambda _message: None)

    asyncio.run(scenario())
