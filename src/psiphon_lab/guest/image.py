# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the guest's initial file system: busybox, kernel modules, and a script that waits for work.

There is no disk. Programs come from this machine's own directories, which the guest mounts read-only by 9p (the
kernel's Documentation/filesystems/9p.rst), so nothing needs to be built or installed for it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from psiphon_lab.archive import Archive
from psiphon_lab.guest.kernels import Kernel, read_module

BUSYBOX: Final = Path("/bin/busybox")
EXCHANGE: Final = "/exchange"
"""Guest and laboratory exchange files here."""
READY: Final = "ready"
BASE_MODULES: Final = (
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "af_packet",
    "tun",
    "crc32c_generic",
)
NFT_MODULES: Final = (
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_meta_bridge",
    "nft_nat",
    "nft_reject_inet",
)
_SETTINGS = ("alternatives", "default/ufw", "protocols", "services", "ufw")
"""Without these iptables is not found, and firewalld and ufw do not start."""
_PROGRAM_DIRECTORIES = ("bin", "sbin", "lib", "lib64")

# The loop reads a number, runs the script of that name beside the others, and answers with the number and its code.
_INIT = """#!/busybox sh
/busybox mkdir -p /proc /sys /dev /run /tmp /var/lib /root @MKDIRS@
/busybox ln -s /run /var/run
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
/busybox mount -t devtmpfs dev /dev
/busybox mkdir -p /dev/pts /dev/shm
/busybox mount -t devpts pts /dev/pts
for module in @MODULES@; do /busybox insmod "/modules/$module.ko" || echo "no module $module"; done
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 exchange @EXCHANGE@
@MOUNTS@
/busybox ip link set lo up
echo 2 >/proc/sys/kernel/printk
echo /modprobe >/proc/sys/kernel/modprobe
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/ LC_ALL=C.UTF-8
exec 3<>/dev/vport@PORT@
echo ready >&3
while read -r number <&3; do
    (
        /bin/sh "@EXCHANGE@/$number.sh" </dev/null >"@EXCHANGE@/$number.out" 2>&1 3>&-
        echo "$number $?" >&3
    ) &
done
/busybox poweroff -f
"""


# What the kernel calls when it lacks something (kernel.modprobe): each line of the index is a name that it may ask for,
# and the modules to load for it, in order.
_MODPROBE = """#!/busybox sh
for word; do case "$word" in -*) ;; *) name="$word" ;; esac; done
name="$(echo "$name" | @PREFIX@tr - _)"
set -- $(@PREFIX@grep -F -x -e "=$name" -A1 "@LOADER@/index" | @PREFIX@tail -n +2)
for module; do @INSMOD@ "@LOADER@/$module.ko" 2>/dev/null; done
exit 0
"""


def render_modprobe(loader: Path, *, insmod: str = "/busybox insmod", prefix: str = "/busybox ") -> str:
    """The script. loader: the kernel's directory. insmod, prefix: what it runs."""
    return _MODPROBE.replace("@LOADER@", str(loader)).replace("@INSMOD@", insmod).replace("@PREFIX@", prefix)


def build_image(
    kernel: Kernel, modules: Iterable[str], shares: Sequence[Path], *, near: Mapping[str, Path | str]
) -> bytes:
    """The image (cpio(5) "newc", gzipped) of a guest.

    Args:
        kernel: the guest's kernel.
        modules: names of modules, in addition to those of the guest's own devices.
        shares: directories of this machine to mount read-only at the same paths; the n-th has the tag "share<n>".
        near: files below /usr that it has in memory (`near_files.py`).
    """
    modules = [*modules, *(["overlay"] if near else [])]
    ordered = kernel.order_modules([*(name for name in BASE_MODULES if name in kernel.modules), *modules])
    names = [path.name.partition(".ko")[0] for path in ordered]
    mounts = "\n".join(
        f"/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 share{number} {path}"
        for number, path in enumerate(shares)
    )
    if near:
        mounts += "\n/busybox mount -t overlay -o lowerdir=/near:/usr near /usr"
    script = (
        _INIT.replace("@MODULES@", " ".join(names))
        .replace("@MKDIRS@", " ".join([EXCHANGE, *map(str, shares)]))
        .replace("@MOUNTS@", mounts)
        .replace("@EXCHANGE@", EXCHANGE)
        .replace("@PORT@", "0p1")
    )
    archive = Archive()
    archive.add_file("init", script.encode(), mode=0o755)
    archive.add_file("busybox", BUSYBOX.read_bytes(), mode=0o755)
    archive.add_file("modprobe", render_modprobe(kernel.loader).encode(), mode=0o755)
    archive.add_directory("modules")
    for name, path in zip(names, ordered, strict=True):
        archive.add_file(f"modules/{name}.ko", read_module(path))
    archive.add_directory("near")
    for parent in sorted({str(parent) for name in near for parent in Path(name).parents} - {"."}):
        archive.add_directory(f"near/{parent}")
    for name, source in near.items():
        if isinstance(source, str):
            archive.add_link(f"near/{name}", source)
        else:
            archive.add_file(f"near/{name}", source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode))
    archive.add_directory("etc")
    for name, text in _etc_files().items():
        archive.add_file(f"etc/{name}", text)
    _add_settings(archive)
    for name in _PROGRAM_DIRECTORIES:
        if Path("/usr", name).is_dir():
            archive.add_link(name, f"usr/{name}")
    return archive.finish()


def _add_settings(archive: Archive, place: Path = Path("/etc")) -> None:
    """Add what programs of this machine read below /etc, which they have below /usr alone in a guest."""
    found = [place / name for name in _SETTINGS if (place / name).exists()]
    paths = {path for top in found for path in (top, *(top.rglob("*") if top.is_dir() else ()))}
    paths |= {parent for path in paths for parent in path.parents if place in parent.parents}
    for path in sorted(paths):
        name = f"etc/{path.relative_to(place)}"
        if path.is_symlink():
            archive.add_link(name, str(path.readlink()))
        elif path.is_dir():
            archive.add_directory(name)
        elif path.is_file():
            archive.add_file(name, path.read_bytes(), mode=stat.S_IMODE(path.stat().st_mode))


def _etc_files() -> dict[str, bytes]:
    files = {
        "passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        "group": b"root:x:0:\nnogroup:x:65534:\n",
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "hosts": b"127.0.0.1 localhost\n::1 localhost\n",
        "hostname": b"guest\n",
        "resolv.conf": b"# no resolver\n",
    }
    cache = Path("/etc/ld.so.cache")
    if cache.exists():  # otherwise the guest does not find libraries in processor-specific directories
        files["ld.so.cache"] = cache.read_bytes()
    return files
