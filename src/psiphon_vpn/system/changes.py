"""The changes that installation makes to a system: frozen values that can describe, apply and undo themselves.

Each is idempotent in both directions, since either may be done again after a crash. What was there before is part of
the value: `observe` fills it in, and the journal has it on disk before `apply` is called.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from psiphon_vpn.system.edges import Edges
from psiphon_vpn.system.layout import GROUP, KILLSWITCH_UNIT, USER

FILE_MODE = 0o7777


@dataclass(frozen=True, kw_only=True)
class Previous:
    """What stood at a path before us.

    Attributes:
        mode: permission bits.
        uid: owner.
        gid: group.
        content: of a file, base64; None for a directory or a link.
        target: of a symbolic link.
    """

    mode: int
    uid: int
    gid: int
    content: str | None = None
    target: str | None = None


def look_at(path: Path) -> Previous | None:
    """What stands at a path; a symbolic link is not followed."""
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
    """Under which name a file is written before it gets its own."""
    return path.with_name(f".{path.name}.psiphon-new")


def write_file(path: Path, content: bytes, *, mode: int, uid: int, gid: int) -> None:
    """Write a file, whole or not at all, with its owner and mode from the first moment at which it has its name.

    Raises:
        OSError: it cannot be written; what stood there stands there still.
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
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        return
    shutil.rmtree(path)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change. Subclasses are registered by `kind`, under which the journal stores them."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """What is changed: the same for two changes of the same thing."""
        raise NotImplementedError

    def describe(self) -> str | None:
        """A command of a shell that would do the same, None where `apply` does nothing."""
        raise NotImplementedError

    def describe_undo(self) -> str | None:
        """The same for `undo`."""
        raise NotImplementedError

    def observe(self, edges: Edges) -> Self:
        """The change with what was there before."""
        raise NotImplementedError

    def is_applied(self, edges: Edges) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def apply(self, edges: Edges) -> None:
        """Do it."""
        raise NotImplementedError

    def undo(self, edges: Edges) -> None:
        """Put back what was there before."""
        raise NotImplementedError

    def store(self) -> dict[str, Any]:
        """The change as JSON."""
        stored: dict[str, Any] = {"kind": self.kind}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "content":
                continue
            stored[item.name] = (
                {part.name: getattr(value, part.name) for part in fields(value)}
                if isinstance(value, Previous)
                else value
            )
        return stored


@dataclass(frozen=True, kw_only=True)
class FileWritten(Change):
    """A file with its content, mode and owner. Absolute path on the target, below `edges.layout.root`."""

    kind: ClassVar[str] = "file"
    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    sha256: str = ""
    kept: bool = False
    """The user's from then on: written only where there is none."""
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

    def observe(self, edges: Edges) -> Self:
        """Keep what stands there."""
        return replace(
            self,
            previous=look_at(_at(edges, self.path)),
            sha256=hashlib.sha256(self.content).hexdigest(),
        )

    def is_applied(self, edges: Edges) -> bool:
        """Whether the file is there with this content, mode and owner."""
        path = _at(edges, self.path)
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

    def apply(self, edges: Edges) -> None:
        """Replace the file."""
        if self.kept and look_at(_at(edges, self.path)) is not None:
            name_temporary(_at(edges, self.path)).unlink(missing_ok=True)
            return
        write_file(_at(edges, self.path), self.content, mode=self.mode, uid=self.uid, gid=self.gid)

    def undo(self, edges: Edges) -> None:
        """Put the old file or link back, or remove ours."""
        path = _at(edges, self.path)
        before = self.previous
        if path.parent.is_dir():
            name_temporary(path).unlink(missing_ok=True)
        if before is None:
            remove_path(path)
        elif before.target is not None:
            remove_path(path)
            path.symlink_to(before.target)
            os.lchown(path, before.uid, before.gid)
        elif before.content is not None:
            write_file(path, base64.b64decode(before.content), mode=before.mode, uid=before.uid, gid=before.gid)


