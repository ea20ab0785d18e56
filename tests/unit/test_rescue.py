# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rescue on a fake network: whom it contacts, how often, and that it ends when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fake_lists import FakeLists
from tests.unit.state_machine_watch import UPLINK_A
from tests.unit.test_hints import PLANTED

from psiphon_vpn.network import uplink as uplinks
from psiphon_vpn.policy.onlink import NOTHING, find_on_link
from psiphon_vpn.policy.routing import IPV6
from psiphon_vpn.policy.values import Address
from psiphon_vpn.servers.fetch_order import Order, ProxyAccess, Refusal
from psiphon_vpn.servers.hints import FILE_NAME, Hint, is_public, read_hints, write_hints
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.service.events import Event, RescueEnded
from psiphon_vpn.service.rescue import ATTEMPTS, Rescue, Way
from psiphon_vpn.tasks import Supervisor
from psiphon_vpn.unprivileged import Trouble, UnprivilegedError

HOST = ListHost("lists.example", "/web/list")
NOW = datetime.now(UTC)
BOTH = replace(UPLINK_A, paths=(*UPLINK_A.paths, uplinks.Path(version=IPV6, gateways=("fe80::1",), places=())))
WAY = Way(uplink=BOTH, on_link=NOTHING, profile="psiphon", proxy=None)
LIMIT = 60.0


def hint(text: str, *, minutes: float = 0.0) -> Hint:
    return Hint(host=HOST.host, address=ipaddress.ip_address(text), seen=NOW - timedelta(minutes=minutes))


@dataclass
class Net:
    """Stands in for the network. `answer` gives the result of a connection to an address: bytes, or an error."""

    answer: Callable[[str], bytes | BaseException] = lambda _address: str(Refusal.WRONG_HOST).encode()
    called: list[tuple[str, int, str]] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    hangs: bool = False
    speaking: asyncio.Event | None = None

    async def connect(self, address: Address, port: int, device: str) -> socket.socket:
        """Return one end of a socket pair, or raise the error."""
        self.called.append((str(address), port, device))
        outcome = self.answer(str(address))
        if isinstance(outcome, OSError):
            raise outcome
        ours, theirs = socket.socketpair()
        if self.hangs:
            self.theirs = theirs
        else:
            theirs.close()
        return ours

    def speak(self, connection: socket.socket, order: Order) -> bytes:
        """Return what the process would say, or wait for the end of the connection."""
        self.orders.append(order)
        with connection:
            if self.hangs:
                assert self.speaking is not None
                self.loop.call_soon_threadsafe(self.speaking.set)
                connection.setblocking(True)
                while connection.recv(1):
                    pass
                self.ended.set()
                return str(Refusal.SILENT).encode()
            outcome = self.answer(order.address)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    loop: asyncio.AbstractEventLoop = field(init=False)
    theirs: socket.socket = field(init=False)


