# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of this machine that a guest's programs open again and again: the guest gets copies of them in memory.

Over 9p each start of a program takes dozens of questions to the machine outside, and a busy one answers late.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from psiphon_lab.launch import SOURCE_ROOT
from psiphon_lab.service_adapter.daemon import DAEMON
from psiphon_vpn.run import run

ROOT: Final = Path("/usr")
"""Only what is below it is copied."""
PROGRAMS: Final = ("cat", "env", "ip", "nft", "nsenter", "setpriv", "sh", "tc", "unshare")
_PLACES: Final = ("lib/locale/C.utf8", "lib/x86_64-linux-gnu/gconv/gconv-modules.cache")
_IMPORTED = """
import json, sys
import {daemon}.__main__
import psiphon_lab.standin_core
found = [getattr(module, name, None) for module in list(sys.modules.values()) for name in ("__cached__", "__file__")]
found += [line.split()[-1] for line in open("/proc/self/maps")]
print(json.dumps([path for path in found if path and path.startswith("/") and not path.endswith(".py")]))
"""


@functools.cache
def list_near_files() -> dict[str, Path | str]:
    """By the path below `ROOT`: the file to copy, or the target of a symbolic link."""
    programs = [found for name in PROGRAMS if (found := shutil.which(name)) is not None]
    wanted = {Path(path) for path in programs} | {path for name in _PLACES for path in _walk(ROOT / name)}
    listed = run(["ldd", *programs], ok=range(256)).stdout
    wanted |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    code = _IMPORTED.format(daemon=DAEMON[1])
    imported = run(["env", f"PYTHONPATH={SOURCE_ROOT}", sys.executable, "-c", code], timeout=60).stdout
    wanted |= {Path(path) for path in json.loads(imported)}
    return dict(_place(wanted))


def _walk(path: Path) -> Iterable[Path]:
    return path.rglob("*") if path.is_dir() else [path]


def _place(paths: Iterable[Path]) -> Iterable[tuple[str, Path | str]]:
    for path in paths:
        at = path.parent.resolve() / path.name  # /lib is a link to /usr/lib
        if not at.is_relative_to(ROOT) or not at.exists():
            continue
        real = at.resolve()
        if at.is_symlink():
            yield str(at.relative_to(ROOT)), str(at.readlink())
        if real.is_relative_to(ROOT) and real.is_file():
            yield str(real.relative_to(ROOT)), real
