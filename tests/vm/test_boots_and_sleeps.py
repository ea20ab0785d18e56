# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The service in whole virtual computers, which really boot and really sleep. Frames are taken outside.

One computer for all tests of a system; each finds it open and leaves it so. Storms rage in it all the time, from early
at each boot. The control of each is in the fixture: without the lock, every shot of theirs was seen outside, at a boot
and after a sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.vm.conftest import Virtual, note

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.namespace import PATIENCE
from psiphon_lab.vm.bench import Bench, Boot, Sleep
from psiphon_lab.vm.sleeps import DISK, IDLE, MEMORY, SleepKind
from psiphon_lab.vm.watch import Watch
from psiphon_lab.waiting import wait_until
from psiphon_vpn.policy.names import LEASE_SET, TUN_NAME
from psiphon_vpn.system.layout import SERVICE_UNIT, Layout

# With `test --kernels` only: an emulated computer takes minutes to boot, and more on a busy machine.
pytestmark = pytest.mark.kernels


ALL_MLD2 = "ff02::16"
KINDS = (MEMORY, IDLE, DISK)
_RULES = Layout().rules_dir
_MODULES = "/lib/modules/$(uname -r)/kernel/net/netfilter"
DAMAGES = {
    "boot lock empty": (f"cp {_RULES}/boot.nft /root; : >{_RULES}/boot.nft", f"mv /root/boot.nft {_RULES}"),
    "boot lock cut short": (
        f"cp {_RULES}/boot.nft /root; truncate -s 2000 {_RULES}/boot.nft",
        f"mv /root/boot.nft {_RULES}",
    ),
    "all rules empty": (
        f"cp -a {_RULES} /root; for file in {_RULES}/*.nft; do : >$file; done",
        f"cp -a /root/rules/* {_RULES}; rm -r /root/rules",
    ),
    "kernel without nf_tables": (
        f"mv {_MODULES}/nf_tables.ko* /root; depmod",
        f"mv /root/nf_tables.ko* {_MODULES}; depmod",
    ),
}
"""How the boot lock is made unable to load, and repaired: scripts for the shell."""


def note_boot(virtual: Virtual, how: str, boot: Boot, *, network_first: bool = False) -> None:
    assert boot.first_frame is not None
    note(
        how,
        boot.seen,
        system=virtual.name,
        kernel_seconds=round(boot.kernel, 1),
        lock_seconds=round(boot.lock, 1),
        network_pre_seconds=round(boot.network_pre, 1),
        first_frame_seconds=round(boot.first_frame, 1),
    )
    assert boot.lock <= boot.network_pre
    assert network_first or boot.lock < boot.first_frame


def note_sleep(virtual: Virtual, how: str, slept: Sleep) -> None:
    note(
        how,
        slept.seen,
        system=virtual.name,
        reopened_seconds=None if slept.reopened is None else round(slept.reopened, 1),
        first_frame_seconds=None if slept.first_frame is None else round(slept.first_frame, 1),
        unattended=slept.unattended,
    )


@pytest.mark.requirement("R2", "R17")
def test_after_a_power_cut_nothing_leaves_before_the_lock_and_only_what_may_after_it(virtual: Virtual) -> None:
    note_boot(virtual, "power cut", virtual.booted)


@pytest.mark.requirement("R3", "R6", "R17", "B2")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_real_sleep_finds_the_tunnel_closed_and_nothing_leaves_until_it_is_open_again(
    virtual: Virtual, bench: Bench, kind: SleepKind
) -> None:
    slept = bench.suspend(kind)
    note_sleep(virtual, f"sleep ({kind.name})", slept)
    assert {line.split()[0] for line in slept.leases.splitlines() if LEASE_SET in line} == {"pre", "post"}
    assert "elements" not in slept.leases


@pytest.mark.requirement("R2", "R17")
@pytest.mark.parametrize("how", ["reboot", "power cut", "kexec"])
def test_neither_a_shutdown_nor_a_power_cut_of_the_open_computer_leaks(
    virtual: Virtual, bench: Bench, how: str
) -> None:
    computer = bench.computer
    version = computer.run(["uname", "-r"]).stdout.strip()
    starts: dict[str, Callable[[], None]] = {
        "reboot": lambda: computer.reboot(wait=False),
        "power cut": lambda: computer.reset(wait=False),
        "kexec": lambda: computer.start_kernel(version),
    }
    note_boot(virtual, f"{how} while open", bench.boot(starts[how]))


@pytest.mark.requirement("R2", "R17")
def test_with_a_network_from_the_initrd_nothing_leaves_but_what_that_asked(virtual: Virtual, bench: Bench) -> None:
    """The interface is up before systemd is. A unit that waits for nothing sends at once.

    What the initrd's kernel reports of its own groups leaves before there is anything that could stop it.
    """
    computer = bench.computer
    try:
        boot = bench.boot(lambda: computer.cycle("ip=dhcp"), from_start=True)
        assert boot.initrd.frames, "the positive control: the initrd has a network"
        assert not boot.initrd.shots
        assert all(leak.endswith(f"> {ALL_MLD2} hop limit 1") for leak in boot.initrd.leaks), boot.initrd.leaks
        how = "power cut, ip=dhcp in the initrd, from the first unit on"
        note_boot(virtual, how, replace(boot, seen=boot.units), network_first=True)
    finally:
        bench.boot(computer.cycle)


