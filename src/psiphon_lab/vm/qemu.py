# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of QEMU for a virtual computer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from psiphon_lab.vm.agent import PORT_PREFIX
from psiphon_lab.vm.cables import Card
from psiphon_lab.vm.disk import Disk

PROGRAM: Final = "qemu-system-x86_64"
MEMORY_MIB: Final = 1024
PORTS: Final = 12
"""Programs that can run for the laboratory at the same time."""
PARAMETERS: Final = (
    "root=/dev/vda rw resume=/dev/vdb console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off random.trust_cpu=on "
    "panic=-1 no_console_suspend nowatchdog systemd.show_status=error"
)


def render_command(
    disk: Disk, cards: Sequence[Card], *, directory: Path, console: Path, parameters: Sequence[str] = ()
) -> list[str]:
    """The command line. QEMU makes the sockets "monitor" and "port0" and so on in `directory`.

    TCG emulates the processor: hardware virtualisation is not available everywhere, and the same everywhere is better.
    """
    argv = [
        PROGRAM, "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults",
        "-no-user-config", "-display", "none", "-no-shutdown", "-rtc", "base=utc",
        # Sleep to memory and to disk, which some versions of QEMU do not offer by themselves.
        "-global", "ICH9-LPC.disable_s3=0", "-global", "ICH9-LPC.disable_s4=0",
        "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console",
        "-qmp", f"unix:{directory / 'monitor'},server=on,wait=off",
        "-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", " ".join((PARAMETERS, *parameters)),
        "-drive", f"file={disk.root},if=none,id=root,format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=root,id=vda",
        "-drive", f"file={disk.swap},if=none,id=swap,format=qcow2,cache=unsafe,discard=unmap",
        "-device", "virtio-blk-pci,drive=swap,id=vdb",
        "-device", f"virtio-serial-pci,max_ports={PORTS + 1}",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for number in range(PORTS):
        argv += ["-chardev", f"socket,id=port{number},path={directory / f'port{number}'},server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev=port{number},name={PORT_PREFIX}{number}"]
    for number, card in enumerate(cards):
        argv += ["-netdev", f"tap,id=tap{number},ifname={card.tap},script=no,downscript=no"]
        argv += ["-device", f"virtio-net-pci,netdev=tap{number},id=card{number},mac={card.mac},romfile="]
    return argv
