# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of virtual computers that can be tried without one: the agent's message frames, shots, the command line."""

from __future__ import annotations

from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.frames import Frame
from psiphon_lab.probe import FIRST_PORT, PORTS
from psiphon_lab.vm.agent import HELLO, STDOUT, Reader, pack
from psiphon_lab.vm.cables import Card
from psiphon_lab.vm.disk import Disk
from psiphon_lab.vm.qemu import PORTS as AGENT_PORTS
from psiphon_lab.vm.qemu import render_command
from psiphon_lab.vm.storm import ICMP, TCP
from psiphon_lab.vm.watch import SHOTS, recognise


def test_frames_of_a_port_are_found_however_they_are_cut_and_after_rubbish() -> None:
    stream = b"left of a program that was killed" + pack(7, HELLO) + b"PVL" + pack(8, STDOUT, b"PVLF inside")
    for size in range(1, len(stream)):
        reader = Reader()
        found = [frame for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
        assert found == [(7, HELLO, b""), (8, STDOUT, b"PVLF inside")]


def test_each_shot_of_a_storm_can_be_distinguished_from_all_others_and_from_everything_else() -> None:
    assert len({shot.token for shot in SHOTS}) == len(SHOTS) == 97
    ports = [shot.source_port for shot in SHOTS if shot.source_port]
    assert len(set(ports)) == len(ports)
    assert not set(ports) & {*plan.CORE_PORTS, *range(FIRST_PORT, FIRST_PORT + PORTS)}
    assert all(port < 32768 for port in ports), "the kernel draws ports from there"


def test_shots_are_recognised_by_token_and_tcp_by_source_port() -> None:
    tcp = next(shot for shot in SHOTS if shot.kind == TCP and shot.family == 4)
    icmp = next(shot for shot in SHOTS if shot.kind == ICMP)
    ports = tcp.source_port.to_bytes(2, "big") + tcp.port.to_bytes(2, "big")
    header = b"\x45\0\0\x28\0\0\0\0\x40\x06\0\0" + bytes([192, 0, 2, 10, 203, 0, 113, 80])
    syn = bytes(12) + b"\x08\0" + header + ports + bytes(8) + b"\x50\x02" + bytes(6)
    echo = bytes(12) + b"\x08\0" + bytes(28) + icmp.token.encode()
    frames = [Frame(wire="provider_a", time=0.0, data=data, from_client=True) for data in (syn, echo, bytes(60))]
    assert recognise(frames) == {tcp.token, icmp.token}


def test_each_port_and_card_of_a_virtual_computer_is_on_the_command_line_once(tmp_path: Path) -> None:
    disk = Disk(root=tmp_path / "d", swap=tmp_path / "s", kernel=tmp_path / "k", initrd=tmp_path / "i")
    cards = (Card(tap="tap0", mac="02:00:00:00:00:01"), Card(tap="tap1", mac="02:00:00:00:00:02"))
    argv = render_command(disk, cards, directory=tmp_path, console=tmp_path / "console", parameters=("ip=dhcp",))
    text = " ".join(argv)
    assert text.count("virtserialport,") == text.count("socket,id=port") == AGENT_PORTS
    assert text.count("virtio-net-pci,") == len(cards)
    assert argv[argv.index("-append") + 1].endswith(" ip=dhcp")
    assert "romfile=" in text, "or the firmware itself would send by DHCP"
