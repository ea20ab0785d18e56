# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Private files: a mount namespace on a lab host in which programs may write below /etc and /run, unseen by others.

Firewall front ends and container daemons keep settings, locks and keys in fixed places, and a lab host shares its files
with the machine. So such a program gets one more mount namespace: a layer in memory above /etc, an empty /run, one
shared directory, and everything else read-only. A process holds it, and it ends with that process. The kernel is shared
as well: only the settings of the host's own network can be written, and the program cannot load modules.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psiphon_lab.namespace import Host
from psiphon_lab.waiting import wait_ready

# /etc/alternatives selects one of iptables' two backends. Here it is always the one that nft shows.
PREPARE = """set -e
mount --bind "$1" "$1"
for place in $(cut -d" " -f2 /proc/self/mounts); do
    case "$place" in /proc | /proc/* | /sys | /sys/* | /dev | /dev/* | "$1") continue ;; esac
    # A mount point that cannot be found is below another mount, so no program finds it either.
    mount -o remount,bind,ro "$place" 2>/dev/null || true
done
# Inside a virtual machine the shared directory is below /run, and the empty /run would hide it.
cd "$1"
mount -t tmpfs -o mode=755 tmpfs /run
case "$1" in /run/*) mkdir -p "$1" && mount --no-canonicalize --no-mtab --bind . "$1" ;; esac
cd /
mkdir /run/.etc /run/.work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/.etc,workdir=/run/.work /etc
for program in iptables ip6tables; do
    for word in "" -save -restore; do
        [ ! -e "/etc/alternatives/$program$word" ] ||
            ln -sfn "$(command -v "$program-nft$word")" "/etc/alternatives/$program$word"
    done
done
for part in /proc/sys/*; do
    [ "$part" = /proc/sys/net ] || { mount --bind "$part" "$part" && mount -o remount,bind,ro "$part"; }
done
echo ready
exec sleep infinity"""


class PrivateFiles:
    """The mount namespace. Made by `open_private_files`."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program on the host with these files."""
        return [
            *("nsenter", f"--target={self._holder.pid}", "--mount", "--"),
            *("env", "TMPDIR=/run", "setpriv", "--bounding-set=-sys_module", "--"),
            *map(str, argv),
        ]


@contextmanager
def open_private_files(host: Host, directory: Path) -> Iterator[PrivateFiles]:
    """Private files on a host. directory: also writable, and shared. Raises LabError if that fails."""
    holder = host.spawn(["unshare", "--mount", "sh", "-c", PREPARE, "sh", str(directory)], stdout=subprocess.PIPE)
    try:
        wait_ready(holder, f"the private files on {host.name}")
        yield PrivateFiles(holder)
    finally:
        holder.kill()
        holder.wait()
