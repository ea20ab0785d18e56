# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a container with systemd-nspawn, after it has prepared the disk and the control group.

All mounts are in the mount namespace of a lab host. So the machine does not see them, and the kernel removes them by
itself, however the lab ends.
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
# Each container needs its own control group: two in the same one would stop each other's services.
_ENTER_GROUP = 'mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"'


def seen_by(host: Host, path: Path) -> Path:
    """A path in a host's mount namespace, as a path of this process."""
    return Path(f"/proc/{host.pid}/root{path}")


def prepare_disk(disk: Host, tree: Path, mount: Path) -> Path:
    """Mount a writable layer in memory above a tree, in the disk's mount namespace; returns its root directory."""
    mount.mkdir()
    disk.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", mount])
    # The supervisor keeps files there under the container's name, and all containers here have the same name.
    disk.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    root = mount / "root"
    disk.run(["mkdir", mount / "upper", mount / "work", root])
    layers = f"lowerdir={tree},upperdir={mount / 'upper'},workdir={mount / 'work'}"
    disk.run(["mount", "-t", "overlay", "overlay", "-o", layers, root])
    # The unified hierarchy, even if the machine itself still has the old ones: systemd 257 requires it.
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
        disk: the host where `root` is mounted.
        root: the container's root directory.
        group: a name for its control group, unique on this machine.
        network: path of the network namespace.
        binds: directories to bind read-only: (outside, inside).
        command: "--boot", or a command to run instead.
        output: receives the console's output.
    """
    argv = ["sh", "-c", _ENTER_GROUP, str(_group_path(group))]
    argv += ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit"]
    argv += ["--machine=client", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only"]
    # With a namespace by path, nspawn would otherwise not give it the capability to change that namespace.
    argv += ["--capability=CAP_NET_ADMIN", f"--network-namespace-path={network}"]
    argv += [f"--bind-ro={outside}:{inside}" for outside, inside in binds]
    argv += [f"--directory={root}", *command]
    # "network": settings below /proc/sys/net, which are the namespace's own, are writable; all others are read-only.
    environment = clean_environment(SYSTEMD_NSPAWN_API_VFS_WRITABLE="network")
    return disk.spawn(argv, env=environment, stdout=output, stderr=output)


def _group_path(group: str) -> Path:
    return _GROUPS / f"{_NAME}-{group}"


def remove_group(disk: Host, group: str) -> None:
    """Remove the control group of a container that has ended, and those of killed labs."""
    groups = seen_by(disk, _GROUPS)
    for top in groups.glob(f"{_NAME}-*"):
        with contextlib.suppress(OSError):
            if top.name == _group_path(group).name or "populated 0" in (top / "cgroup.events").read_text():
                _remove_tree(top)


def _remove_tree(top: Path) -> None:
    """Remove the directories from the leaves up. A control group's files cannot be deleted, and need not be."""
    for path, _directories, _files in os.walk(top, topdown=False):
        os.rmdir(path)
