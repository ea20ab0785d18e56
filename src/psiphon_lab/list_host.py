# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the signed list like a storage service: HTTPS, an ETag for each file, and Range for parts of it.

Run as `python -m psiphon_lab.list_host`. It serves the files of a directory, and reads them for each request. It
records each connection with a request.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.namespace import Host
from psiphon_lab.recording_server import RecordingServer, record_connection
from psiphon_lab.signed_lists import ListSigner, TlsAuthority
from psiphon_lab.waiting import wait_ready
from psiphon_lab.world import World

PORT = 443
LIST_PATH = "web/lab/server_list_compressed"
LIST_URL = f"https://{plan.LIST_NAME}/{LIST_PATH}"
IDLE_SECONDS = 30.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path
    record: Path
    lock = threading.Lock()

    def setup(self) -> None:
        self.request.settimeout(IDLE_SECONDS)
        super().setup()

    def log_message(self, *_args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        caller, own = self.client_address, self.request.getsockname()
        with self.lock:
            record_connection(self.record, caller, own, time=time.time(), path=self.path)
        wanted = (self.directory / self.path.lstrip("/").partition("?")[0]).resolve()
        if not wanted.is_relative_to(self.directory) or not wanted.is_file():
            self._send(404, b"", {}, body=body)
            return
        content = wanted.read_bytes()
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(304, b"", {"ETag": tag}, body=False)
            return
        span = self.headers.get("Range", "")
        begin = span.removeprefix("bytes=").removesuffix("-")
        if span and begin.isdigit() and self.headers.get("If-Range", tag) == tag and int(begin) < len(content):
            part = {"ETag": tag, "Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
            self._send(206, content[int(begin) :], part, body=body)
        else:
            self._send(200, content, {"ETag": tag}, body=body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext

    def __init__(self, address: str, handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, PORT), handler)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a TLS connection. The handler's thread does the handshake, so that others need not wait for it."""
        connection, caller = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), caller

    def handle_error(self, *_args: Any) -> None:
        """Ignore a client that disconnected."""


class ListHost(RecordingServer):
    """Starts and stops the list's server, and publishes lists on it.

    Attributes:
        signer: signs the lists.
        authority: has signed the server's certificate.
    """

    def __init__(self, host: Host, directory: Path) -> None:
        super().__init__(directory / "requests.jsonl")
        self._host = host
        self._files = directory / "files"
        self._files.mkdir(parents=True)
        self._kept = False
        self.signer = ListSigner(directory)
        self.authority = TlsAuthority(directory)
        self._certificate = self.authority.issue(plan.LIST_NAME)

    def publish(self, *entries: str) -> bytes:
        """Publish a list of these servers instead of the last one; returns the signed file."""
        content = self.signer.sign(entries)
        self.offer(LIST_PATH, content)
        return content

    def offer(self, name: str, content: bytes) -> None:
        """Serve a file at this path from now on."""
        path = self._files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(content)
        temporary.rename(path)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the server's process."""
        certificate, key = map(str, self._certificate)
        argv = ["--directory", str(self._files), "--record", str(self.record), "--certificate", certificate]
        child = self._host.spawn_module("psiphon_lab.list_host", *argv, "--key", key, stdout=subprocess.PIPE)
        wait_ready(child, "the list's server")
        return child

    def keep(self) -> None:
        """Leave the server running when its block ends."""
        self._kept = True

    def end(self) -> None:
        """What the end of its block does."""
        if not self._kept:
            self.stop()


@contextlib.contextmanager
def run_list_host(world: World) -> Iterator[ListHost]:
    """The list's server, which listens without a list when the block begins."""
    host = ListHost(world.internet, world.directory / "lists")
    host.start()
    try:
        yield host
    finally:
        host.end()


def main(argv: list[str] | None = None) -> int:
    """Command line entry. Ends only by a signal."""
    parser = argparse.ArgumentParser(prog="psiphon_lab.list_host", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args(argv)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    fields = {"directory": options.directory.resolve(), "record": options.record}
    handler = type("Handler", (_Handler,), fields)
    threads = []
    for address in (plan.LIST_HOST4, plan.LIST_HOST6):
        server = _Server(address, handler)
        server.context = context
        threads.append(threading.Thread(target=server.serve_forever))
    for thread in threads:
        thread.start()
    os.write(1, b"ready\n")
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
