"""The guest's first file system: a busybox, the kernel's modules, and a script that waits for work.

There is no disk. Programs come from this machine's own directories, which the guest sees read-only by 9p
(the kernel's Documentation/filesystems/9p.rst), so that nothing has to be built or installed for it.
"""

from __future__ import annotations

import gzip
import io
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from psiphon_lab.guest.kernels import Kernel, read_module

BUSYBOX: Final = Path("/bin/busybox")
EXCHANGE: Final = "/exchange"
"""Where guest and laboratory leave files for each other."""
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
_PROGRAM_DIRECTORIES = ("bin", "sbin", "lib", "lib64")

# The loop reads a number, runs the script of that name beside the others, and answers with the number and its code.
_INIT = """#!/busybox sh
/busybox mkdir -p /proc /sys /dev /run /tmp /var/lib /root @MKDIRS@
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


def build_image(kernel: Kernel, modules: Iterable[str], shares: Sequence[Path]) -> bytes:
    """The image (cpio(5) "newc", gzipped) of a guest.

    Args:
        kernel: what runs it.
        modules: names of modules beyond those of the guest's own devices.
        shares: directories of this machine to mount, read-only, where they are here; the n-th by the tag "share<n>".
    """
    ordered = kernel.order_modules([*(name for name in BASE_MODULES if name in kernel.modules), *modules])
    names = [path.name.partition(".ko")[0] for path in ordered]
    mounts = "\n".join(
        f"/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 share{number} {path}"
        for number, path in enumerate(shares)
    )
    script = (
        _INIT.replace("@MODULES@", " ".join(names))
        .replace("@MKDIRS@", " ".join([EXCHANGE, *map(str, shares)]))
        .replace("@MOUNTS@", mounts)
        .replace("@EXCHANGE@", EXCHANGE)
        .replace("@PORT@", "0p1")
    )
    archive = _Archive()
    archive.add_file("init", script.encode(), mode=0o755)
    archive.add_file("busybox", BUSYBOX.read_bytes(), mode=0o755)
    archive.add_directory("modules")
    for name, path in zip(names, ordered, strict=True):
        archive.add_file(f"modules/{name}.ko", read_module(path))
    archive.add_directory("etc")
    for name, text in _etc_files().items():
        archive.add_file(f"etc/{name}", text)
    for name in _PROGRAM_DIRECTORIES:
        if Path("/usr", name).is_dir():
            archive.add_link(name, f"usr/{name}")
    return archive.finish()


def _etc_files() -> dict[str, bytes]:
    files = {
        "passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        "group": b"root:x:0:\nnogroup:x:65534:\n",
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "hosts": b"127.0.0.1 localhost\n::1 localhost\n",
        "hostname": b"guest\n",
    }
    cache = Path("/etc/ld.so.cache")
    if cache.exists():  # or the guest would not find what is in directories of a processor's own
        files["ld.so.cache"] = cache.read_bytes()
    return files


class _Archive:
    """A cpio archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._stream = io.BytesIO()
        self._inode = 0

    def _add(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (head, data):
            self._stream.write(part + b"\0" * (-len(part) % 4))

    def add_file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | mode, data)

    def add_directory(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_link(self, name: str, target: str) -> None:
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(self._stream.getvalue(), compresslevel=1)
