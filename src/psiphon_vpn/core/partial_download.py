# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A partial download that can be resumed, also by a later run."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from psiphon_vpn.stored_files import StoredError, parse_object, read_stored, take_or_none
from psiphon_vpn.system.tree_changes import remove_path

MAX_NOTE: Final = 64 * 1024


@dataclass(kw_only=True)
class PartialDownload:
    """The bytes so far, and the validator with which the server can tell that the file is unchanged."""

    path: Path
    url: str
    validator: str | None = None

    @property
    def note(self) -> Path:
        """Path of the file with the validator."""
        return self.path.with_suffix(".json")

    @classmethod
    def find(cls, directory: Path, url: str) -> PartialDownload:
        """The partial download of this address; those of other addresses are removed."""
        path = directory / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.part"
        found = cls(path=path, url=url)
        for other in directory.iterdir():
            if other not in {path, found.note}:
                remove_path(other)
        with contextlib.suppress(OSError, StoredError):
            found.validator = take_or_none(parse_object(read_stored(found.note, high=MAX_NOTE)), "validator", str)
        if found.validator is None:
            path.unlink(missing_ok=True)
        return found

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, response: httpx.Response) -> None:
        """Start from the first byte. Only a strong validator proves that bytes are the same (RFC 9110, 13.1.5)."""
        tag = response.headers.get("etag", "")
        strong = tag if tag.startswith('"') else response.headers.get("last-modified")
        self.validator = strong
        self.path.write_bytes(b"")
        self.path.chmod(0o600)
        self.note.write_text(json.dumps({"validator": strong}))

    def discard(self) -> None:
        """Start from the first byte the next time."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.validator = None
