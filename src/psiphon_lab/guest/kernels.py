"""Debian's kernels for guests: fetched once as packages, kept in the laboratory's cache.

apt fetches into a root of its own, so that nothing of this machine's own apt changes.
"""

from __future__ import annotations

import fcntl
import lzma
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_lab.booted.trees import find_cache, find_mirror
from psiphon_lab.namespace import LabError
from psiphon_vpn.run import CommandError, run

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES: Final = ("bookworm", "trixie")
"""Releases of Debian whose kernels the tests boot: Linux 6.1 and 6.12."""
RECIPE: Final = "3"
"""Counted up when what is kept of a package changes."""
FETCH_SECONDS: Final = 600.0
_MODULES = "**/lib/modules/*/kernel/**/*.ko*"  # from Debian 13 on below usr/

# Of some 4,000 modules: the network's, and what they and the guest's own devices rest on.
_KEPT = (
    "net", "crypto", "lib", "arch", "fs/9p", "fs/netfs", "fs/fscache", "fs/overlayfs", "drivers/virtio",
    "drivers/char/virtio_console", "drivers/net/bonding", "drivers/net/ipvlan", "drivers/net/macvlan",
    "drivers/net/macsec", "drivers/net/net_failover", "drivers/net/ppp", "drivers/net/slip", "drivers/net/team",
    "drivers/net/tun", "drivers/net/veth", "drivers/net/virtio_net", "drivers/net/vxlan", "drivers/net/wireguard",
    "drivers/net/dummy", "drivers/net/wireless/mac80211_hwsim", "drivers/net/wireless/virtual/mac80211_hwsim",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel in the cache. version: as `uname -r` says it; image: the bzImage; modules: by name, where they are."""

    version: str
    image: Path
    modules: dict[str, Path]

    def order_modules(self, wanted: Iterable[str]) -> list[Path]:
        """The modules and what they need, in the order in which insmod(8) takes them. Raises LabError."""
        ordered: dict[str, Path] = {}

        def add(name: str) -> None:
            if name in ordered:
                return
            path = self.modules.get(name)
            if path is None:
                raise LabError(f"Linux {self.version} has no module {name}")
            for needed in _read_dependencies(path):
                add(needed)
            ordered[name] = path

        for name in wanted:
            add(name)
        return list(ordered.values())


def read_module(path: Path) -> bytes:
    """A module, unpacked."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _read_dependencies(path: Path) -> list[str]:
    # The section .modinfo is strings that end with a zero (modinfo(8)).
    found = re.search(rb"\0depends=([^\0]*)\0", read_module(path))
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def find_kernel(suite: str) -> Kernel | None:
    """The kernel of a suite, if it is in the cache."""
    root = find_cache() / f"kernel-{suite}-{RECIPE}"
    images = sorted(root.glob("boot/vmlinuz-*"))
    if not images:
        return None
    files = root.glob(_MODULES)
    modules = {path.name.partition(".ko")[0].replace("-", "_"): path for path in files}
    return Kernel(version=images[0].name.removeprefix("vmlinuz-"), image=images[0], modules=modules)


def fetch_kernel(suite: str) -> Kernel:
    """The kernel of a suite of Debian; fetched if it is not in the cache, 70 to 110 MB.

    Raises:
        LabError: it cannot be had, with the reason.
    """
    cache = find_cache()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (cache / f".kernel-{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := find_kernel(suite)) is not None:
            return found
        part = cache / f".kernel-{suite}.part"
        shutil.rmtree(part, ignore_errors=True)  # of one that was interrupted: nobody else has the lock
        try:
            _unpack(_download(suite, part / "apt"), part)
        except CommandError as error:
            raise LabError(f"no kernel of {suite}: {error.why}") from error
        shutil.rmtree(part / "apt")
        part.rename(cache / f"kernel-{suite}-{RECIPE}")
    kernel = find_kernel(suite)
    if kernel is None:
        raise LabError(f"the kernel package of {suite} has no kernel in it")
    return kernel


def _download(suite: str, root: Path) -> Path:
    if not KEYRING.exists():
        raise LabError("debian-archive-keyring is not installed")
    for name in ("etc/preferences.d", "etc/sources.list.d", "lists/partial", "archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    (root / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {find_mirror()} {suite} main\n")
    options = {
        "Dir::Etc": f"{root}/etc",
        "Dir::State": str(root),
        "Dir::State::status": f"{root}/status",
        "Dir::Cache": str(root),
        "APT::Sandbox::User": "root",  # the directory is root's
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *words, "-qq", "update"], timeout=FETCH_SECONDS)
    asked = ["apt-cache", *words, "depends", "--important", "linux-image-amd64"]
    told = run(asked, timeout=FETCH_SECONDS).stdout
    found = re.search(r"Depends: (linux-image-[0-9.][^ \n]*)", told)
    if found is None:
        raise LabError(f"{suite} names no kernel")
    run(["env", f"--chdir={root}", "apt-get", *words, "-qq", "download", found[1]], timeout=FETCH_SECONDS)
    packages = list(root.glob("linux-image-*.deb"))
    if not packages:
        raise LabError(f"{found[1]} was not fetched")
    return packages[0]


def _unpack(package: Path, target: Path) -> None:
    run(["dpkg-deb", "--extract", str(package), str(target)], timeout=FETCH_SECONDS)
    for path in target.glob(_MODULES):
        within = path.relative_to(target).as_posix().partition("/kernel/")[2]
        if not within.startswith(_KEPT):
            path.unlink()
    shutil.rmtree(target / "usr/share", ignore_errors=True)
