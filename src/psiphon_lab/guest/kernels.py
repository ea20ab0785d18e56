# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads Debian's kernels for guests, once, as packages, into the laboratory's cache; or takes a given one.

apt uses its own root directory for that, so that this machine's own apt does not change.
"""

from __future__ import annotations

import fcntl
import lzma
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_lab.booted.trees import find_cache, find_mirror
from psiphon_lab.namespace import LabError
from psiphon_vpn.run import CommandError, run

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES: Final = ("bookworm", "trixie")
"""Releases of Debian whose kernels all tests of guests boot: Linux 6.1 and 6.12."""
NAMED: Final = {
    "debian-10": ("buster",),
    "debian-11": ("bullseye",),
    "debian-12": ("bookworm",),
    "debian-13": ("trixie",),
    "newest": ("trixie-backports", "sid"),
}
"""The kernels by the name for users, each with its suites: the one with the highest version counts."""
RECIPE: Final = "5"
"""Increase this when the selection of files from a package changes."""
FETCH_SECONDS: Final = 600.0
_IMAGES = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
_MODULES = "**/lib/modules/*/kernel/**/*.ko*"  # from Debian 13 on below usr/

# Of some 4,000 modules: those of the network, and what they and the guest's own devices require.
_KEPT = (
    "net", "crypto", "lib", "arch", "fs/9p", "fs/netfs", "fs/fscache", "fs/overlayfs", "fs/configfs", "drivers/virtio",
    "drivers/char/virtio_console", "drivers/net/bonding", "drivers/net/geneve", "drivers/net/ifb", "drivers/net/ipvlan",
    "drivers/net/macvlan", "drivers/net/macvtap", "drivers/net/macsec", "drivers/net/mii", "drivers/net/net_failover",
    "drivers/net/netconsole", "drivers/net/ppp", "drivers/net/slip", "drivers/net/tap", "drivers/net/team",
    "drivers/net/tun", "drivers/net/usb", "drivers/net/veth", "drivers/net/virtio_net", "drivers/net/vrf",
    "drivers/net/vxlan", "drivers/net/wireguard", "drivers/usb/common", "drivers/usb/core", "drivers/usb/host",
    "drivers/net/dummy", "drivers/net/wireless/mac80211_hwsim", "drivers/net/wireless/virtual/mac80211_hwsim",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel in the cache.

    Attributes:
        version: as in `uname -r`.
        image: the bzImage.
        modules: paths by name.
        loader: a directory with the modules unpacked, and an index of what the kernel may ask for.
    """

    version: str
    image: Path
    modules: dict[str, Path]
    loader: Path

    def order_modules(self, wanted: Iterable[str]) -> list[Path]:
        """The modules and their dependencies, in the order for insmod(8). Raises LabError."""
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
    # The section .modinfo consists of strings that end with a zero byte (modinfo(8)).
    found = re.search(rb"\0depends=([^\0]*)\0", read_module(path))
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def find_kernel(name: str) -> Kernel | None:
    """The kernel of a suite, or of a name in NAMED, if it is in the cache."""
    root = find_cache() / f"kernel-{_list_suites(name)[0]}-{RECIPE}"
    image = _find_image(root)
    return None if image is None else _describe(image, root, root / "loader")


def _find_image(root: Path) -> Path | None:
    # Since Linux 7 it is beside the modules.
    return next((path for place in _IMAGES for path in sorted(root.glob(place))), None)


def _list_suites(name: str) -> tuple[str, ...]:
    return NAMED.get(name, (name,))


def _describe(image: Path, root: Path, loader: Path) -> Kernel:
    modules = {path.name.partition(".ko")[0].replace("-", "_"): path for path in root.glob(_MODULES)}
    return Kernel(version=read_version(image), image=image, modules=modules, loader=loader)


def read_version(image: Path) -> str:
    """The version of a kernel whose file is called vmlinuz-VERSION, or lies in a directory of that name."""
    return image.name.partition("vmlinuz-")[2] or image.parent.name


