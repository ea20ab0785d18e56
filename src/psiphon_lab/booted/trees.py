# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the Debian trees that the laboratory boots, once with debootstrap, in a cache outside the repository.

A tree never changes: each computer has its own layer above it. A tree is built under another name and then renamed, so
it is either complete or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_lab.namespace import LabError
from psiphon_vpn.i18n import _
from psiphon_vpn.run import CommandError, run

Say = Callable[[str], None]

CACHE_VARIABLE: Final = "PSIPHON_VPN_LAB_CACHE"
MIRROR_VARIABLE: Final = "PSIPHON_VPN_DEBIAN_MIRROR"
RECIPE: Final = "2"
"""Increase this when `_finish` or the options of debootstrap change, so that older trees are not used."""
BUILD_SECONDS: Final = 1200.0
_ASK_SECONDS: Final = 120.0
"""apt may read all its lists first, on a busy machine."""

# The network parts of a desktop, and what the service needs. python3-venv is for the installation from a clone;
# dnsmasq-base and unbound are resolvers that NetworkManager or an administrator may put between programs and servers.
_DESKTOP = (
    "systemd systemd-sysv systemd-resolved libnss-resolve libpam-systemd dbus udev polkitd network-manager "
    "dnsmasq-base unbound nftables iproute2 procps kmod openssl ca-certificates python3 python3-venv"
).split()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A release of Debian. name: its code name. version: its number. packages: the tree's packages."""

    name: str
    version: int
    packages: tuple[str, ...]

    @property
    def key(self) -> str:
        """The tree's name in the cache. It depends on the list of packages."""
        words = "\n".join((RECIPE, self.name, *sorted(self.packages)))
        return f"{self.name}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"


DEBIAN_11: Final = Suite(
    name="bullseye",
    version=11,
    packages=tuple("systemd systemd-sysv dbus nftables iproute2 procps kmod".split()),
)
DEBIAN_12: Final = Suite(name="bookworm", version=12, packages=tuple(_DESKTOP))
DEBIAN_13: Final = Suite(name="trixie", version=13, packages=tuple(_DESKTOP))


def find_cache() -> Path:
    """The directory of trees: $PSIPHON_VPN_LAB_CACHE, or one below /var/cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or "/var/cache/psiphon-vpn-lab")


def find_mirror() -> str:
    """The Debian archive that this machine's own apt uses, or $PSIPHON_VPN_DEBIAN_MIRROR. Raises LabError."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    try:
        listed = run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)",
                "Created-By: Packages",
            ],
            timeout=_ASK_SECONDS,
        ).stdout
    except CommandError as error:
        raise LabError(f"apt does not name Debian's archive: {error}") from error
    return choose_mirror(listed)


def choose_mirror(listed: str) -> str:
    """The first main archive of Debian among lines "origin release component address". Raises LabError.

    apt knows the origin only once it has downloaded the lists; before that the address decides.
    """
    for line in listed.splitlines():
        origin, _space, rest = line.partition(" ")
        fields = rest.split()
        if len(fields) != 3 or fields[1] != "main" or not fields[2].startswith(("http://", "https://")):
            continue
        is_debian = origin == "Debian" or (origin == "" and fields[2].rstrip("/").endswith("/debian"))
        if is_debian and "-" not in fields[0]:  # not -security, -updates, -backports
            return fields[2]
    raise LabError(f"apt knows no archive of Debian over HTTP; {MIRROR_VARIABLE} may name one")


def find_tree(suite: Suite) -> Path | None:
    """The finished tree, or None if it must be built first."""
    path = find_cache() / suite.key
    return path if path.is_dir() else None


def build_tree(suite: Suite, *, say: Say = lambda _text: None) -> Path:
    """The tree of a suite. Builds it if necessary, which takes a minute or two and downloads about 100 MB.

    Raises:
        LabError: it cannot be built here, with the reason.
    """
    cache = find_cache()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _one_builder(cache / f".{suite.name}.lock"):
        if (existing := find_tree(suite)) is not None:
            return existing
        for leftover in cache.glob(f".{suite.name}-*.part"):
            shutil.rmtree(leftover)  # from an interrupted build: this process has the lock
        say(_("Building a Debian {version} tree, once; this takes a minute or two").format(version=suite.version))
        part = cache / f".{suite.key}.part"
        _debootstrap(suite, part)
        _finish(part)
        part.rename(cache / suite.key)
    return cache / suite.key


@contextmanager
def _one_builder(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _debootstrap(suite: Suite, target: Path) -> None:
    if shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        raise LabError("debootstrap is not installed")
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(suite.packages)}"]
    argv += [suite.name, str(target), find_mirror()]
    try:
        run([*_proxy_settings(), *argv], timeout=BUILD_SECONDS)
    except CommandError as error:
        log = target / "debootstrap" / "debootstrap.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else error.stdout.splitlines()
        shutil.rmtree(target, ignore_errors=True)
        raise LabError(f"debootstrap {suite.name}: {error.why}; {' / '.join(lines[-3:])}") from error


def _proxy_settings() -> list[str]:
    """The proxy of apt, as environment for debootstrap, which does not read apt's configuration."""
    words = run(["apt-config", "dump", "--format", "%f %v%n", "Acquire::http::Proxy"], ok=(0, 100)).stdout.split()
    proxy = words[1] if len(words) == 2 else os.environ.get("http_proxy", "")
    return ["env", f"http_proxy={proxy}", f"https_proxy={proxy}"] if proxy.startswith("http") else []


def _finish(tree: Path) -> None:
    """Remove what belongs to this machine, and what is not needed."""
    for directory in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(tree / directory, ignore_errors=True)
        (tree / directory / "partial").mkdir(parents=True)
    # If this is empty, systemd treats the first start as a "first boot" and asks questions. That all have the same
    # value is harmless.
    (tree / "etc/machine-id").write_text(f"{hashlib.sha256(tree.name.encode()).hexdigest()[:32]}\n")
    (tree / "etc/hostname").write_text("client\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost client\n::1 localhost client\n")
    (tree / "etc/apt/sources.list").write_text("")
    # The package would start it at boot, in the place of the system's resolver. A test starts it itself.
    if (tree / "usr/sbin/unbound").exists():
        (tree / "etc/systemd/system/unbound.service").symlink_to("/dev/null")
