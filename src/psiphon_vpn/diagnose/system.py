# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The only access of the checks to the machine: a Protocol of reads, and its implementation.

Nothing here changes anything. Every command has a time limit, every file a size limit, and only ordinary files are
opened, so that a FIFO in a file's place blocks nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from psiphon_vpn import accounts
from psiphon_vpn.run import CommandError, run

if TYPE_CHECKING:
    from psiphon_vpn.config import Settings
    from psiphon_vpn.diagnose.network import Network
    from psiphon_vpn.linux.features import Features
    from psiphon_vpn.linux.reading import Reading
    from psiphon_vpn.policy.ruleset import Table

COMMAND_SECONDS: Final = 5.0
SERVICE_SECONDS: Final = 2.0
RESOLVER_SECONDS: Final = 1.5
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_PIECE: Final = 64 * 1024
MAX_HASHED_BYTES: Final = 512 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a command.

    Attributes:
        code: its exit code; None if it did not start (not installed) or took too long.
        trouble: why it has no code, translated; empty otherwise.
    """

    code: int | None
    out: str = ""
    err: str = ""
    trouble: str = ""

    @property
    def good(self) -> bool:
        """Whether it ended with 0."""
        return self.code == 0


@dataclass(frozen=True, kw_only=True)
class Service:
    """The daemon's status, and the process that answered (SO_PEERCRED)."""

    status: dict[str, Any]
    pid: int
    uid: int


