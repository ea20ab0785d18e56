# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A web server on loopback, with the test's own certificate, that can misbehave on request."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def make_certificate(directory: Path, *, name: str = "IP:127.0.0.1,DNS:localhost") -> tuple[Path, Path]:
    """A self-signed certificate, which is its own authority, and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={name}"]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    return certificate, key


@dataclass
class Site:
    """What the server serves, and how. `script` has one behaviour for each request; the last one repeats."""

    content: bytes
    port: int = 0
    etag: str | None = '"v1"'
    last_modified: str | None = None
    script: list[str] = field(default_factory=lambda: ["ok"])
    requests: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/core"

    def next_behaviour(self) -> str:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.site.requests.append({name.lower(): value for name, value in self.headers.items()})
        self.site.paths.append(self.path)
        self.close_connection = True
        word, _, value = self.site.next_behaviour().partition(":")
        if word.isdigit():
            self.send_response(int(word))
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"sorry")
        elif word == "redirect":
            self.send_response(302)
            self.send_header("Location", value)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif word == "hang":
            self.site.stopped.wait(20)
        else:
            self._send(word, value)

    def _send(self, word: str, value: str) -> None:
        content, begin = self.site.content, 0
        wanted = self.headers.get("Range")
        known = self.headers.get("If-Range") in {self.site.etag, self.site.last_modified}
        if wanted and known and word != "whole":
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            first = begin + 1 if word == "shifted" else begin
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if word == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if self.site.etag:
            self.send_header("ETag", self.site.etag)
        if self.site.last_modified:
            self.send_header("Last-Modified", self.site.last_modified)
        if word != "endless":
            self.send_header("Content-Length", value if word == "claim" else str(len(content) - begin))
        self.end_headers()
        with contextlib.suppress(OSError):
            if word == "endless":
                while not self.site.stopped.is_set():
                    self.wfile.write(bytes(1 << 16))
            elif word == "trickle":
                for byte in content[begin:]:
                    self.wfile.write(bytes([byte]))
                    if self.site.stopped.wait(0.02):
                        return
            else:
                cut = begin + int(value) if word in {"cut", "stall"} else len(content)
                self.wfile.write(content[begin:cut])
                self.wfile.flush()
                if word == "stall":
                    self.site.stopped.wait(20)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Otherwise closing waits for every connection that was ever made.
    block_on_close = False

    def handle_error(self, *_args: Any) -> None:
        """Ignore it: clients that disconnect are part of the test."""


@contextlib.contextmanager
def run_site(content: bytes, certificate: tuple[Path, Path], *, host: str = "127.0.0.1") -> Iterator[Site]:
    site = Site(content)
    server = _Server((host, 0), type("Handler", (_Handler,), {"site": site}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
        time.sleep(0)
