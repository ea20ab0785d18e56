# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user has before an installation: a clone of this project, and its locked packages."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from psiphon_lab.booted.trees import Say, find_cache
from psiphon_lab.namespace import LabError
from psiphon_vpn.i18n import _
from psiphon_vpn.run import CommandError, run

ROOT: Final = Path(__file__).resolve().parents[3]
WHEELS: Final = Path("/opt/psiphon-vpn-lab/wheels")
"""The packages' directory in the container. pip's configuration file names it as the only source."""
PIP_CONF: Final = f"[global]\nno-index = true\nfind-links = {WHEELS}\ndisable-pip-version-check = true\n"


def fetch_wheels(*, say: Say = lambda _text: None) -> Path:
    """The locked packages as files, in a directory of the cache. pip downloads them once and checks their hashes.

    Raises:
        LabError: they cannot be downloaded.
    """
    lock = ROOT / "requirements.lock"
    cache = find_cache()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = cache / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    with (cache / ".wheels.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if place.is_dir():
            return place
        say(_("Downloading the locked Python packages, once"))
        part = cache / f".{place.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        argv = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        argv += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", str(part), "-r", str(lock)]
        try:
            # With this machine's own configuration of pip, as when this environment was made.
            subprocess.run(argv, check=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise LabError(f"the locked packages cannot be downloaded: {error}") from error
        part.rename(place)
    return place


def copy_clone(target: Path) -> None:
    """Copy the files of this checkout that git tracks, and new ones that it does not ignore, to `target`.

    Raises:
        LabError: this is not a checkout.
    """
    try:
        listed = run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout
    except CommandError as error:
        raise LabError(f"this is not a checkout of the project: {error.why}") from error
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)
