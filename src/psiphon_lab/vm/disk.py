# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a virtual computer: an ext4 image made from a tree, and a layer above it for each run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_lab.booted.booted_host import PYTHON, SOURCE
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.vm.initrd import render_addition

DISK_MIB: Final = 4096
SWAP_MIB: Final = 1536
"""For hibernation: as much as the memory, and more (systemd-sleep.conf(5))."""
MAKE_SECONDS: Final = 300.0
INITRD_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
AGENT_UNIT: Final = "psiphon-lab-agent.service"
_IDLE: Final = (
    "e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer", "apt-daily.timer",
    "apt-daily-upgrade.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
    # Makes a kexec of each reboot.
    "kexec-load.service", "kexec.service",
)  # fmt: skip
"""Units of the system that cost an emulated processor time, or are in the way."""
_FSTAB = """\
/dev/vda / ext4 rw 0 1
/dev/vdb none swap sw,nofail,x-systemd.device-timeout=20min 0 0
"""
_AGENT = f"""\
[Unit]
Description=The laboratory's agent
DefaultDependencies=no
After=systemd-remount-fs.service

[Service]
ExecStartPre=-/sbin/modprobe virtio_console
ExecStart={PYTHON} -I -S -B {SOURCE}/psiphon_lab/vm/agent.py
Restart=on-failure
OOMScoreAdjust=-1000
"""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Files of a virtual computer.

    Attributes:
        root: the disk with the system, qcow2. swap: the disk for hibernation, qcow2.
        kernel, initrd: what the firmware starts.
    """

    root: Path
    swap: Path
    kernel: Path
    initrd: Path


def prepare_root(host: Host, root: Path, files: Path, binds: Sequence[tuple[Path, Path]]) -> None:
    """Put into a computer's root directory what it needs inside a virtual computer: the agent, and copies of `binds`.

    Args:
        host: where `root` is mounted.
        root: the root directory, as that host sees it.
        files: the same, as this process sees it.
        binds: directories: (outside, inside).
    """
    for outside, inside in binds:
        place = files / inside.relative_to("/")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(outside, place, ignore=shutil.ignore_patterns("__pycache__"))
    # An emulated processor takes long for this. Nothing else runs inside.
    package = SOURCE / "psiphon_lab"
    compiled: list[str | Path] = [PYTHON, "-m", "compileall", "-q", "-l", "--invalidation-mode", "unchecked-hash"]
    host.run(["chroot", root, *compiled, package, package / "vm"], timeout=MAKE_SECONDS)
    units = files / "etc/systemd/system"
    (units / AGENT_UNIT).write_text(_AGENT)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / AGENT_UNIT).unlink(missing_ok=True)
    (wants / AGENT_UNIT).symlink_to(f"../{AGENT_UNIT}")
    for name in _IDLE:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (files / "etc/fstab").write_text(_FSTAB)
    _renew_initrds(host, root, files)


def _renew_initrds(host: Host, root: Path, files: Path) -> None:
    """Make every initrd anew, by Debian's own means, for this hardware only: a fifth of the size, and of the boot."""
    settings = files / "etc/initramfs-tools"
    (settings / "conf.d/lab").write_text("MODULES=list\nCOMPRESS=gzip\nRESUME=none\n")
    (settings / "modules").write_text("".join(f"{name}\n" for name in INITRD_MODULES))
    for kernel in (files / "boot").glob("vmlinuz-*"):
        version = kernel.name.partition("-")[2]
        initrd = files / f"boot/initrd.img-{version}"
        script = 'mount -t proc proc "$0/proc" && chroot "$0" mkinitramfs -o "/boot/initrd.img-$1" "$1"; code=$?'
        host.run(["sh", "-c", f'{script}; umount "$0/proc"; exit $code', root, version], timeout=MAKE_SECONDS)
        data = initrd.read_bytes()
        initrd.write_bytes(data + bytes(-len(data) % 4) + render_addition())


def make_disk(host: Host, root: Path, files: Path, directory: Path) -> Disk:
    """Make a disk from a root directory. Raises LabError if it has no kernel.

    Args:
        host: see `prepare_root`.
        root: see there.
        files: see there.
        directory: an existing directory for the disk's files, which `host` sees under the same path.
    """
    boot = files / "boot"
    kernels, initrds = sorted(boot.glob("vmlinuz-*")), sorted(boot.glob("initrd.img-*"))
    if not kernels or not initrds:
        raise LabError("the tree has no kernel or no initrd")
    raw, raw_swap = directory / "disk.raw", directory / "swap.raw"
    for path, size in ((raw, DISK_MIB), (raw_swap, SWAP_MIB)):
        path.touch()
        os.truncate(path, size << 20)
    host.run(
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, raw],
        timeout=MAKE_SECONDS,
    )
    # Without the journal it is made much faster; the computer has one.
    host.run(["tune2fs", "-j", "-J", "size=32", raw], timeout=MAKE_SECONDS)
    host.run(["mkswap", "--quiet", raw_swap])
    # Layers above them, so that the images stay as they were made.
    layer, swap = directory / "disk.qcow2", directory / "swap.qcow2"
    for below, above in ((raw, layer), (raw_swap, swap)):
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", above])
    kernel, initrd = directory / "kernel", directory / "initrd"
    shutil.copyfile(kernels[-1], kernel)
    shutil.copyfile(initrds[-1], initrd)
    return Disk(root=layer, swap=swap, kernel=kernel, initrd=initrd)
