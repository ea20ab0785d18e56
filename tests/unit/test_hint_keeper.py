# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses are kept as hints: those where the host proved its name inside the tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.fake_lists import FakeLists
from tests.https_site import make_certificate, run_site

from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.fetch_order import Refusal, RefusedError
from psiphon_vpn.servers.hints import FILE_NAME, HINTS_PER_HOST, Hint, read_hints, write_hints
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.service.hint_keeper import CHECKED_SECONDS, HintKeeper, Tunnel
from psiphon_vpn.tasks import Supervisor

HOST = ListHost("lists.example", "/web/list")
SOCKS = 1081
LIMIT = 60.0


def parse(text: str) -> Address:
    return ipaddress.ip_address(text)


@dataclass
class Inside:
    """The inside of the tunnel: the addresses that the resolver names, and those that prove nothing."""

    named: tuple[str, ...] = ()
    refused: dict[str, Refusal] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    async def find_addresses(self, host: str) -> tuple[Address, ...]:
        assert host == HOST.host
        return tuple(parse(text) for text in self.named)

    async def check_name(self, host: str, address: Address, socks: int) -> None:
        self.asked.append((host, str(address), socks))
        if (refusal := self.refused.get(str(address))) is not None:
            raise RefusedError(refusal)


@dataclass
class Scene:
    directory: Path
    inside: Inside = field(default_factory=Inside)
    now: float = 0.0
    keeper: HintKeeper | None = None

    def open(self, *, socks: int | None = SOCKS) -> list[str]:
        """Open the tunnel until the keeper has done its first round; returns the addresses that are known then."""

        async def scenario() -> None:
            tasks = Supervisor(lambda part, error: pytest.fail(f"{part}: {error!r}"))
            if self.keeper is None:
                self.keeper = HintKeeper(
                    state_dir=self.directory,
                    hosts=FakeLists((HOST,)),
                    tasks=tasks,
                    inside=self.inside,
                    clock=lambda: self.now,
                )
            rest = asyncio.Event()
            slept = 0

            async def sleep(_seconds: float) -> None:
                nonlocal slept
                slept += 1
                if slept > 1:  # the first round is over
                    rest.set()
                    await asyncio.Event().wait()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(asyncio, "sleep", sleep)
                self.keeper.start("lab", socks)
                if socks is not None:
                    async with asyncio.timeout(LIMIT):
                        await rest.wait()
                self.keeper.stop()
            await tasks.close()

        asyncio.run(scenario())
        return self.known()

    def known(self) -> list[str]:
        return sorted(str(hint.address) for hint in read_hints(self.directory / FILE_NAME))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.requirement("R1", "R19")
@pytest.mark.parametrize("refusal", Refusal)
def test_an_address_is_kept_only_if_the_host_proves_its_name_there(scene: Scene, refusal: Refusal) -> None:
    scene.inside.named = ("11.0.0.80", "11.0.0.81", "2600::80")
    scene.inside.refused = {"11.0.0.81": refusal}
    assert scene.open() == ["11.0.0.80", "2600::80"]
    assert scene.inside.asked == [(HOST.host, address, SOCKS) for address in scene.inside.named]


@pytest.mark.requirement("R1", "R19")
def test_nothing_is_kept_where_nothing_can_be_proved(scene: Scene) -> None:
    scene.inside.named = ("11.0.0.80",)
    assert scene.open(socks=None) == []
    assert scene.inside.asked == []
    assert scene.open() == ["11.0.0.80"]


def test_an_address_that_is_none_of_the_public_ones_is_not_even_called(scene: Scene) -> None:
    scene.inside.named = ("192.168.1.1", "127.0.0.1", "fe80::1", *(f"11.0.0.{n}" for n in range(20)))
    scene.open()
    assert [address for _host, address, _socks in scene.inside.asked] == [f"11.0.0.{n}" for n in range(HINTS_PER_HOST)]


def test_an_address_that_proves_another_name_now_is_forgotten_and_one_that_is_silent_is_not(scene: Scene) -> None:
    seen = datetime.now(UTC) - timedelta(days=1)
    write_hints(
        scene.directory / FILE_NAME, [Hint(host=HOST.host, address=parse(f"11.0.0.{n}"), seen=seen) for n in (1, 2, 3)]
    )
    scene.inside.named = ("11.0.0.1", "11.0.0.2")
    scene.inside.refused = {"11.0.0.1": Refusal.WRONG_HOST, "11.0.0.2": Refusal.SILENT}
    assert scene.open() == ["11.0.0.2", "11.0.0.3"]


def test_a_proof_counts_for_some_hours_and_a_refusal_for_none(scene: Scene) -> None:
    scene.inside.named = ("11.0.0.80", "11.0.0.81")
    scene.inside.refused = {"11.0.0.81": Refusal.PROXY}
    scene.open()
    scene.open()
    assert [address for _host, address, _socks in scene.inside.asked] == ["11.0.0.80", "11.0.0.81", "11.0.0.81"]
    scene.now += CHECKED_SECONDS
    scene.open()
    assert len(scene.inside.asked) == 5


# -- the proof itself --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A SOCKS proxy for one connection, without a password; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                assert connection.recv(3) == b"\x05\x01\x00"
                connection.sendall(b"\x05\x00")
                assert connection.recv(10)[3:8] == b"\x01" + parse("11.0.0.80").packed
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(LIMIT)


def prove(port: int) -> Refusal | None:
    async def scenario() -> None:
        async with asyncio.timeout(LIMIT):
            await Tunnel().check_name(HOST.host, parse("11.0.0.80"), port)

    try:
        asyncio.run(scenario())
    except RefusedError as refused:
        return refused.refusal
    return None


@pytest.mark.requirement("R1", "R19")
def test_a_host_with_a_certificate_that_this_system_does_not_trust_proves_nothing(tmp_path: Path) -> None:
    with run_site(b"", make_certificate(tmp_path, name=f"DNS:{HOST.host}")) as site:

        def behave(connection: socket.socket) -> None:
            connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
            with socket.create_connection(("127.0.0.1", site.port), LIMIT) as far:
                thread = threading.Thread(target=carry, args=(far, connection))
                thread.start()
                carry(connection, far)
                thread.join(LIMIT)

        with proxy(behave) as port:
            assert prove(port) is Refusal.WRONG_HOST
        assert site.requests == []


def carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_tunnel_that_does_not_connect_proves_nothing() -> None:
    with proxy(lambda connection: connection.sendall(b"\x05\x05\x00\x01" + bytes(6))) as port:
        assert prove(port) is Refusal.PROXY
    assert prove(port) is Refusal.PROXY_UNREACHED, "the proxy is gone"


@pytest.mark.requirement("R1", "R3")
def test_a_proof_ends_with_the_tunnel() -> None:
    gone = threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        began.set()
        connection.settimeout(LIMIT)
        while connection.recv(1 << 16):
            pass
        gone.set()

    began = threading.Event()
    with proxy(behave) as port:

        async def scenario() -> None:
            task = asyncio.create_task(Tunnel().check_name(HOST.host, parse("11.0.0.80"), port))
            assert await asyncio.to_thread(began.wait, LIMIT)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(gone.wait, LIMIT)

        asyncio.run(scenario())