@pytest.mark.requirement("R1", "R2", "R17")
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_boot_lock_no_interface_comes_up(virtual: Virtual, bench: Bench, damage: str) -> None:
    computer = bench.computer
    destroy, repair = DAMAGES[damage]
    computer.run(["sh", "-c", f"{destroy}; sync"], timeout=PATIENCE * 5)
    try:
        closed = bench.boot_closed(lambda: computer.reset(wait=False))
        note(f"power cut, {damage}", closed.seen, system=virtual.name)
        assert "psiphon-killswitch.service" in closed.failed
        # The service may have made its own device, which leads nowhere.
        assert set(closed.up) <= {"lo", TUN_NAME}
        assert not closed.seen.frames
        assert "the kill switch could not be loaded" in closed.console
    finally:
        computer.run(["sh", "-c", f"{repair}; sync"], timeout=PATIENCE * 5)
        bench.boot(lambda: computer.reset(wait=False))


@pytest.mark.requirement("R2", "R17")
@pytest.mark.parametrize("manager", ["systemd-networkd", "ifupdown"])
def test_it_boots_as_safely_with_another_network_manager(virtual: Virtual, bench: Bench, manager: str) -> None:
    computer = bench.computer
    computer.switch_manager(manager)
    try:
        note_boot(virtual, f"reboot, {manager}", bench.boot(lambda: computer.reboot(wait=False)))
    finally:
        computer.switch_manager("NetworkManager")
        bench.boot(lambda: computer.reboot(wait=False))


@pytest.mark.requirement("R3", "R6", "R17")
def test_it_wakes_up_after_the_lease_of_its_address_has_run_out(virtual: Virtual, bench: Bench) -> None:
    computer = bench.computer
    computer.lease_for(120)
    computer.unplug(LAN_A)
    bench.wait_locked()
    computer.plug(LAN_A)
    bench.wait_open()

    def outlive() -> None:
        end = computer.read_lease_end()
        assert end > 0
        wait_until(lambda: time.time() > end, "the end of the lease", timeout=300)

    note_sleep(virtual, "sleep (S3), longer than the lease of the address", bench.suspend(asleep=outlive))


@pytest.mark.requirement("R3", "R6", "R17")
def test_it_wakes_up_on_another_network(virtual: Virtual, bench: Bench) -> None:
    computer = bench.computer

    try:
        slept = bench.suspend(carriers={LAN_A: False, LAN_B: True})
        note_sleep(virtual, "sleep, woken on another network", slept)
    finally:
        computer.unplug(LAN_B)
        computer.plug(LAN_A)


@pytest.mark.requirement("R3", "R6", "R17")
def test_it_wakes_up_with_its_cable_out_and_opens_once_it_is_in(virtual: Virtual, bench: Bench) -> None:
    computer = bench.computer

    def look() -> None:
        bench.wait_locked()
        computer.plug(LAN_A)

    try:
        slept = bench.suspend(carriers={LAN_A: False}, after=look)
    finally:
        computer.plug(LAN_A)
    note_sleep(virtual, "sleep, woken with the cable out", slept)


@pytest.mark.requirement("R3", "R17", "B2")
@pytest.mark.parametrize("signal", ["STOP", "KILL"])
def test_it_sleeps_and_wakes_up_while_the_daemon_is(virtual: Virtual, bench: Bench, signal: str) -> None:
    """Stopped or killed right before it sleeps: then systemd's watchdog or restart brings another."""

    def hit() -> None:
        bench.computer.run(["systemctl", "kill", "-s", signal, SERVICE_UNIT])

    slept = bench.suspend(before=hit)
    note_sleep(virtual, f"sleep, SIG{signal} to the daemon before", slept)
    assert "elements" not in slept.leases


@pytest.mark.requirement("R3", "R6", "R17")
def test_a_sleep_that_nothing_announces_lets_nothing_past_the_tunnel(virtual: Virtual, bench: Bench) -> None:
    """The kernel is put to sleep without systemd. The lease outlives that, for the tunnel only."""
    note_sleep(virtual, "sleep past systemd", bench.suspend(argv=("sh", "-c", "echo mem >/sys/power/state")))


@pytest.mark.requirement("R3", "R17")
def test_stopped_by_its_user_it_stays_locked_through_a_sleep(virtual: Virtual, bench: Bench) -> None:
    bench.service.command("stop")
    try:
        watch = Watch(bench.computer, bench.server)
        bench.suspend(opens=False)
        assert bench.service.read_status()["state"] == "LOCKED"
        note("sleep, stopped by its user", watch.look(), system=virtual.name)
    finally:
        bench.service.command("start")
    bench.wait_open()
