# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The image that is started: a sealed copy of the core in memory, with the recorded SHA-256.

The binary belongs to psiphon-user (R12), which can therefore write to it at any time, even between a check and a start.
So the file itself is never started. It is copied into memory, the copy is sealed (memfd_create(2), F_SEAL_WRITE in
fcntl(2): nobody can change it any more, not even root), the sealed copy is hashed, and that copy is executed. No result
is kept from one start to the next: times and inode numbers prove nothing against the file's owner.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.manifest import MAX_CORE_SIZE
from psiphon_vpn.core.record import BINARY_NAME, CoreRecord, RecordError, read_record
from psiphon_vpn.i18n import _
from psiphon_vpn.versions import OwnerError, check_owner

# Since Linux 6.3, with vm.memfd_noexec=1, memory files cannot be executed without it. Not yet in Python's os.
_MFD_EXEC: Final = 0x10
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GivenCore:
    """A core that the caller vouches for, like the laboratory: a path, and the required SHA-256."""

    binary: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RecordedCore:
    """The installed core: its record, and the binary beside it.

    Attributes:
        record: path of record.json; its directory and the one above belong to root.
        owner: uid that must own record and directories: root, except in tests without root.
    """

    record: Path
    owner: int = 0

    @property
    def name_link(self) -> Path:
        """Path of the link that gives it its name (`naming.py`), beside the link to its directory."""
        return self.record.parent.with_name(BINARY_NAME)


CoreSource = GivenCore | RecordedCore


def _fail(flaw: CoreFlaw, why: str) -> CoreFlawError:
    steps = {
        CoreFlaw.NOT_INSTALLED: _("Bring a file that has it: sudo psiphon-vpn setup --bundle FILE"),
        CoreFlaw.SEALING: _("Set vm.memfd_noexec to 0 or 1 (sysctl), then: sudo psiphon-vpn restart"),
    }
    step = steps.get(flaw, _("Bring another: sudo psiphon-vpn setup --bundle FILE"))
    return CoreFlawError(flaw, _("The tunnel program is not started"), why, step)


def open_recorded(source: RecordedCore) -> tuple[CoreRecord, int]:
    """Open an installed core.

    Record and binary are opened in the same directory, so that an update in between cannot mix two cores.

    Returns:
        The record, and a descriptor of the binary, not yet checked against it.

    Raises:
        CoreFlawError: no core is installed, its record cannot be trusted, or the binary cannot be opened.
    """
    directory = source.record.parent
    try:
        check_owner(directory.parent.stat(), owner=source.owner, name=str(directory.parent))
        opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            record = read_record(opened, owner=source.owner)
            return record, _open_binary(BINARY_NAME, directory=opened)
        finally:
            os.close(opened)
    except FileNotFoundError as error:
        raise _fail(CoreFlaw.NOT_INSTALLED, _("none is installed")) from error
    except (OwnerError, RecordError) as error:
        why = _("its record cannot be trusted ({detail})").format(detail=error)
        raise _fail(CoreFlaw.BAD_RECORD, why) from error
    except OSError as error:
        raise _fail(CoreFlaw.BAD_RECORD, error.strerror or str(error)) from error


def _open_binary(path: str | Path, *, directory: int | None = None) -> int:
    try:
        descriptor = os.open(path, _OPEN_FLAGS, dir_fd=directory)
    except OSError as error:
        why = _("its file cannot be read: {cause}").format(cause=error.strerror or error)
        raise _fail(CoreFlaw.UNREADABLE, why) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
        return descriptor
    os.close(descriptor)
    raise _fail(CoreFlaw.UNREADABLE, _("its file is no program"))


def hash_descriptor(descriptor: int) -> str:
    """The SHA-256 of a whole open file, in hexadecimal."""
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def check_recorded(source: RecordedCore) -> CoreRecord:
    """Check an installed core against its record, without starting anything.

    Raises:
        CoreFlawError: like `seal_core`.
    """
    record, descriptor = open_recorded(source)
    try:
        _compare(hash_descriptor(descriptor), record.sha256)
    finally:
        os.close(descriptor)
    return record


def _compare(found: str, expected: str) -> None:
    if found != expected:
        why = _("its file was changed: the SHA-256 is {found}, and {expected} was recorded when it was installed")
        raise _fail(CoreFlaw.MISMATCH, why.format(found=found, expected=expected))


def seal_core(source: CoreSource) -> int:
    """Make the sealed copy that may be started. Takes about 50 ms for the real core: call it in a thread.

    Returns:
        A descriptor, open for reading and closed on exec. A process that inherits it can execute /proc/self/fd/N.

    Raises:
        CoreFlawError: the core differs from its record, or cannot be read or copied.
    """
    if isinstance(source, RecordedCore):
        record, binary = open_recorded(source)
        expected = record.sha256
    else:
        expected, binary = source.sha256, _open_binary(source.binary)
    try:
        image = _copy_into_memory(binary)
    except OSError as error:
        flaw = CoreFlaw.SEALING if error.errno in {errno.EACCES, errno.ENOSYS, errno.EPERM} else CoreFlaw.UNREADABLE
        raise _fail(flaw, error.strerror or str(error)) from error
    finally:
        os.close(binary)
    try:
        _compare(hash_descriptor(image), expected)
    except BaseException:
        os.close(image)
        raise
    return image


def _copy_into_memory(binary: int) -> int:
    size = os.fstat(binary).st_size
    if size > MAX_CORE_SIZE:
        raise _fail(CoreFlaw.TOO_LARGE, _("its file is too large"))
    writable = _make_memory_file()
    try:
        offset = 0
        while offset < size and (sent := os.sendfile(writable, binary, offset, size - offset)):
            offset += sent
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        # Opened again, for reading: a file that is open for writing cannot be executed (ETXTBSY, execve(2)).
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _make_memory_file() -> int:
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    try:
        return os.memfd_create(BINARY_NAME, flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(BINARY_NAME, flags)
