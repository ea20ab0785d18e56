# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out, by trying, whether this machine can boot containers in the laboratory, and if not, why."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import tempfile
from pathlib import Path

from psiphon_lab.booted.nspawn import prepare_disk, remove_group, start_nspawn
from psiphon_lab.namespace import LabError, open_host

_PROGRAMS = ("systemd-nspawn", "debootstrap", "dnsmasq")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@functools.cache
def find_obstacle() -> str | None:
    """Why this machine cannot boot a system in the laboratory, or None if it can."""
    if os.geteuid() != 0:
        return "it needs root"
    if platform.machine() != "x86_64":
        return f"the stand-in core for booted systems is made for x86_64, this is {platform.machine()}"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        return _try_container()
    except (LabError, OSError) as error:
        return f"containers do not start here: {str(error).splitlines()[-1][:300]}"


def _try_container() -> str | None:
    """Run true(1) in a container made of the machine's own /usr, started in the same way as a real one."""
    with tempfile.TemporaryDirectory(prefix="psiphon-lab-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        tree = directory / "tree"
        for name in ("usr", "etc", "proc", "sys", "dev", "run", "tmp", "var", "root"):
            (tree / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/usr", name).is_dir():
                (tree / name).symlink_to(f"usr/{name}")
        (tree / "etc/os-release").write_text("ID=none\n")
        with open_host("disk", directory=directory / "disk", expose=(directory,)) as disk:
            root = prepare_disk(disk, tree, directory / "mount")
            output = directory / "output"
            with output.open("wb") as stream:
                child = start_nspawn(
                    disk,
                    root,
                    group=directory.name,
                    network=disk.netns_path,
                    binds=((Path("/usr"), Path("/usr")),),
                    command=("/usr/bin/true",),
                    output=stream,
                )
            code = child.wait(timeout=60)
            remove_group(disk, directory.name)
        if code != 0:
            return f"systemd-nspawn ended with {code}: {output.read_text(errors='replace').strip()[-300:]}"
    return None
