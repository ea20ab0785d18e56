# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching over one connection: the host proves its name, the file is small enough, a proxy gets an address."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.https_site import Site, make_certificate, run_site

from psiphon_vpn.servers import direct_fetch
from psiphon_vpn.servers.direct_fetch import fetch_over
from psiphon_vpn.servers.fetch_order import Order, ProxyAccess, Refusal, RefusedError, read_answer
from psiphon_vpn.unprivileged import Limits, Trouble, UnprivilegedError, run_unprivileged

HIGH = 200_000
LIMIT = 30.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"), name="DNS:lists.example")


@pytest.fixture
def site(certificate: tuple[Path, Path]) -> Iterator[Site]:
    with run_site(b"signed list" * 1000, certificate) as site:
        yield site


def order(port: int, *, host: str = "lists.example", proxy: ProxyAccess | None = None, high: int = HIGH) -> Order:
    return Order(host=host, path="/web/list", address="127.0.0.1", port=port, proxy=proxy, high=high)


def fetch(site: Site, certificate: tuple[Path, Path], wanted: Order | None = None) -> bytes:
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    with socket.create_connection(("127.0.0.1", site.port), LIMIT) as connection:
        return fetch_over(connection, wanted or order(site.port), trust)


def refusal_of(action: Callable[[], object]) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        action()
    return caught.value.refusal


def test_a_file_is_fetched_of_a_host_that_has_a_certificate_for_its_name(
    site: Site, certificate: tuple[Path, Path]
) -> None:
    assert fetch(site, certificate) == site.content
    assert site.paths == ["/web/list"]
    assert site.requests[0]["host"] == "lists.example"


@pytest.mark.requirement("R1")
def test_a_host_with_a_certificate_for_another_name_is_not_even_asked(
    site: Site, certificate: tuple[Path, Path]
) -> None:
    wanted = order(site.port, host="other.example")
    assert refusal_of(lambda: fetch(site, certificate, wanted)) is Refusal.WRONG_HOST
    assert site.requests == []


def test_a_host_that_is_only_to_prove_its_name_is_asked_for_nothing(site: Site, certificate: tuple[Path, Path]) -> None:
    assert fetch(site, certificate, replace(order(site.port), path="")) == b""
    wanted = replace(order(site.port, host="other.example"), path="")
    assert refusal_of(lambda: fetch(site, certificate, wanted)) is Refusal.WRONG_HOST
    assert site.requests == []


@pytest.mark.parametrize("behaviour", ["404", "500", "redirect:https://127.0.0.1/", "cut:100", "endless"])
def test_a_host_that_gives_no_whole_file_is_refused(site: Site, certificate: tuple[Path, Path], behaviour: str) -> None:
    site.script = [behaviour]
    assert refusal_of(lambda: fetch(site, certificate)) is Refusal.NO_FILE
    assert len(site.requests) == 1, "no redirect is followed"


def test_a_file_that_is_too_large_is_refused(site: Site, certificate: tuple[Path, Path]) -> None:
    wanted = order(site.port, high=len(site.content) - 1)
    assert refusal_of(lambda: fetch(site, certificate, wanted)) is Refusal.NO_FILE
    wanted = order(site.port, high=len(site.content))
    assert fetch(site, certificate, wanted) == site.content


# -- the process itself ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A connection to a peer with the given behaviour."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with contextlib.suppress(OSError), theirs:
            behave(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(LIMIT)


def run_process(connection: socket.socket, wanted: Order, *, wait: float = LIMIT) -> bytes:
    descriptor = connection.fileno()
    limits = Limits(wait=wait, output=HIGH + 1)
    name = direct_fetch.__name__
    return read_answer(run_unprivileged(name, (str(descriptor),), wanted.render(), limits, pass_fds=(descriptor,)))


@pytest.mark.requirement("R1", "R24")
def test_the_process_trusts_the_systems_certificates_alone(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), LIMIT) as connection:
        assert refusal_of(lambda: run_process(connection, order(site.port))) is Refusal.WRONG_HOST
    assert site.requests == []


def test_a_mirror_needs_no_certificate_and_is_asked_for_the_file(site: Site) -> None:
    for host in ("lists.example", "other.example"):
        with socket.create_connection(("127.0.0.1", site.port), LIMIT) as connection:
            assert run_process(connection, replace(order(site.port, host=host), proves=False)) == site.content


WITHOUT_FILES = """
import resource, socket, ssl, sys
from psiphon_vpn.servers.direct_fetch import fetch_over
from psiphon_vpn.servers.fetch_order import Order
trust = ssl.create_default_context(cafile=sys.argv[2])
order = Order(host="lists.example", path="/web/list", address="127.0.0.1", port=443, proxy=None, high=200_000)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
connection = socket.socket(fileno=int(sys.argv[1]))
connection.settimeout(None)
content = fetch_over(connection, order, trust)
try:
    socket.socket()
except OSError:
    sys.stdout.buffer.write(content)
"""