@dataclass(frozen=True, kw_only=True)
class DirectoryMade(Change):
    """A directory of ours. Undoing removes it with all that is in it by then, unless it was there before."""

    kind: ClassVar[str] = "directory"
    path: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    shared: bool = False
    """Of others as well, such as a drop-in directory: mode and owner stay, and it is removed only when empty."""
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

    def observe(self, edges: Edges) -> Self:
        """Keep mode and owner of one that is there."""
        return replace(self, previous=look_at(_at(edges, self.path)))

    def is_applied(self, edges: Edges) -> bool:
        """Whether it is there with this mode and owner."""
        path = _at(edges, self.path)
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

    def apply(self, edges: Edges) -> None:
        """Make it. A link in its place is an error: what is written below would end elsewhere."""
        path = _at(edges, self.path)
        if not path.is_dir() or (path.is_symlink() and not self.shared):
            path.mkdir()
        if not self.shared or not self.previous:
            os.chown(path, self.uid, self.gid)
            path.chmod(self.mode)

    def undo(self, edges: Edges) -> None:
        """Remove it, or give it back its mode and owner."""
        path = _at(edges, self.path)
        before = self.previous
        if before is not None:
            if not self.shared and path.is_dir() and not path.is_symlink():
                os.chown(path, before.uid, before.gid)
                path.chmod(before.mode)
        elif self.shared:
            with contextlib.suppress(OSError):  # others have put something there
                path.rmdir()
        else:
            remove_path(path)


@dataclass(frozen=True, kw_only=True)
class AccountMade(Change):
    """The service's user and group, by systemd-sysusers."""

    kind: ClassVar[str] = "account"
    declaration: str
    had_user: bool = False
    had_group: bool = False

    @property
    def key(self) -> str:
        """There is one."""
        return "account"

    def describe(self) -> str:
        """systemd-sysusers(8)."""
        return f"systemd-sysusers {shlex.quote(self.declaration)}"

    def describe_undo(self) -> str | None:
        """userdel(8)."""
        words = [*([] if self.had_user else [f"userdel {USER}"]), *([] if self.had_group else [f"groupdel {GROUP}"])]
        return "; ".join(words) or None

    def observe(self, edges: Edges) -> Self:
        """Keep which of the two exists."""
        user, group = edges.accounts.list_existing()
        return replace(self, had_user=user, had_group=group)

    def is_applied(self, edges: Edges) -> bool:
        """Whether both exist."""
        return edges.accounts.find() is not None

    def apply(self, edges: Edges) -> None:
        """Make them."""
        edges.accounts.make(_at(edges, self.declaration))

    def undo(self, edges: Edges) -> None:
        """Remove those that did not exist."""
        edges.accounts.remove(user=not self.had_user, group=not self.had_group)


@dataclass(frozen=True, kw_only=True)
class SettingWritten(Change):
    """A kernel setting below /proc/sys."""

    kind: ClassVar[str] = "setting"
    name: str
    value: str
    previous: str | None = None
    """None where this kernel has no such setting."""

    @property
    def key(self) -> str:
        """Its name."""
        return self.name

    def describe(self) -> str:
        """sysctl(8)."""
        return f"sysctl -w {self.name.replace('/', '.')}={self.value}"

    def describe_undo(self) -> str | None:
        """sysctl(8)."""
        return None if self.previous is None else f"sysctl -w {self.name.replace('/', '.')}={self.previous}"

    def observe(self, edges: Edges) -> Self:
        """Keep the old value."""
        return replace(self, previous=edges.kernel.read_setting(self.name))

    def is_applied(self, edges: Edges) -> bool:
        """Whether it has the value."""
        return not edges.manager.is_running() or edges.kernel.read_setting(self.name) in {self.value, None}

    def apply(self, edges: Edges) -> None:
        """Write it."""
        edges.kernel.write_setting(self.name, self.value)

    def undo(self, edges: Edges) -> None:
        """Write the old value."""
        if self.previous is not None and edges.manager.is_running():
            edges.kernel.write_setting(self.name, self.previous)


@dataclass(frozen=True, kw_only=True)
class UnitStarted(Change):
    """A unit that runs."""

    kind: ClassVar[str] = "started"
    unit: str
    stays: bool = False
    """Undoing does not stop it: the network managers, which require it, would be stopped with it."""
    was_active: bool = False

    @property
    def key(self) -> str:
        """The unit."""
        return self.unit

    def describe(self) -> str:
        """systemctl(1)."""
        return f"systemctl start {self.unit}"

    def describe_undo(self) -> str | None:
        """systemctl(1)."""
        return None if self.was_active or self.stays else f"systemctl stop {self.unit}"

    def observe(self, edges: Edges) -> Self:
        """Keep whether it ran."""
        return replace(self, was_active=edges.manager.is_active(self.unit))

    def is_applied(self, edges: Edges) -> bool:
        """Whether it runs."""
        return not edges.manager.is_running() or edges.manager.is_active(self.unit)

    def apply(self, edges: Edges) -> None:
        """Start it."""
        edges.manager.start(self.unit)

    def undo(self, edges: Edges) -> None:
        """Stop it."""
        if not self.was_active and not self.stays:
            edges.manager.stop(self.unit)


