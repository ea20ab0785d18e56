# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of sleep of a virtual computer: how each begins, is recognised outside, and ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from psiphon_lab.booted.booted_host import PYTHON
from psiphon_lab.vm.virtual_computer import Moment, VirtualComputer

SUSPEND: Final = ("systemctl", "suspend")
_POWER_REGISTERS: Final = """\
import os
chipset, ports = (os.open(path, os.O_RDWR) for path in ("/sys/bus/pci/devices/0000:00:1f.0/config", "/dev/port"))
os.pwrite(chipset, bytes.fromhex("0106000080"), 0x40)
os.pwrite(ports, bytes.fromhex("2001"), 0x602)
os.pwrite(ports, bytes.fromhex("01"), 0x604)
"""
"""SeaBIOS does not restore the chipset's registers for power when it wakes up (ICH9: PMBASE, ACPI_CNTL; ACPI: PM1):
without them a second sleep ends at once."""
_IDLE_WORD: Final = "PM: suspend-to-idle"
"""What the kernel says last before it idles, with /sys/power/pm_debug_messages."""


@dataclass(frozen=True, kw_only=True)
class SleepKind:
    """A kind of sleep.

    Attributes:
        name: for reports.
        argv: the command inside that begins it.
        prepare: what it needs before.
        wait_asleep: waits until the computer sleeps, since a moment.
        wake: wakes it up; returns when, Unix time.
        keeps_ports: whether what the laboratory runs inside goes on afterwards.
    """

    name: str
    argv: tuple[str, ...] = SUSPEND
    prepare: Callable[[VirtualComputer], None]
    wait_asleep: Callable[[VirtualComputer, Moment], None]
    wake: Callable[[VirtualComputer], float]
    keeps_ports: bool = True


def _prepare_memory(computer: VirtualComputer) -> None:
    computer.run([PYTHON, "-I", "-S", "-c", _POWER_REGISTERS])
    computer.run(["sh", "-c", "echo deep >/sys/power/mem_sleep"])


def _prepare_idle(computer: VirtualComputer) -> None:
    # The kernel tells only at the level of debugging. Neither the power button nor the alarm of the clock ends this
    # sleep in QEMU's q35, and the keyboard does only where it may.
    said = "echo s2idle >/sys/power/mem_sleep; echo 1 >/sys/power/pm_debug_messages; dmesg -n debug"
    keyboard = "echo enabled >/sys/bus/serio/devices/serio0/power/wakeup"
    computer.run(["sh", "-c", f"set -e; {said}; {keyboard}"])


def _wait_idle(computer: VirtualComputer, since: Moment) -> None:
    computer.wait_console(_IDLE_WORD, since=since)


def _press_key(computer: VirtualComputer) -> float:
    now = time.time()
    computer.monitor.execute("send-key", keys=[{"type": "qcode", "data": "shift"}])
    return now


MEMORY: Final = SleepKind(
    name="S3", prepare=_prepare_memory, wait_asleep=VirtualComputer.wait_asleep, wake=VirtualComputer.wake
)
"""In memory: everything is off but that (ACPI S3)."""
IDLE: Final = SleepKind(name="s2idle", prepare=_prepare_idle, wait_asleep=_wait_idle, wake=_press_key)
"""Frozen: the processor idles, and nothing is off (the kernel's s2idle). The keyboard wakes it up."""
DISK: Final = SleepKind(
    name="hibernation",
    argv=("systemctl", "hibernate"),
    prepare=lambda computer: None,
    wait_asleep=VirtualComputer.wait_hibernated,
    wake=VirtualComputer.start_again,
    keeps_ports=False,
)
"""The memory is on the disk, and the computer off (ACPI S4). It starts from the firmware and an initrd."""