@pytest.mark.requirement("R1", "R24")
def test_it_needs_no_file_and_no_socket_but_its_connection(site: Site, certificate: tuple[Path, Path]) -> None:
    with socket.create_connection(("127.0.0.1", site.port), LIMIT) as connection:
        number = connection.fileno()
        argv = [sys.executable, "-c", WITHOUT_FILES, str(number), str(certificate[0])]
        done = subprocess.run(argv, pass_fds=(number,), capture_output=True, timeout=LIMIT, check=False)
    assert done.stdout == site.content, done.stderr.decode()


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n\r\nlist", b"\x16\x03\x01" + bytes(1000), bytes(100_000)])
def test_somebody_who_speaks_no_tls_is_refused(said: bytes) -> None:
    heard: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        heard.append(connection.recv(1 << 16))
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1 << 16)

    with peer(behave) as connection:
        assert refusal_of(lambda: run_process(connection, order(443))) is Refusal.WRONG_HOST
    assert b"lists.example" in heard[0], "the first message of TLS, with the host's name (RFC 6066, 3)"


@pytest.mark.requirement("R24")
def test_a_process_that_is_kept_waiting_is_killed() -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    with peer(behave) as connection, pytest.raises(UnprivilegedError) as caught:
        run_process(connection, order(443), wait=0.5)
    assert caught.value.trouble is Trouble.TOO_SLOW


def test_an_order_is_read_as_it_was_written_and_its_password_is_in_no_list_of_processes() -> None:
    access = ProxyAccess(scheme="http", user="me", password="s@me")
    heard: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        heard.append(connection.recv(1 << 16))
        heard.extend(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK))
        connection.sendall(b"HTTP/1.1 407 no\r\n\r\n")

    with peer(behave) as connection:
        assert refusal_of(lambda: run_process(connection, order(443, proxy=access))) is Refusal.PROXY_LOGIN
    assert heard[0].startswith(b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6c0BtZQ==\r\n" in heard[0]
    assert not any(b"s@me" in command for command in heard[1:])


# -- the upstream proxy -----------------------------------------------------------------------------------------------


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def splice(one: socket.socket, port: int) -> None:
    """Copy bytes both ways, as a proxy does."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as other:

        def carry(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        back = threading.Thread(target=carry, args=(other, one))
        back.start()
        carry(one, other)
        back.join(LIMIT)


def test_an_http_proxy_is_asked_for_the_address_and_never_for_the_name(
    site: Site, certificate: tuple[Path, Path]
) -> None:
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        asked.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n")
        splice(connection, site.port)

    wanted = order(site.port, proxy=ProxyAccess(scheme="http"))
    with peer(behave) as connection:
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        assert fetch_over(connection, wanted, trust) == site.content
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{site.port} HTTP/1.1\r\n".encode())
    assert b"lists.example" not in asked[0]


@pytest.mark.parametrize("user", ["", "me"])
def test_a_socks_proxy_is_asked_for_the_address_and_never_for_the_name(
    site: Site, certificate: tuple[Path, Path], user: str
) -> None:
    asked: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        greeting = receive(connection, 3)
        connection.sendall(b"\x05" + greeting[2:3])
        if user:
            asked.append(receive(connection, 1 + 1 + 2 + 1 + 4))
            connection.sendall(b"\x01\x00")
        asked.append(receive(connection, 10))
        connection.sendall(b"\x05\x00\x00\x03\x04abcd\x00\x00")
        splice(connection, site.port)

    access = ProxyAccess(scheme="socks5", user=user, password="word" if user else "")
    with peer(behave) as connection:
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        assert fetch_over(connection, order(site.port, proxy=access), trust) == site.content
    assert asked[-1] == b"\x05\x01\x00\x01\x7f\x00\x00\x01" + site.port.to_bytes(2, "big")
    assert not user or asked[0] == b"\x01\x02me\x04word"


def ask_proxy(scheme: str, said: bytes, user: str = "") -> Refusal:
    """The result with a proxy that answers this."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    wanted = order(443, proxy=ProxyAccess(scheme=scheme, user=user, password=user))
    with peer(behave) as connection:
        connection.settimeout(LIMIT)
        return refusal_of(lambda: fetch_over(connection, wanted, ssl.create_default_context()))


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("said", [b"", b"\x05", b"\x04\x00", b"SSH-2.0-x\r\n\r\n", b"x" * 100_000, b"\r\n\r\n"])
def test_a_proxy_that_talks_nonsense_is_the_proxys_fault(scheme: str, said: bytes) -> None:
    assert ask_proxy(scheme, said) is Refusal.PROXY_ODD


@pytest.mark.parametrize(
    ("scheme", "said", "user"),
    [
        ("http", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ""),
        ("http", b"HTTP/1.0 407 no\r\n\r\n", "me"),
        ("socks5", b"\x05\xff", ""),
        ("socks5", b"\x05\x02\x01\x01", "me"),
    ],
)
def test_a_proxy_that_wants_another_login_is_reported_apart(scheme: str, said: bytes, user: str) -> None:
    assert ask_proxy(scheme, said, user) is Refusal.PROXY_LOGIN


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("http", b"HTTP/1.1 403 no\r\n\r\n"),
        ("http", b"HTTP/1.1 502 x\r\n\r\n"),
        ("socks5", b"\x05\x00\x05\x05\x00\x01"),
    ],
)
def test_a_proxy_that_does_not_connect_to_the_host_is_reported_apart(scheme: str, said: bytes) -> None:
    assert ask_proxy(scheme, said) is Refusal.PROXY
