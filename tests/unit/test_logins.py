# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that log in to a network without being root: which are found, and what is reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from psiphon_vpn.system.findings import describe_refused_logins
from psiphon_vpn.system.logins import find_refused_logins

HERE, ELSEWHERE = "net:[1]", "net:[2]"


@dataclass(frozen=True, kw_only=True)
class Process:
    name: str
    uid: int
    command: tuple[str, ...] = ()
    network: str = HERE


class Processes:
    """A fake /proc with these processes; one that ended meanwhile is listed but cannot be read."""

    def __init__(self, *processes: Process) -> None:
        self._all = {100 + number: process for number, process in enumerate(processes)}

    def list_directory(self, path: Path) -> tuple[str, ...]:
        assert path == Path("/proc")
        return ("self", "99", *map(str, self._all), "meminfo")

    def read_link(self, path: Path) -> str:
        return HERE if path == Path("/proc/self/ns/net") else self._find(path).network

    def read(self, path: Path) -> bytes:
        process = self._find(path)
        if path.name == "cmdline":
            return "\0".join([*process.command, ""]).encode()
        return f"Name:\t{process.name}\nUmask:\t0022\nUid:\t0\t0\t0\t{process.uid}\nGid:\t0\t0\t0\t0\n".encode()

    def _find(self, path: Path) -> Process:
        try:
            return self._all[int(path.parts[2])]
        except KeyError:
            raise FileNotFoundError(str(path)) from None


@pytest.mark.parametrize(
    ("name", "command", "wired"),
    [
        ("wpa_supplicant", ("-u", "-s", "-O", "/run/wpa_supplicant"), False),
        ("wpa_supplicant", ("-i", "eth0", "-D", "wired", "-c", "w.conf"), True),
        ("wpa_supplicant", ("-Dnl80211,wired", "-i", "eth0"), True),
        ("wpa_supplicant", ("-D", "nl80211", "-i", "wired"), False),
        ("iwd", (), False),
        ("ead", (), True),
    ],
)
def test_a_program_that_logs_in_as_another_user_than_root_is_found(
    name: str, command: tuple[str, ...], wired: bool
) -> None:
    processes = Processes(Process(name="init", uid=0), Process(name=name, uid=991, command=(name, *command)))
    (found,) = find_refused_logins(processes)
    assert (found.name, found.pid, found.uid, found.wired) == (name, 101, 991, wired)
    (reported,) = describe_refused_logins(processes)
    assert reported.name == f"{name} (101)"


def test_those_of_root_those_of_other_networks_and_other_programs_are_not() -> None:
    assert not find_refused_logins(
        Processes(
            Process(name="wpa_supplicant", uid=0, command=("wpa_supplicant", "-Dwired")),
            Process(name="wpa_supplicant", uid=991, network=ELSEWHERE),
            Process(name="hostapd", uid=991),
        )
    )


def test_the_machine_itself_can_be_asked() -> None:
    assert all(login.uid != 0 for login in find_refused_logins())