@dataclass
class Scene:
    """A rescue and its results."""

    directory: Path
    net: Net = field(default_factory=Net)
    lists: FakeLists = field(default_factory=lambda: FakeLists((HOST,)))
    events: list[Event] = field(default_factory=list)
    made: int = 0
    rescue: Rescue = field(init=False)

    def know(self, *hints: Hint) -> None:
        write_hints(self.directory / FILE_NAME, hints)

    def known(self) -> list[str]:
        return [str(one.address) for one in read_hints(self.directory / FILE_NAME)]

    async def begin(self, way: Way) -> None:
        self.arrived = asyncio.Event()
        self.net.loop, self.net.speaking = asyncio.get_running_loop(), asyncio.Event()

        def post(event: Event) -> None:
            self.events.append(event)
            self.arrived.set()

        self.tasks = Supervisor(lambda _part, _error: None)
        if not hasattr(self, "rescue"):
            self.rescue = Rescue(state_dir=self.directory, lists=self.lists, tasks=self.tasks, post=post, edge=self.net)
        self.made += 1
        self.rescue.start(self.made, way)

    arrived: asyncio.Event = field(init=False)
    tasks: Supervisor = field(init=False)

    def ask(self, way: Way = WAY, *, times: int = 1) -> list[str]:
        """Make rescues, each until its end; returns the addresses that were contacted."""

        async def scenario() -> None:
            for _ in range(times):
                await self.begin(way)
                async with asyncio.timeout(LIMIT):
                    await self.arrived.wait()

        before = len(self.net.called)
        asyncio.run(scenario())
        return [address for address, _port, _device in self.net.called[before:]]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_host_is_asked_at_its_hint_by_the_uplink_and_its_list_is_handed_on(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"))
    scene.net.answer = lambda _: b"+the list"
    assert scene.ask() == ["11.0.0.80"]
    assert scene.net.called == [("11.0.0.80", 443, "eth0")]
    [order] = scene.net.orders
    assert (order.host, order.path) == (HOST.host, HOST.path)
    assert (order.address, order.port, order.proxy) == ("11.0.0.80", 443, None)
    assert scene.lists.accepted == [b"the list"]
    assert scene.events == [RescueEnded(1, found=True)]
    assert scene.known() == ["11.0.0.80"]


def test_a_list_that_the_core_has_already_starts_nothing(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"), hint("11.0.0.81"))
    scene.lists.new = False
    scene.net.answer = lambda _: b"+the list"
    assert scene.ask() == ["11.0.0.80"]
    assert scene.events == [RescueEnded(1, found=False)]


@pytest.mark.requirement("R1", "R19")
def test_planted_addresses_are_never_called(scene: Scene) -> None:
    planted = [text for texts in PLANTED.values() for text in texts]
    path = scene.directory / FILE_NAME
    for text in planted:
        write_hints(path, [hint(text)])
        assert scene.ask() == [], text
    on_link = find_on_link([ipaddress.ip_interface("11.0.0.5/24"), ipaddress.ip_interface("2600::5/64")], [])
    write_hints(path, [hint("11.0.0.80"), hint("2600::80")])
    assert scene.ask(replace(WAY, on_link=on_link)) == [], "addresses of this machine's links"


@pytest.mark.requirement("R1", "R19")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.ip_addresses(), max_size=12), st.sampled_from([*Refusal]))
def test_whatever_is_planted_few_public_addresses_are_called_at_port_443(
    tmp_path: Path, planted: list[Address], refusal: Refusal
) -> None:
    scene = Scene(tmp_path, net=Net(lambda _: str(refusal).encode()))
    scene.know(*(Hint(host=HOST.host, address=address, seen=NOW) for address in planted))
    called = scene.ask()
    assert len(called) <= ATTEMPTS
    assert len(set(called)) == len(called)
    assert all(is_public(ipaddress.ip_address(text)) for text in called)
    assert all(port == 443 for _address, port, _device in scene.net.called)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "outcome",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        str(Refusal.WRONG_HOST).encode(),
        str(Refusal.NO_FILE).encode(),
        UnprivilegedError(Trouble.ENDED),
    ],
    ids=lambda outcome: (
        getattr(outcome, "trouble", None)
        or (outcome.decode() if isinstance(outcome, bytes) else type(outcome).__name__)
    ),
)
def test_a_planted_public_address_costs_one_connection(scene: Scene, outcome: bytes | BaseException) -> None:
    scene.know(hint("11.0.0.66"))
    scene.net.answer = lambda _: outcome
    assert scene.ask(times=5) == ["11.0.0.66"]
    assert scene.known() == []
    scene.know(hint("11.0.0.66"))
    assert scene.ask() == [], "even if the file could not be written"
    scene.know(hint("11.0.0.66", minutes=-1))
    assert scene.ask() == ["11.0.0.66"], "until a tunnel names it again"


@pytest.mark.parametrize(
    "outcome",
    [TimeoutError(), OSError(101, "unreachable"), PermissionError(), str(Refusal.SILENT).encode(), b"", b"nonsense",
     UnprivilegedError(Trouble.TOO_SLOW), UnprivilegedError(Trouble.NOT_STARTED)],
    ids=repr,
)  # fmt: skip
def test_an_address_that_does_not_answer_is_kept_and_comes_last(scene: Scene, outcome: bytes | BaseException) -> None:
    """A network that is down must not cost all hints."""
    scene.know(*(hint(f"11.0.0.{n}", minutes=n) for n in range(1, 5)))
    scene.net.answer = lambda _: outcome
    assert scene.ask() == ["11.0.0.1", "11.0.0.2", "11.0.0.3"]
    assert scene.ask() == ["11.0.0.4", "11.0.0.1", "11.0.0.2"]
    assert len(scene.known()) == 4


def test_a_version_that_the_uplink_does_not_have_is_not_tried(scene: Scene) -> None:
    scene.know(hint("2600::80"), hint("11.0.0.80", minutes=1))
    assert scene.ask(replace(WAY, uplink=UPLINK_A)) == ["11.0.0.80"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"hints": 7}', b"\xff" * 100, b"[" * 5000])
def test_a_stale_or_odd_file_of_hints_is_no_failure(scene: Scene, content: bytes) -> None:
    (scene.directory / FILE_NAME).write_bytes(content)
    assert scene.ask() == []
    scene.know(hint("11.0.0.80", minutes=60 * 24 * 60))
    assert scene.ask() == [], "months old"
    assert scene.events == [RescueEnded(1, found=False), RescueEnded(2, found=False)]