class _Standing(Change):
    """Recorded before what it belongs to, so that its undoing comes after; applying it does nothing by itself."""

    @property
    def key(self) -> str:
        """There is one."""
        return self.kind

    def describe(self) -> str | None:
        """Nothing is done."""
        return None

    def observe(self, edges: Edges) -> Self:
        """There is nothing to keep."""
        return self

    def is_applied(self, edges: Edges) -> bool:
        """Always."""
        return True

    def apply(self, edges: Edges) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class TablesLoaded(_Standing):
    """Our tables in the kernel, whoever loads them: units and daemon do. Undoing it opens the machine.

    Recorded first of all, so that it is undone last of all.
    """

    kind: ClassVar[str] = "tables"

    def describe_undo(self) -> str:
        """In short."""
        return "nft delete table ... # our tables: this opens"

    def undo(self, edges: Edges) -> None:
        """Open."""
        if edges.manager.is_running():
            edges.kernel.remove_tables()


@dataclass(frozen=True, kw_only=True)
class WaysMade(_Standing):
    """The TUN, the routing rules and the routing table, which the daemon makes."""

    kind: ClassVar[str] = "ways"

    def describe_undo(self) -> str:
        """In short."""
        return "ip link del PsiphonTUN; ip rule del ...; ip route flush table ... # ours"

    def undo(self, edges: Edges) -> None:
        """Remove them."""
        if edges.manager.is_running():
            edges.kernel.remove_ways()


@dataclass(frozen=True, kw_only=True)
class UnitsRead(_Standing):
    """Our unit files, as systemd has read them."""

    kind: ClassVar[str] = "units-read"

    def describe_undo(self) -> str:
        """In short."""
        return "systemctl daemon-reload"

    def undo(self, edges: Edges) -> None:
        """Let systemd forget them. Now nothing requires the boot lock's unit any more, and it may be stopped."""
        if not edges.manager.is_running():
            return
        edges.manager.reread()
        if not (edges.layout.unit_dir / KILLSWITCH_UNIT).exists():
            edges.manager.stop(KILLSWITCH_UNIT)


@dataclass(frozen=True, kw_only=True)
class ServiceReread(_Standing):
    """A service of others that reads files of ours: systemd-resolved, systemd-networkd, NetworkManager."""

    kind: ClassVar[str] = "reread"
    unit: str
    verb: str
    """"restart" or "reload": what makes it read them."""

    @property
    def key(self) -> str:
        """The unit."""
        return self.unit

    def describe_undo(self) -> str:
        """systemctl(1)."""
        return f"systemctl try-{self.verb} {self.unit}".replace("try-reload", "reload")

    def undo(self, edges: Edges) -> None:
        """Let it forget, if it runs."""
        reread(edges, self)


def reread(edges: Edges, service: ServiceReread) -> None:
    """Let a service of others read its files again, if it runs."""
    if edges.manager.is_running() and edges.manager.is_active(service.unit):
        (edges.manager.reload if service.verb == "reload" else edges.manager.restart)(service.unit)


KINDS: Mapping[str, type[Change]] = {
    kind.kind: kind
    for kind in (
        FileWritten,
        DirectoryMade,
        AccountMade,
        SettingWritten,
        UnitStarted,
        TablesLoaded,
        WaysMade,
        UnitsRead,
        ServiceReread,
    )
}


def restore_change(stored: Mapping[str, Any]) -> Change:
    """The change that `store` made this of.

    Raises:
        ValueError: it is none.
    """
    values = dict(stored)
    kind = KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise ValueError("an unknown kind of change")
    if isinstance(values.get("previous"), dict):
        values["previous"] = Previous(**values["previous"])
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _at(edges: Edges, path: str) -> Path:
    return edges.layout.root / path.lstrip("/")
