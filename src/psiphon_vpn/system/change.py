# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One change that an installation makes to a system: a frozen value that can describe, apply and undo itself.

Applying and undoing are idempotent, since either may be repeated after a crash. The value includes the previous state:
`observe` fills it in, and the journal has it on disk before `apply` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from psiphon_vpn.system.platform import Platform


@dataclass(frozen=True, kw_only=True)
class Previous:
    """What was at a path before the installation.

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


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change. `KINDS` lists the subclasses by `kind`, the word in the journal."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """Identifies the thing that is changed: two changes of the same thing have the same key."""
        raise NotImplementedError

    def describe(self) -> str | None:
        """A shell command that would do the same; None if `apply` does nothing."""
        raise NotImplementedError

    def describe_undo(self) -> str | None:
        """A shell command that would do the same as `undo`; None if that does nothing."""
        raise NotImplementedError

    def observe(self, platform: Platform) -> Self:
        """The change, completed with the previous state."""
        raise NotImplementedError

    def is_applied(self, platform: Platform) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def apply(self, platform: Platform) -> None:
        """Make the change."""
        raise NotImplementedError

    def undo(self, platform: Platform) -> None:
        """Restore the previous state."""
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


def locate(platform: Platform, path: str) -> Path:
    """A path of the target system, below the layout's root."""
    return platform.layout.root / path.lstrip("/")