class System(Protocol):
    """Reads of the machine. Anything unreadable raises OSError; `ask_service` raises UserError."""

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_SECONDS) -> Answer:
        """Run a command that only reads. Never raises."""

    def read(self, path: Path) -> bytes:
        """An ordinary file, whole."""

    def read_head(self, path: Path, size: int) -> bytes:
        """The first bytes of an ordinary file."""

    def hash(self, path: Path) -> str:
        """SHA-256 of an ordinary file, hexadecimal."""

    def stat(self, path: Path, *, follow: bool = False) -> os.stat_result:
        """Status of a file; of a link itself unless `follow`."""

    def read_link(self, path: Path) -> str:
        """Where a link leads: readlink(2)."""

    def list_directory(self, path: Path) -> tuple[str, ...]:
        """Names in a directory, sorted."""

    def read_space(self, path: Path) -> os.statvfs_result:
        """Free space of a file system: statvfs(3)."""

    def find_user(self, name: str) -> accounts.User | None:
        """A user; None if there is none."""

    def find_group(self, name: str) -> int | None:
        """A group's number."""

    def find_network_managers(self) -> tuple[int, ...]:
        """Numbers of the users that may send DHCP."""

    def parse_settings(self, content: bytes, path: Path) -> Settings:
        """The settings of a configuration's content; raises UserError if it is not usable."""

    def read_network(self) -> Network:
        """Links, addresses, rules and routes."""

    def read_features(self) -> Features:
        """The features of kernel and nft."""

    def read_references(self, tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
        """How nft prints the service's tables on this machine."""

    def ask_service(self, runtime_dir: Path) -> Service:
        """The daemon's status."""

    def ask_resolver(self) -> bool:
        """Whether the resolver in the tunnel answers the service's own question."""

    def read_time(self) -> float:
        """Seconds since the epoch."""

    def read_machine(self) -> str:
        """The processor's architecture as uname(2) names it."""


class RealSystem:
    """The machine itself; the network namespace is that of the calling thread."""

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_SECONDS) -> Answer:
        """Run a command that only reads. Never raises."""
        try:
            done = run(argv, ok=range(-64, 256), timeout=timeout)
        except CommandError as error:
            return Answer(code=None, err=error.stderr, trouble=error.why)
        return Answer(code=done.returncode, out=done.stdout, err=done.stderr)

    def read(self, path: Path) -> bytes:
        """An ordinary file, whole. Raises OSError for anything else and for a file that is too large."""
        # In pieces: the files of /proc/sys refuse a buffer of megabytes.
        data = bytearray()
        with _open_ordinary(path) as file:
            while chunk := file.read(_PIECE):
                data += chunk
                if len(data) > MAX_FILE_BYTES:
                    raise OSError(27, "File too large", str(path))
        return bytes(data)

    def read_head(self, path: Path, size: int) -> bytes:
        """The first bytes of an ordinary file."""
        with _open_ordinary(path) as file:
            head: bytes = file.read(size)
        return head

    def hash(self, path: Path) -> str:
        """SHA-256 of an ordinary file, hexadecimal."""
        digest, taken = hashlib.sha256(), 0
        with _open_ordinary(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                taken += len(chunk)
                if taken > MAX_HASHED_BYTES:
                    raise OSError(27, "File too large", str(path))
        return digest.hexdigest()

    def stat(self, path: Path, *, follow: bool = False) -> os.stat_result:
        """Status of a file; of a link itself unless `follow`."""
        return os.stat(path, follow_symlinks=follow)

    def read_link(self, path: Path) -> str:
        """Where a link leads: readlink(2)."""
        return os.readlink(path)

    def list_directory(self, path: Path) -> tuple[str, ...]:
        """Names in a directory, sorted."""
        return tuple(sorted(os.listdir(path)))

    def read_space(self, path: Path) -> os.statvfs_result:
        """Free space of a file system: statvfs(3)."""
        return os.statvfs(path)

    def find_user(self, name: str) -> accounts.User | None:
        """A user; None if there is none."""
        return accounts.find_user(name)

    def find_group(self, name: str) -> int | None:
        """A group's number."""
        return accounts.find_group(name)

    def find_network_managers(self) -> tuple[int, ...]:
        """Numbers of the users that may send DHCP."""
        from psiphon_vpn.linux.identity import find_network_managers

        return find_network_managers()

    def parse_settings(self, content: bytes, path: Path) -> Settings:
        """The settings of a configuration's content. psiphon-user could have written it: not parsed as root."""
        from psiphon_vpn.editing.requests import read_settings

        return read_settings(content, path=path)

    def read_network(self) -> Network:
        """Links, addresses, rules and routes."""
        from psiphon_vpn.diagnose import network

        return network.read_network()

    def read_features(self) -> Features:
        """The features of kernel and nft."""
        from psiphon_vpn.diagnose import network

        return network.read_features()

    def read_references(self, tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
        """How nft prints the service's tables on this machine."""
        from psiphon_vpn.diagnose import network

        return network.read_references(tables, links)

    def ask_service(self, runtime_dir: Path) -> Service:
        """The daemon's status. Raises UserError."""
        from psiphon_vpn import client

        status = client.request_status(runtime_dir, timeout=SERVICE_SECONDS)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SERVICE_SECONDS)
            connection.connect(str(runtime_dir / client.SOCKET_NAME))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", credentials)
        return Service(status=dict(status), pid=pid, uid=uid)

    def ask_resolver(self) -> bool:
        """Whether the resolver in the tunnel answers the service's own question."""
        from psiphon_vpn.linux.resolver_probe import ask
        from psiphon_vpn.policy import names

        return asyncio.run(
            ask(names.RESOLVER_IPV4, source=names.TUN_IPV4, device=names.TUN_NAME, seconds=RESOLVER_SECONDS)
        )

    def read_time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def read_machine(self) -> str:
        """The processor's architecture as uname(2) names it."""
        return os.uname().machine


def _open_ordinary(path: Path) -> Any:
    # Check it before opening, by a descriptor that opens nothing (O_PATH, open(2)): psiphon-user can put a link to a
    # device in the place of one of its files, and opening a watchdog, for example, restarts the machine.
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(22, "Not an ordinary file", str(path))
        return os.fdopen(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC), "rb")
    finally:
        os.close(place)
