# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The report contains nothing that identifies somebody, and goes to a new file that only its owner can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.diagnose.scene import make_installation, write

from psiphon_vpn.diagnose.engine import run_once
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Check, Outcome, check, fail
from psiphon_vpn.diagnose.report import COMMANDS, ReportError, render_report, write_report
from psiphon_vpn.diagnose.system import Answer, RealSystem
from psiphon_vpn.system.layout import Layout

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R15")]

SECRETS = {
    "user": "parisa",
    "full name": "Parisa",
    "family name": "Hosseini",
    "host": "nightingale",
    "domain": "hosseini.example.ir",
    "search domain": "office.example.ir",
    "wireless": "Café Azadi 5G",
    "connection": "home-of-parisa",
    "address": "192.0.2.77",
    "public address": "5.160.12.9",
    "address 6": "2001:db8:77::abcd",
    "link local": "fe80::211:22ff:fe33:4455",
    "in /proc/net/tcp": "4D0002C0:01BB",
    "in hexadecimal": "c000024d",
    "as a number": "3221226061",
    "in the other order": "1291845824",
    "in if_inet6": "20010db800770000000000000000abcd",
    "hardware": "00:11:22:33:44:55",
    "client id": "01001122334455",
    "user of a directory": "dariush",
    "user with a home alone": "shirin",
    "user in hexadecimal": b"dariush".hex(),
    "printer": "laleh",
    "host in a unit": "night\\x2dingale2",
    "wireless in numbers": "67;97;102;195;169;32;65;122;97;100;105;32;53;71;",
    "wireless in percent": "Caf%C3%A9%20Azadi%205G",
    "hidden wireless": "Golestan",
    "boot": "c0ffee00-1234-4321-8765-0123456789ab",
    "lease's host": "sepideh",
    "proxy password": "correct-horse",
    "proxy host": "proxy.hosseini.example.ir",
    "machine id": "0123456789abcdef0123456789abcdef",
    "entry": "7468697320697320612073657276657220656e747279",
    "terminal": "\x1b[2J",
    "token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwYXJpc2EifQ.dozjgNryP4J3jVmNHl0w5N",
}


class TellingSystem(RealSystem):
    """A system on which every command prints everything about its user."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], *, timeout: float = 5.0) -> Answer:
        self.asked.append(tuple(argv))
        lines = [f"Nov 24 23:45:01 nightingale psiphon-vpnd[7]: {kind}={value};" for kind, value in SECRETS.items()]
        return Answer(code=0, out="table inet psiphon_filter {\n" + "\n".join(lines), err="")


def make_telling_machine(root: Path) -> Layout:
    layout = make_installation(root)
    write(root / "etc/hostname", "nightingale.hosseini.example.ir\n")
    write(root / "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 nightingale.hosseini.example.ir nightingale\n")
    write(root / "etc/passwd", "root:x:0:0::/root:/bin/sh\nparisa:x:1000:1000:Parisa Hosseini,,,:/home/parisa:/bin/sh")
    write(root / "run/systemd/users/60001", "NAME=dariush\nSTATE=active\n")
    (root / "home/shirin").mkdir(parents=True)
    write(root / "etc/hosts", (root / "etc/hosts").read_text() + "192.0.2.9 laleh\n10.0.0.1 night-ingale2\n")
    write(root / "run/systemd/netif/leases/2", "ADDRESS=192.0.2.77\nHOSTNAME=sepideh\nCLIENTID=01001122334455\n")
    write(root / "etc/resolv.conf", "search office.example.ir\nnameserver 192.0.2.77\n")
    write(root / "etc/machine-id", SECRETS["machine id"] + "\n")
    directory = root / "etc/NetworkManager/system-connections"
    numbers = "".join(f"{byte};" for byte in b"Golestan")
    write(directory / "x.nmconnection", f"[wifi]\nssid={numbers}\n", mode=0o600)
    write(directory / "home-of-parisa.nmconnection", "[wifi]\nssid=Café Azadi 5G\n", mode=0o600)
    proxy = f"http://parisa:{SECRETS['proxy password']}@{SECRETS['proxy host']}:3128"
    write(layout.config, f'upstream_proxy = "{proxy}"\n[core.advanced]\nTargetServerEntry = "{SECRETS["entry"]}"\n')
    return layout


def make_check() -> Check:
    @check("lock.x", "The lock holds", "Ask somebody.")
    def tells(_facts: Facts) -> Outcome:
        return fail("; ".join(SECRETS.values()))

    return tells


def test_nothing_of_the_user_is_in_the_report(tmp_path: Path) -> None:
    system = TellingSystem()
    facts = Facts(system, make_telling_machine(tmp_path))
    text = render_report(facts, run_once([make_check()], facts))
    assert {kind for kind, value in SECRETS.items() if value.casefold() in text.casefold()} == set()
    assert set(COMMANDS) <= set(system.asked)
    # The report still says something.
    for words in ("table inet psiphon_filter", "The lock holds", "Ask somebody.", "23:45:01", "== ip rule"):
        assert words in text


def test_a_report_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path, before = tmp_path / "report.txt", os.umask(0)
    try:
        write_report(path, "text\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "text\n"


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory", "nowhere", "fifo"])
def test_a_report_overwrites_nothing_and_follows_no_link(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "report.txt", tmp_path / "other"
    other.write_text("precious")
    match kind:
        case "file":
            path.write_text("old")
        case "link":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to(tmp_path / "new")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path = tmp_path / "none" / "report.txt"
    with pytest.raises(ReportError) as caught:
        write_report(path, "text\n")
    assert caught.value.next_step
    assert other.read_text() == "precious"
    assert not (tmp_path / "new").exists()
