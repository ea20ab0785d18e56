"""How a container is put together: its disk, its control group, the supervisor's command line.

Everything is mounted in the mount namespace of a lab host, so that the machine sees none of it and the kernel undoes it
by itself, whatever happens to the lab.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from psiphon_lab.launch import clean_environment
from psiphon_lab.namespace import Host

_GROUPS = Path("/sys/fs/cgroup")
_NAME = "psiphon-vpn-lab"
# Each container in a control group of its own: two in one would stop each other's services.
_ENTER_GROUP = 'mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"'


def seen_by(host: Host, path: Path) -> Path:
    """A path in a host's mount namespace, as this process reaches it."""
    return Path(f"/proc/{host.pid}/root{path}")


def prepare_disk(disk: Host, tree: Path, mount: Path) -> Path:
    """Put a writable layer in memory above a tree, in the disk's mount namespace; returns its root directory there."""
    mount.mkdir()
    disk.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", mount])
    # The supervisor keeps files there by the container's name, which all of the laboratory's share.
    disk.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    root = mount / "root"
    disk.run(["mkdir", mount / "upper", mount / "work", root])
    layers = f"lowerdir={tree},upperdir={mount / 'upper'},workdir={mount / 'work'}"
    disk.run(["mount", "-t", "overlay", "overlay", "-o", layers, root])
    # The unified hierarchy, also where the machine itself still has the old ones: systemd 257 wants nothing else.
    disk.run(["mount", "-t", "cgroup2", "cgroup2", _GROUPS])
    return root


def start_nspawn(
    disk: Host,
    root: Path,
    *,
    group: str,
    network: str,
    binds: Sequence[tuple[Path, Path]],
    command: Sequence[str],
    output: IO[bytes],
) -> subprocess.Popen[bytes]:
    """Start a container's supervisor.

    Args:
        disk: where `root` is mounted.
        root: the container's root directory.
        group: a name for its control group that no other container of this machine has.
        network: the network namespace, as a path.
        binds: directories to show inside, read-only: (outside, inside).
        command: "--boot", or what to run instead.
        output: what the console says.
    """
    argv = ["sh", "-c", _ENTER_GROUP, str(_group_path(group))]
    argv += ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit"]
    argv += ["--machine=client", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"]
    # Given a namespace of its own only by path, it would not get the capability to change it.
    argv += ["--capability=CAP_NET_ADMIN", f"--network-namespace-path={network}"]
    argv += [f"--bind-ro={outside}:{inside}" for outside, inside in binds]
    argv += [f"--directory={root}", *command]
    # "network": settings below /proc/sys/net are the namespace's own and writable; all others stay read-only.
    environment = clean_environment(SYSTEMD_NSPAWN_API_VFS_WRITABLE="network")
    return disk.spawn(argv, env=environment, stdout=output, stderr=output)


def _group_path(group: str) -> Path:
    return _GROUPS / f"{_NAME}-{group}"


def remove_group(disk: Host, group: str) -> None:
    """Remove the control group of a container that has ended, and those of labs that were killed."""
    groups = seen_by(disk, _GROUPS)
    for top in groups.glob(f"{_NAME}-*"):
        with contextlib.suppress(OSError):
            if top.name == _group_path(group).name or "populated 0" in (top / "cgroup.events").read_text():
                _remove_tree(top)


def _remove_tree(top: Path) -> None:
    """rmdir(2) from the leaves up: of a control group's files none can be deleted, and none needs to be."""
    for path, _directories, _files in os.walk(top, topdown=False):
        os.rmdir(path)
