# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The password of a proxy that a person gives: never on a command line, never shown."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from psiphon_vpn.cli import given_proxy
from psiphon_vpn.cli import update as product
from psiphon_vpn.cli.main import cli
from psiphon_vpn.core.obtain import CoreRequest

ROOT = Path(__file__).parents[2]
ASK = "from psiphon_vpn.cli.given_proxy import ask_password; import sys; word = ask_password(); print(len(word))"
LIMIT = 60.0


@pytest.mark.parametrize(
    ("given", "said", "expected"),
    [
        ("socks5://127.0.0.1:1080", "", "socks5://127.0.0.1:1080"),
        ("http://me@proxy.example:3128", "word\n", "http://me:word@proxy.example:3128"),
        ("http://me@192.0.2.7", "s@cret:/%\r\n", "http://me:s%40cret%3A%2F%25@192.0.2.7"),
        ("socks5://m%40e@[2001:db8::7]:1080", "word", "socks5://m%40e:word@[2001:db8::7]:1080"),
        ("http://me@192.0.2.7:80", "", "http://me:@192.0.2.7:80"),
        ("http://[", "", "http://["),
        ("nonsense", "", "nonsense"),
    ],
)
def test_a_url_gets_the_password_that_was_asked_for(
    given: str, said: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert given_proxy.complete_url(given) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="the command is root's")
@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_update_takes_no_password_on_its_command_line_and_shows_none(
    scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    update = ["--runtime-dir", str(tmp_path), "update", "--proxy"]
    requests: list[CoreRequest] = []

    def bring(_store: object, request: CoreRequest, _talk: object, **_options: object) -> int:
        requests.append(request)
        return 0

    monkeypatch.setattr(product, "bring_core", bring)
    refused = CliRunner().invoke(cli, [*update, f"{scheme}://me:secret@192.0.2.7:3128"])
    assert refused.exit_code == 2
    assert "Everybody on this computer sees a command line" in refused.output
    assert "secret" not in refused.output
    assert requests == []
    taken = CliRunner().invoke(cli, [*update, f"{scheme}://me@192.0.2.7:3128"], input="secret\n")
    assert requests[0].proxy == f"{scheme}://me:secret@192.0.2.7:3128"
    assert "secret" not in f"{taken.output}{requests[0]}"


def test_in_a_terminal_it_is_asked_for_and_not_echoed() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {"PYTHONPATH": str(ROOT / "src"), "LC_ALL": "C.UTF-8"}
        os.execve(sys.executable, [sys.executable, "-c", ASK], environment)  # noqa: S606
    shown = b""
    asked = False
    deadline = time.monotonic() + LIMIT
    try:
        while time.monotonic() < deadline and select.select([terminal], [], [], LIMIT)[0]:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # this is how the closed end of a terminal shows
                break
            shown += part
            if not asked and b"password" in shown:
                asked = True
                os.write(terminal, b"secret\n")
    finally:
        os.close(terminal)
        _pid, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert b"6" in shown
    assert b"secret" not in shown
