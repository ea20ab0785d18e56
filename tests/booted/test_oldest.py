# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian 11 has the oldest tools that the service supports: nft 0.9.8, systemd 247 (R22)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tests.booted.conftest import find_tree_or_skip, note

from psiphon_lab.addresses import LAN_A
from psiphon_lab.booted.computer import Computer
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.machine import LAB_UID
from psiphon_lab.world import World
from psiphon_vpn.cli.main import cli
from psiphon_vpn.system.acting import collect_acting_files
from psiphon_vpn.system.configure import render_rules
from psiphon_vpn.system.layout import GROUP, KILLSWITCH_UNIT, UNITS, USER, Layout
from psiphon_vpn.system.payload import collect_payload
from psiphon_vpn.system.platform import Account

NETWORK_MANAGERS = (0, 101)


@pytest.fixture(scope="module")
def dark() -> Iterator[Computer]:
    """All files of an installation on Debian 11. Only its Python is too old for the program."""
    with World() as world, Computer(world, find_tree_or_skip("debian11")) as made:
        layout = Layout(root=made.files)
        for file in (*collect_payload(cli, python="/usr/bin/python3"), *collect_acting_files()):
            path = made.files / file.path.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        rules = render_rules(Account(uid=LAB_UID, gid=LAB_UID), NETWORK_MANAGERS)
        layout.rules_dir.mkdir(parents=True, exist_ok=True)
        layout.boot_rules.write_text(rules.boot)
        layout.guard_rules.write_text(rules.guard)
        layout.drop_rules.write_text(rules.drop)
        made.choose_manager("systemd-networkd")
        yield made


@pytest.fixture(scope="module")
def first_frame(dark: Computer) -> dict[str, int]:
    """A mark from before the computer is on; until then the laboratory itself has used the cable."""
    return dark.world.mark()


@pytest.fixture(scope="module")
def computer(dark: Computer, first_frame: dict[str, int]) -> Computer:
    assert first_frame
    dark.power_on()
    return dark


def send_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"out", (LAN_A.router4, 9))


@pytest.mark.requirement("R22")
def test_the_boot_lock_is_there_before_the_network_with_the_oldest_tools(
    computer: Computer, first_frame: dict[str, int]
) -> None:
    assert computer.run(["nft", "--version"]).stdout.startswith("nftables v0.9.8")
    assert computer.show("", "Version")["Version"].startswith("247")
    assert computer.show(KILLSWITCH_UNIT, "ActiveState", "Result") == {"ActiveState": "active", "Result": "success"}
    chain = computer.run(["nft", "list", "chain", "inet", "psiphon_filter", "output"]).stdout
    assert "policy drop" in chain
    computer.wait_address()
    with pytest.raises(OSError, match="not permitted"):
        computer.inside.call(send_a_datagram)
    verdicts = judge_frames(computer.world.frames_since(first_frame), world_evidence())
    assert {verdict.innocent for verdict in verdicts} >= {"dhcp"}
    leaks = [verdict.text for verdict in verdicts if verdict.is_leak]
    assert not leaks, leaks
    computer.run(["nft", "flush", "ruleset"])
    computer.inside.call(send_a_datagram)  # the positive control
    computer.run(["nft", "-f", Layout().boot_rules])
    note("Debian 11: boot lock with nft 0.9.8 and systemd 247", frames=len(verdicts), leaks=len(leaks))


@pytest.mark.requirement("R22")
def test_every_ruleset_loads_with_the_oldest_nft(computer: Computer) -> None:
    layout = Layout()
    for path in (layout.drop_rules, layout.boot_rules):
        computer.run(["nft", "-f", path])
    assert "policy drop" in computer.run(["nft", "list", "chain", "inet", "psiphon_filter", "output"]).stdout


@pytest.mark.requirement("R22")
def test_every_unit_and_file_is_understood_by_the_oldest_systemd(computer: Computer) -> None:
    layout = Layout()
    # The account that the service's unit names, as sysusers.d declares it.
    computer.run(["systemd-sysusers", layout.sysusers])
    assert computer.run(["id", "-gn", USER]).stdout.strip() == GROUP
    for unit in UNITS:
        said = computer.run(["systemd-analyze", "--man=no", "verify", layout.unit_dir / unit], check=False)
        ours = [line for line in said.stderr.splitlines() if "psiphon" in line and "Unknown" not in line]
        assert said.returncode == 0, said.stderr
        assert not ours, ours
    computer.run(["systemd-tmpfiles", "--create", layout.tmpfiles])
