"""A place on a lab host where programs may write below /etc and /run, and nobody else ever sees it.

Firewall front ends and container daemons keep their settings, locks and keys in fixed places. A lab host shares its
files with the machine, so such a program runs in one more mount namespace: a layer in memory above /etc, an empty /run,
one directory to share, and everything else can only be read. It is held by a process, and gone with it. The kernel is
shared too: its settings can be read only, but those of the host's own network, and no module is loaded by hand.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psiphon_lab.namespace import Host
from psiphon_lab.waiting import wait_ready

# The machine's choice between iptables' two backends is in /etc/alternatives: here it is always the one that nft shows.
PREPARE = """set -e
mount --bind "$1" "$1"
for place in $(cut -d" " -f2 /proc/self/mounts); do
    case "$place" in /proc | /proc/* | /sys | /sys/* | /dev | /dev/* | "$1") continue ;; esac
    # What cannot be found by this name lies below another mount, and is not to be found by a program either.
    mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount -t tmpfs -o mode=755 tmpfs /run
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


class OwnFiles:
    """The place. Made by `open_own_files`."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that, on the host, runs a program in this place."""
        return [
            *("nsenter", f"--target={self._holder.pid}", "--mount", "--"),
            *("env", "TMPDIR=/run", "setpriv", "--bounding-set=-sys_module", "--"),
            *map(str, argv),
        ]


@contextmanager
def open_own_files(host: Host, directory: Path) -> Iterator[OwnFiles]:
    """A place of its own on a host. directory: writable there too. Raises LabError if it cannot be made."""
    holder = host.spawn(["unshare", "--mount", "sh", "-c", PREPARE, "sh", str(directory)], stdout=subprocess.PIPE)
    try:
        wait_ready(holder, f"a place for files on {host.name}")
        yield OwnFiles(holder)
    finally:
        holder.kill()
        holder.wait()
