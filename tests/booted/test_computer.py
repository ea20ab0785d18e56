# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The booted computers themselves: what the other tests rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.booted.conftest import find_tree_or_skip, start_session

from psiphon_lab.addresses import LAN_A
from psiphon_lab.booted.computer import Computer
from psiphon_lab.booted.kernel_state import read_kernel_state
from psiphon_lab.judge import judge_frames, world_evidence
from psiphon_lab.probe import probe_specs
from psiphon_lab.probe_runner import NOBODY, run_probes, unseen_probes
from psiphon_lab.tun_device import make_persistent_tun


@pytest.mark.parametrize("manager", ["NetworkManager", "systemd-networkd"])
def test_without_a_lock_every_probe_of_a_booted_system_is_seen_outside(computer: Computer, manager: str) -> None:
    computer.choose_manager(manager)
    computer.power_on()
    computer.wait_address()
    kinds = {verdict.innocent for verdict in judge_frames(computer.world.frames_since(), world_evidence())}
    assert {"dhcp", "nd"} <= kinds
    for salt, uid in ((1, 0), (2, NOBODY)):
        specs = probe_specs(salt=salt, label=str(uid))
        results = run_probes(computer.inside, specs, uid=uid)
        assert not unseen_probes(specs, computer.world.frames_since())
        assert results[f"{uid}-tcp-ipv4-internet-plain"].answer == LAN_A.client4
    assert computer.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    assert computer.show("", "Version")["Version"].startswith(("252", "257"))


def test_a_power_cycle_keeps_the_disk_and_nothing_of_the_kernels_network(computer: Computer) -> None:
    computer.power_on()
    computer.wait_address()
    client = computer.world.client
    before = read_kernel_state(client)
    computer.run(["nft", "add", "table", "inet", "left_over"])
    computer.run(["ip", "rule", "add", "pref", "5000", "lookup", "77"])
    computer.run(["ip", "-6", "route", "add", "unreachable", "2001:db8:77::/64", "table", "77"])
    computer.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.src_valid_mark=1"])
    client.call(lambda: make_persistent_tun("PsiphonTUN", owner=0))
    Path(computer.files, "root/kept").write_text("on the disk\n")
    assert not read_kernel_state(client).is_pristine
    computer.power_cycle()
    computer.wait_address()
    assert not before.list_differences(read_kernel_state(computer.world.client))
    assert computer.run(["cat", "/root/kept"]).stdout == "on the disk\n"


def test_without_a_lock_a_watch_through_a_reboot_finds_leaks(wheels: Path) -> None:
    with start_session(("debian13", "NetworkManager"), wheels) as session:
        with session.watch() as watched:
            session.computer.reboot()
            session.computer.wait_address()
            session.probe()
        assert watched.leaks
        assert watched.seen
        assert watched.kinds["dhcp"]
        assert not watched.uncontrolled


_BOOT_AND_WAIT = """
import sys, time
from pathlib import Path
from psiphon_lab.booted.computer import Computer
from psiphon_lab.world import World
with World() as world, Computer(world, Path(sys.argv[1])) as computer:
    computer.power_on()
    print(computer.inside.pid, world.directory, flush=True)
    time.sleep(60)
"""


def test_a_killed_lab_leaves_no_container_behind() -> None:
    tree = find_tree_or_skip("debian12")
    child = subprocess.Popen([sys.executable, "-c", _BOOT_AND_WAIT, str(tree)], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        pid, directory = child.stdout.readline().split()
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        inside = [int(entry.name) for entry in Path("/proc").iterdir() if _is_in(entry, namespace)]
        assert len(inside) > 5
        child.send_signal(signal.SIGKILL)
        child.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (any(map(_is_alive, inside)) or Path(directory).exists()):
            time.sleep(0.05)
    assert not [number for number in inside if _is_alive(number)]
    assert not Path(directory).exists()
    assert directory not in Path("/proc/self/mountinfo").read_text()


def _is_in(entry: Path, namespace: str) -> bool:
    with contextlib.suppress(OSError):
        return entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace
    return False


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