# -- the upstream proxy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "access"),
    [
        ("http://192.0.2.77:3128", ProxyAccess(scheme="http")),
        ("socks5://[2001:db8::77]:1080", ProxyAccess(scheme="socks5")),
        ("http://me:s%40me@192.0.2.77:3128", ProxyAccess(scheme="http", user="me", password="s@me")),
    ],
)
def test_an_upstream_proxy_is_obeyed(scene: Scene, url: str, access: ProxyAccess) -> None:
    scene.know(hint("11.0.0.80"))
    scene.net.answer = lambda _: b"+the list"
    assert scene.ask(replace(WAY, proxy=url)) == ["2001:db8::77" if "[" in url else "192.0.2.77"]
    assert scene.net.orders[0].proxy == access
    assert (scene.net.orders[0].address, scene.net.orders[0].port) == ("11.0.0.80", 443)


@pytest.mark.requirement("R1", "R11")
@pytest.mark.parametrize("url", ["http://proxy.example:3128", "socks4a://192.0.2.77:1080", "http://192.0.2.77"])
def test_past_a_proxy_that_it_cannot_use_nothing_is_sent(scene: Scene, url: str) -> None:
    scene.know(hint("11.0.0.80"))
    expected = ["192.0.2.77"] if url == "http://192.0.2.77" else []
    assert scene.ask(replace(WAY, proxy=url)) == expected


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (ConnectionRefusedError(), "cannot be reached"),
        (TimeoutError(), "cannot be reached"),
        (str(Refusal.PROXY_ODD).encode(), "does not answer as a proxy"),
        (str(Refusal.PROXY_LOGIN).encode(), "user name and password"),
    ],
    ids=repr,
)
def test_a_proxy_that_does_nothing_costs_no_hint_and_is_reported_as_what_it_is(
    scene: Scene, outcome: bytes | BaseException, words: str
) -> None:
    scene.know(hint("11.0.0.80"), hint("11.0.0.81"))
    scene.net.answer = lambda _: outcome
    assert scene.ask(replace(WAY, proxy="http://192.0.2.77:3128")) == ["192.0.2.77"]
    assert len(scene.known()) == 2
    [ended] = scene.events
    assert isinstance(ended, RescueEnded)
    assert not ended.found
    assert words in ended.proxy_trouble


def test_a_proxy_that_does_not_connect_to_one_host_is_asked_for_the_others_and_is_not_at_fault(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"), hint("11.0.0.81"))
    scene.net.answer = lambda address: b"+the list" if address == "11.0.0.81" else str(Refusal.PROXY).encode()
    assert scene.ask(replace(WAY, proxy="http://192.0.2.77:3128")) == ["192.0.2.77", "192.0.2.77"]
    assert scene.events == [RescueEnded(1, found=True)]
    assert len(scene.known()) == 2


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1", "R3")
def test_a_process_that_hangs_has_no_connection_any_more_once_the_rescue_is_ended(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"))
    scene.net.hangs = True

    async def scenario() -> None:
        await scene.begin(WAY)
        assert scene.net.speaking is not None
        async with asyncio.timeout(LIMIT):
            await scene.net.speaking.wait()
            await scene.rescue.stop()
        scene.net.theirs.settimeout(LIMIT)
        with scene.net.theirs as theirs:
            assert theirs.recv(1) == b"", "the connection has ended"

    asyncio.run(scenario())
    assert scene.net.ended.wait(LIMIT)


@pytest.mark.requirement("R1", "R3")
def test_a_connection_that_is_being_made_is_given_up_when_the_rescue_is_ended(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"), hint("11.0.0.81"))
    began = asyncio.Event()

    async def connect(address: Address, port: int, device: str) -> socket.socket:
        scene.net.called.append((str(address), port, device))
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    scene.net.connect = connect  # type: ignore[method-assign]

    async def scenario() -> None:
        await scene.begin(WAY)
        async with asyncio.timeout(LIMIT):
            await began.wait()
            await scene.rescue.stop()
        assert len(scene.net.called) == 1, "and no other follows"

    asyncio.run(scenario())


def test_ending_no_rescue_is_nothing(scene: Scene) -> None:
    async def scenario() -> None:
        await scene.begin(WAY)
        await scene.rescue.stop()
        await scene.rescue.stop()

    asyncio.run(scenario())


@pytest.mark.requirement("R24")
def test_a_part_that_fails_reports_its_end_too(scene: Scene) -> None:
    scene.know(hint("11.0.0.80"))

    def fail(_profile: str) -> tuple[ListHost, ...]:
        raise KeyError

    scene.lists.find_hosts = fail  # type: ignore[method-assign, assignment]
    with contextlib.suppress(KeyError):
        assert scene.ask() == []
    assert scene.events == [RescueEnded(1, found=False)]