def fetch_kernel(name: str) -> Kernel:
    """The kernel of a suite of Debian, or of a name in NAMED. Downloads 70 to 110 MB if it is not in the cache.

    Raises:
        LabError: it cannot be downloaded, with the reason.
    """
    suites = _list_suites(name)
    cache = find_cache()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (cache / f".kernel-{suites[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := find_kernel(name)) is not None:
            return found
        part = cache / f".kernel-{suites[0]}.part"
        shutil.rmtree(part, ignore_errors=True)  # from an interrupted download: this process has the lock
        try:
            for package in _download(suites, part / "apt"):
                _unpack(package, part)
        except CommandError as error:
            raise LabError(f"no kernel of {' or '.join(suites)}: {error.why}") from error
        shutil.rmtree(part / "apt")
        if (image := _find_image(part)) is None:
            raise LabError(f"the kernel package of {' or '.join(suites)} has no kernel in it")
        write_loader(_describe(image, part, part / "loader"))
        part.rename(cache / f"kernel-{suites[0]}-{RECIPE}")
    kernel = find_kernel(name)
    assert kernel is not None
    return kernel


def take_kernel(image: Path, *, modules: Path, directory: Path) -> Kernel:
    """A kernel that the user has.

    Args:
        image: its bzImage; see `read_version`.
        modules: its directory of modules, as /lib/modules/VERSION.
        directory: an existing directory for the unpacked modules.
    """
    found = {path.name.partition(".ko")[0].replace("-", "_"): path for path in modules.glob("kernel/**/*.ko*")}
    kernel = Kernel(version=read_version(image), image=image, modules=found, loader=directory / "loader")
    write_loader(kernel)
    return kernel


def write_loader(kernel: Kernel) -> None:
    """Write the directory from which a guest's kernel has modules loaded when it asks for something.

    Two lines in the index for each name: "=" and the name, and the modules to load, in order.
    """
    kernel.loader.mkdir()
    known: dict[str, str] = {}
    for name, path in kernel.modules.items():
        data = read_module(path)
        (kernel.loader / f"{name}.ko").write_bytes(data)
        for alias in (name, *re.findall(rb"(?<=\0)alias=([^\0*?\[]+)(?=\0)", data)):
            word = alias if isinstance(alias, str) else alias.decode(errors="replace")
            known.setdefault(word.replace("-", "_"), name)
    lines = []
    for alias, name in sorted(known.items()):
        try:
            ordered = kernel.order_modules([name])
        except LabError:
            continue  # it requires one that was not kept
        lines += [f"={alias}", " ".join(path.name.partition(".ko")[0].replace("-", "_") for path in ordered)]
    (kernel.loader / "index").write_text("\n".join(lines) + "\n", encoding="ascii")


def _download(suites: Sequence[str], root: Path) -> list[Path]:
    if not KEYRING.exists():
        raise LabError("debian-archive-keyring is not installed")
    for name in ("etc/preferences.d", "etc/sources.list.d", "lists/partial", "archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    sources = "".join(f"deb [signed-by={KEYRING}] {find_mirror()} {suite} main\n" for suite in suites)
    (root / "etc/sources.list").write_text(sources)
    # Otherwise backports have a lower priority, and the highest version is not chosen.
    (root / "etc/preferences.d/all").write_text("Package: *\nPin: release *\nPin-Priority: 500\n")
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
    query = ["apt-cache", *words, "depends", "--important", "linux-image-amd64"]
    listed = run(query, timeout=FETCH_SECONDS).stdout
    # Since Linux 7 the modules are a package of their own, named like the one with the image.
    found = re.search(r"Depends: linux-image-([0-9.][^ \n]*)", listed)
    if found is None:
        raise LabError(f"{' or '.join(suites)} names no kernel")
    names = [f"linux-image-{found[1]}"]
    inner = run(["apt-cache", *words, "depends", "--important", *names], timeout=FETCH_SECONDS).stdout
    names += sorted(set(re.findall(r"Depends: (linux-(?:modules|binary)-[0-9.][^ \n]*)", inner + listed)))
    run(["env", f"--chdir={root}", "apt-get", *words, "-qq", "download", *names], timeout=FETCH_SECONDS)
    packages = sorted(root.glob("linux-*.deb"))
    if not packages:
        raise LabError(f"{names[0]} was not downloaded")
    return packages


def _unpack(package: Path, target: Path) -> None:
    run(["dpkg-deb", "--extract", str(package), str(target)], timeout=FETCH_SECONDS)
    for path in target.glob(_MODULES):
        within = path.relative_to(target).as_posix().partition("/kernel/")[2]
        if not within.startswith(_KEPT):
            path.unlink()
    shutil.rmtree(target / "usr/share", ignore_errors=True)
