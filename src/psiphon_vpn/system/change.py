"""One change that installation makes to a system: a frozen value that can describe, apply and undo itself.

Each is idempotent in both directions, since either may be done again after a crash. What was there before is part of
the value: `observe` fills it in, and the journal has it on disk before `apply` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from psiphon_vpn.system.platform import Platform


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

    def observe(self, platform: Platform) -> Self:
        """The change with what was there before."""
        raise NotImplementedError

    def is_applied(self, platform: Platform) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def apply(self, platform: Platform) -> None:
        """Do it."""
        raise NotImplementedError

    def undo(self, platform: Platform) -> None:
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


def locate(platform: Platform, path: str) -> Path:
    """Where a path of the target is, seen from here."""
    return platform.layout.root / path.lstrip("/")
