# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nobody is locked out by surprise: finds who is connected from outside, from every source that knows."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from psiphon_lab.namespace import Host, open_host
from psiphon_vpn.system.sessions import (
    OPTION,
    RemoteSession,
    RemoteSessionsError,
    describe_sessions,
    find_sessions,
    parse_address,
    parse_who,
)

HEADING = "  sl  local_address rem_address   st\n"


def make_proc(directory: Path, *, tcp: str = "", tcp6: str = "", environ: bytes = b"", parent: int = 1) -> Path:
    """A fake /proc with this process, one parent, and connections."""
    for pid, above, variables in ((os.getpid(), parent, b"HOME=/root\0"), (parent, 0, environ)):
        (directory / str(pid)).mkdir(parents=True)
        (directory / str(pid) / "environ").write_bytes(variables)
        (directory / str(pid) / "stat").write_text(f"{pid} (a) name) S {above} 1 1")
    (directory / "net").mkdir()
    (directory / "net/tcp").write_text(HEADING + tcp)
    (directory / "net/tcp6").write_text(HEADING + tcp6)
    return directory


def row(local: str, remote: str, state: str) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 0 0 1\n"


def address(text: str, port: int) -> str:
    """An address as this machine's kernel prints it."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    raw = socket.inet_pton(family, text)
    words = [struct.unpack("=I", raw[start : start + 4])[0] for start in range(0, len(raw), 4)]
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def peers(proc: Path) -> set[str]:
    return {session.peer for session in find_sessions(proc, proc / "none")}


def test_a_connection_to_a_listening_port_is_a_session_on_both_families(tmp_path: Path) -> None:
    tcp = row(address("0.0.0.0", 22), address("0.0.0.0", 0), "0A") + row(
        address("192.0.2.1", 22), address("198.51.100.7", 50000), "01"
    )
    tcp6 = row(address("::", 443), address("::", 0), "0A") + row(
        address("2001:db8::1", 443), address("2001:db8::7", 50000), "01"
    )
    assert peers(make_proc(tmp_path / "proc", tcp=tcp, tcp6=tcp6)) == {"198.51.100.7", "2001:db8::7"}


def test_an_ipv4_connection_to_a_socket_of_both_families_is_seen_as_ipv4(tmp_path: Path) -> None:
    tcp6 = row(address("::", 22), address("::", 0), "0A") + row(
        address("::ffff:192.0.2.1", 22), address("::ffff:198.51.100.7", 50000), "01"
    )
    assert peers(make_proc(tmp_path / "proc", tcp6=tcp6)) == {"198.51.100.7"}


@pytest.mark.parametrize(
    ("local", "remote", "state"),
    [
        ("127.0.0.1", "127.0.0.1", "01"),  # itself
        ("192.0.2.1", "192.0.2.1", "01"),  # itself, by its own address
        ("192.0.2.1", "198.51.100.7", "06"),  # already closed
    ],
)
def test_what_the_lock_does_not_cut_is_no_session(tmp_path: Path, local: str, remote: str, state: str) -> None:
    tcp = row(address("0.0.0.0", 22), address("0.0.0.0", 0), "0A") + row(
        address(local, 22), address(remote, 50000), state
    )
    assert peers(make_proc(tmp_path / "proc", tcp=tcp)) == set()


def test_a_connection_that_this_machine_opened_is_no_session(tmp_path: Path) -> None:
    tcp = row(address("192.0.2.1", 50000), address("198.51.100.7", 443), "01")
    assert peers(make_proc(tmp_path / "proc", tcp=tcp)) == set()


def test_an_ssh_session_is_known_by_the_environment_of_a_parent_that_sudo_did_not_clean(tmp_path: Path) -> None:
    environ = b"SHELL=/bin/sh\0SSH_CONNECTION=203.0.113.9 50000 192.0.2.1 22\0"
    proc = make_proc(tmp_path / "proc", environ=environ, parent=77)
    assert find_sessions(proc, tmp_path) == (RemoteSession(peer="203.0.113.9", how="SSH"),)


def test_a_session_that_logind_knows_to_be_remote_counts_and_a_local_one_does_not(tmp_path: Path) -> None:
    logins = tmp_path / "sessions"
    logins.mkdir()
    (logins / "1").write_text("STATE=active\nREMOTE=1\nREMOTE_HOST=203.0.113.9\n")
    (logins / "2").write_text("STATE=active\nREMOTE=0\n")
    (logins / "3").write_text("STATE=closing\nREMOTE=1\nREMOTE_HOST=203.0.113.10\n")
    assert {session.peer for session in find_sessions(make_proc(tmp_path / "proc"), logins)} == {"203.0.113.9"}


def test_who_names_hosts_and_not_displays() -> None:
    lines = [
        "me       pts/0        2026-01-01 10:00 (203.0.113.9)",
        "me       tty7         2026-01-01 10:00 (:0)",
        "me       pts/1        2026-01-01 10:00 (tmux(99).%0)",
        "me       tty1         2026-01-01 10:00",
        "me       pts/2        2026-01-01 10:00 (laptop.example via mosh [7])",
    ]
    assert {session.peer for session in parse_who(lines)} == {"203.0.113.9", "laptop.example via mosh [7]"}


def test_an_address_of_proc_is_read_in_this_machines_byte_order() -> None:
    assert str(parse_address(address("198.51.100.7", 1).split(":")[0])) == "198.51.100.7"
    assert str(parse_address(address("2001:db8::7", 1).split(":")[0])) == "2001:db8::7"


def test_the_refusal_names_the_sessions_and_the_option() -> None:
    error = RemoteSessionsError([RemoteSession(peer="203.0.113.9", how="SSH")])
    assert "203.0.113.9 (SSH)" in str(error)
    assert OPTION in str(error)
    assert "\n" not in str(error)
    many = tuple(RemoteSession(peer=f"192.0.2.{number}", how="SSH") for number in range(9))
    assert "9 connections" in describe_sessions(many)


_LISTEN = """
import socket, sys
server = socket.create_server(("0.0.0.0", 2222))
client = socket.create_connection((sys.argv[1], 2222))
accepted, _peer = server.accept()
from psiphon_vpn.system.sessions import read_connections, PROC
print(sorted(session.peer for session in read_connections(PROC)))
"""


@pytest.mark.lab
def test_a_real_connection_to_this_machine_itself_is_no_session(tmp_path: Path) -> None:
    with open_host("client", directory=tmp_path) as host:
        host.run(["ip", "link", "set", "lo", "up"])
        host.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
        for target in ("127.0.0.1", "192.0.2.1"):
            assert listen(host, target) == "[]"


def listen(host: Host, target: str) -> str:
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "PATH": os.environ["PATH"]}
    return host.run([sys.executable, "-c", _LISTEN, target], env=environment).stdout.strip()
