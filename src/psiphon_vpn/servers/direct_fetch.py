# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches a file by HTTPS over a connection that somebody else has made: run only by `unprivileged.py`.

The process that does this can open no file and no socket: it has one connection, to the address that the daemon chose,
or to the upstream proxy. So whatever the other end does to it, it can look up no name and reach nobody else.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from psiphon_vpn.servers.fetch_order import FETCHED, Order, ProxyAccess, Refusal, RefusedError
from psiphon_vpn.stored_files import StoredError, parse_object, take, take_or_none

_MAX_REPLY: Final = 8192
"""Bytes of a proxy's answer."""
_LOGIN_WANTED: Final = b"407"
"""Proxy Authentication Required (RFC 9110, 15.5.8)."""
_NO_METHOD: Final = 0xFF
"""No acceptable method of authentication (RFC 1928, 3)."""
_IPV4_BYTES: Final = 4
_TLS: Final = ssl.create_default_context()
"""Made when this is imported: afterwards no file can be read any more."""
_ANYBODY: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_ANYBODY.check_hostname, _ANYBODY.verify_mode = False, ssl.CERT_NONE
for _codec in ("ascii", "idna", "latin-1", "utf-8"):
    # Python reads a codec's module when it is first used.
    "x".encode(_codec)


def work(argv: Sequence[str], stdin: bytes) -> bytes:
    """Fetch for `run_unprivileged`.

    Args:
        argv: the descriptor of the connection.
        stdin: the order.
    """
    try:
        connection = socket.socket(fileno=int(argv[0]))
        # Without a time limit of its own: Python would use poll(2), which counts against the descriptors that may be
        # open, and that is none. Whoever started this ends it.
        connection.settimeout(None)
        order = _read_order(stdin)
        return FETCHED + fetch_over(connection, order, _TLS if order.proves else _ANYBODY)
    except RefusedError as refused:
        return str(refused.refusal).encode()


def _read_order(content: bytes) -> Order:
    fields = parse_object(content)
    access = take_or_none(fields, "proxy", dict)
    proxy = None
    if access is not None:
        scheme, user, password = (take(access, name, str) for name in ("scheme", "user", "password"))
        proxy = ProxyAccess(scheme=scheme, user=user, password=password)
    host, path, address = (take(fields, name, str) for name in ("host", "path", "address"))
    port, high = (take(fields, name, int) for name in ("port", "high"))
    proves = take(fields, "proves", bool)
    return Order(host=host, path=path, address=address, port=port, proxy=proxy, high=high, proves=proves)


def fetch_over(connection: socket.socket, order: Order, tls: ssl.SSLContext) -> bytes:
    """Fetch a file over a connection.

    Args:
        connection: to the host, or to the proxy.
        order: what.
        tls: which certificates count.

    Returns:
        The file; nothing if the host was only to prove its name, and did.

    Raises:
        RefusedError: there is no file, or no proof.
    """
    if order.proxy is not None:
        try:
            _pass_proxy(connection, order, order.proxy)
        except (OSError, StoredError) as error:
            raise RefusedError(Refusal.PROXY_ODD) from error
    try:
        secured = tls.wrap_socket(connection, server_hostname=order.host)
    except TimeoutError as error:
        raise RefusedError(Refusal.SILENT) from error
    except (OSError, ValueError) as error:
        raise RefusedError(Refusal.WRONG_HOST) from error
    with contextlib.closing(secured):
        return _get(secured, order) if order.path else b""


def _get(secured: ssl.SSLSocket, order: Order) -> bytes:
    # No redirect is followed: it names another host.
    caller = http.client.HTTPConnection(order.host)
    caller.sock = secured
    try:
        caller.request("GET", order.path, headers={"Accept-Encoding": "identity", "Connection": "close"})
        with caller.getresponse() as answer:
            if answer.status != http.client.OK:
                raise RefusedError(Refusal.NO_FILE)
            content = answer.read(order.high + 1)
            missing = answer.length
    except TimeoutError as error:
        raise RefusedError(Refusal.SILENT) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RefusedError(Refusal.NO_FILE) from error
    if len(content) > order.high or missing:
        raise RefusedError(Refusal.NO_FILE)
    return content


# -- the upstream proxy -----------------------------------------------------------------------------------------------


def _pass_proxy(connection: socket.socket, order: Order, access: ProxyAccess) -> None:
    (_ask_socks if access.scheme == "socks5" else _ask_http)(connection, order, access)


def _ask_http(connection: socket.socket, order: Order, access: ProxyAccess) -> None:
    """CONNECT (RFC 9110, 9.3.6), with Basic authentication where there is a user."""
    there = f"[{order.address}]:{order.port}" if ":" in order.address else f"{order.address}:{order.port}"
    lines = [f"CONNECT {there} HTTP/1.1", f"Host: {there}"]
    if access.user:
        secret = base64.b64encode(f"{access.user}:{access.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {secret}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    reply = b""
    # Byte by byte: what follows is the host's.
    while not reply.endswith(b"\r\n\r\n"):
        reply += _receive(connection, 1)
        if len(reply) > _MAX_REPLY:
            raise StoredError("a long answer")
    words = reply.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        raise StoredError("no answer of HTTP")
    if words[1] == _LOGIN_WANTED:
        raise RefusedError(Refusal.PROXY_LOGIN)
    if not words[1].startswith(b"2"):
        raise RefusedError(Refusal.PROXY)


def _ask_socks(connection: socket.socket, order: Order, access: ProxyAccess) -> None:
    """SOCKS 5 (RFC 1928), with user and password where there are some (RFC 1929)."""
    connection.sendall(b"\x05\x01\x02" if access.user else b"\x05\x01\x00")
    version, method = _receive(connection, 2)
    if (version, method) == (5, _NO_METHOD):
        raise RefusedError(Refusal.PROXY_LOGIN)
    if version != 5 or method != (2 if access.user else 0):
        raise StoredError("another version or method")
    if access.user:
        user, password = access.user.encode()[:255], access.password.encode()[:255]
        connection.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        if _receive(connection, 2)[1] != 0:
            raise RefusedError(Refusal.PROXY_LOGIN)
    connection.sendall(b"\x05\x01\x00" + _render_there(order.address) + order.port.to_bytes(2, "big"))
    version, code, _zero, kind_there = _receive(connection, 4)
    if version != 5:
        raise StoredError("another version")
    if code != 0:
        raise RefusedError(Refusal.PROXY)
    rest = {1: 4, 4: 16}.get(kind_there)
    if rest is None:
        rest = _receive(connection, 1)[0]
    _receive(connection, rest + 2)


def _render_there(address: str) -> bytes:
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        name = address.encode("ascii")[:255]
        return b"\x03" + bytes([len(name)]) + name
    return (b"\x01" if len(packed) == _IPV4_BYTES else b"\x04") + packed


def _receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise StoredError("it ended")
        found += part
    return found
