# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One file of an installation, as a value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PayloadFile:
    """One file of an installation, root:root.

    Attributes:
        path: absolute, on the target.
        content: of the file.
        mode: permission bits.
    """

    path: str
    content: bytes
    mode: int

    def describe(self) -> dict[str, str]:
        """The file's entry in the manifest."""
        return {
            "path": self.path,
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "mode": f"{self.mode:04o}",
            "owner": "root",
            "group": "root",
        }


def make_file(path: Path, content: bytes | str, mode: int = 0o644) -> PayloadFile:
    """A file of the payload, of bytes or of text."""
    return PayloadFile(path=str(path), content=content.encode() if isinstance(content, str) else content, mode=mode)
