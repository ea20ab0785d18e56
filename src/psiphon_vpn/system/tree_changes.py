# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of files and directories. A symbolic link in a file's place is replaced and recorded, never followed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shlex
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from psiphon_vpn.system.change import Change, Previous, locate
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.tree_removal import remove_tree


def look_at(path: Path) -> Previous | None:
    """What is at a path; a symbolic link is not followed."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        return Previous(mode=mode, uid=found.st_uid, gid=found.st_gid, target=str(path.readlink()))
    content = base64.b64encode(path.read_bytes()).decode("ascii") if stat.S_ISREG(found.st_mode) else None
    return Previous(mode=mode, uid=found.st_uid, gid=found.st_gid, content=content)


def name_temporary(path: Path) -> Path:
    """The name under which a file is written before it gets its own."""
    return path.with_name(f".{path.name}.psiphon-new")


def write_file(path: Path, content: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Write a file atomically; it has its owner and mode as soon as it has its name.

    Raises:
        OSError: it cannot be written; the previous file is unchanged.
    """
    temporary = name_temporary(path)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole directory. A link is not followed."""
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return  # checked first: on a read-only file system, removing fails even for an absent file
    if is_directory:
        remove_tree(path)
    else:
        path.unlink()


def put_back(path: Path, before: Previous) -> None:
    """Put back a file or a link that `look_at` found; does nothing for a directory."""
    if before.target is not None:
        remove_path(path)
        path.symlink_to(before.target)
        os.lchown(path, before.uid, before.gid)
    elif before.content is not None:
        write_file(path, base64.b64decode(before.content), mode=before.mode, uid=before.uid, gid=before.gid)


@dataclass(frozen=True, kw_only=True)
class FileWritten(Change):
    """A file with its content, mode and owner. Absolute path on the target, below `platform.layout.root`."""

    kind: ClassVar[str] = "file"
    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    sha256: str = ""
    kept: bool = False
    """Belongs to the user once it exists: written only if there is none."""
    previous: Previous | None = None
    content: bytes = field(default=b"", repr=False, compare=False)

    @property
    def key(self) -> str:
        """The path."""
        return self.path

    def describe(self) -> str:
        """install(1)."""
        owner = "" if (self.uid, self.gid) == (0, 0) else f" -o {self.uid} -g {self.gid}"
        return f"install -m {self.mode:04o}{owner} /dev/stdin {shlex.quote(self.path)}"

    def describe_undo(self) -> str:
        """rm(1), or putting back."""
        path = shlex.quote(self.path)
        return f"rm -f {path}" if self.previous is None else f"install /dev/stdin {path} # as it was before"

    def observe(self, platform: Platform) -> Self:
        """Note what is there, except this very file: it comes from an installation without a record."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        found = look_at(locate(platform, self.path))
        is_ours = found is not None and found.content == base64.b64encode(self.content).decode("ascii")
        return replace(self, previous=None if is_ours else found, sha256=sha256)

    def is_applied(self, platform: Platform) -> bool:
        """Whether the file is there with this content, mode and owner."""
        path = locate(platform, self.path)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(found.st_mode) or name_temporary(path).exists():
            return False
        if self.kept:
            return True
        same = (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (self.mode, self.uid, self.gid)
        return same and path.read_bytes() == self.content

    def apply(self, platform: Platform) -> None:
        """Replace the file."""
        if self.kept and look_at(locate(platform, self.path)) is not None:
            name_temporary(locate(platform, self.path)).unlink(missing_ok=True)
            return
        write_file(locate(platform, self.path), self.content, mode=self.mode, uid=self.uid, gid=self.gid)

    def undo(self, platform: Platform) -> None:
        """Put the old file or link back, or remove this one."""
        path = locate(platform, self.path)
        before = self.previous
        remove_path(name_temporary(path))
        if before is None:
            remove_path(path)
        elif look_at(path) != before:
            put_back(path, before)


@dataclass(frozen=True, kw_only=True)
class DirectoryMade(Change):
    """A directory of the installation. Undoing removes it with all its content, unless it existed before."""

    kind: ClassVar[str] = "directory"
    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    shared: bool = False
    """Shared with others, such as a drop-in directory: mode and owner stay, and it is removed only if empty."""
    previous: Previous | None = None

    @property
    def key(self) -> str:
        """The path."""
        return self.path

    def describe(self) -> str:
        """install(1)."""
        owner = "" if (self.uid, self.gid) == (0, 0) else f" -o {self.uid} -g {self.gid}"
        return f"install -d -m {self.mode:04o}{owner} {shlex.quote(self.path)}"

    def describe_undo(self) -> str | None:
        """rmdir(1) or rm(1)."""
        if self.previous is not None:
            return None
        return f"{'rmdir' if self.shared else 'rm -r'} {shlex.quote(self.path)}"

    def observe(self, platform: Platform) -> Self:
        """Note mode and owner of an existing one."""
        return replace(self, previous=look_at(locate(platform, self.path)))

    def is_applied(self, platform: Platform) -> bool:
        """Whether it exists with this mode and owner."""
        path = locate(platform, self.path)
        if not path.is_dir():
            return False
        if self.shared:
            return True
        found = path.lstat()
        return stat.S_ISDIR(found.st_mode) and (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (
            self.mode,
            self.uid,
            self.gid,
        )

    def apply(self, platform: Platform) -> None:
        """Make it. A link in its place is an error: files below it would be written elsewhere."""
        path = locate(platform, self.path)
        if not path.is_dir() or (path.is_symlink() and not self.shared):
            path.mkdir()
        if not self.shared or not self.previous:
            os.chown(path, self.uid, self.gid)
            path.chmod(self.mode)

    def undo(self, platform: Platform) -> None:
        """Remove it, or restore its mode and owner."""
        path = locate(platform, self.path)
        before = self.previous
        if before is not None:
            if not self.shared and path.is_dir() and not path.is_symlink():
                os.chown(path, before.uid, before.gid)
                path.chmod(before.mode)
        elif self.shared:
            with contextlib.suppress(OSError):  # it contains other programs' files
                path.rmdir()
        else:
            remove_path(path)
