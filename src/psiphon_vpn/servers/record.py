# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a stored list: record.json beside it, owned by root."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Final

from psiphon_vpn.servers.profile import NAME
from psiphon_vpn.servers.signed_list import MAX_INFLATED
from psiphon_vpn.stored_files import parse_object, take
from psiphon_vpn.versions import SHA256

RECORD_NAME: Final = "record.json"
LIST_NAME: Final = "list"
"""The signed list, byte for byte."""
ENTRIES_NAME: Final = "entries"
"""Server entries that nobody has signed."""
MAX_RECORD_SIZE: Final = 256 * 1024
MAX_SEEN: Final = 500
"""Earlier lists that a record remembers."""


class ListRecordError(ValueError):
    """The record cannot be used. The text is the reason, in English."""


@dataclass(frozen=True, kw_only=True)
class ListRecord:
    """What is known about one stored list.

    Attributes:
        sha256: SHA-256 of the file.
        data_sha256: SHA-256 of the signed bytes in it, by which a list is recognised, however it is packed.
        size: bytes.
        profile: name of the profile whose key has signed it; empty for entries that nobody has signed.
        signed: whether it is a signed list.
        entries: servers in it.
        by_region: servers by country; servers without a region are left out.
        by_protocol: servers by protocol of the core.
        source: where it came from: an address without credentials, or a path.
        fetched_at: when it was last received, UTC, ISO 8601.
        seen: `data_sha256` of the lists that were in use before, newest first.
    """

    sha256: str
    data_sha256: str
    size: int
    profile: str
    signed: bool
    entries: int
    by_region: Mapping[str, int]
    by_protocol: Mapping[str, int]
    source: str
    fetched_at: str
    seen: tuple[str, ...] = field(default=(), repr=False)

    @property
    def file_name(self) -> str:
        """Name of the file beside the record."""
        return LIST_NAME if self.signed else ENTRIES_NAME


def render_record(record: ListRecord) -> bytes:
    """The record as indented JSON."""
    fields = asdict(record)
    # A path may contain bytes that are not valid text (os.fsdecode); they are shown as escapes.
    fields["source"] = record.source.encode(errors="backslashreplace").decode()
    return (json.dumps(fields, indent=2) + "\n").encode()


def parse_record(content: bytes) -> ListRecord:
    """Read a record; raises ListRecordError if it is not a valid one. Fields of later versions are ignored."""
    try:
        fields = parse_object(content)
        seen = fields.get("seen", [])
        record = ListRecord(
            sha256=take(fields, "sha256", str),
            data_sha256=take(fields, "data_sha256", str),
            size=take(fields, "size", int),
            profile=take(fields, "profile", str),
            signed=take(fields, "signed", bool),
            entries=take(fields, "entries", int),
            by_region=_take_counts(fields, "by_region"),
            by_protocol=_take_counts(fields, "by_protocol"),
            source=take(fields, "source", str),
            fetched_at=take(fields, "fetched_at", str),
            seen=tuple(name for name in (seen if isinstance(seen, list) else ()) if isinstance(name, str))[:MAX_SEEN],
        )
        datetime.fromisoformat(record.fetched_at).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ListRecordError(str(error)) from error
    if not SHA256.fullmatch(record.sha256) or not all(
        SHA256.fullmatch(name) for name in (record.data_sha256, *record.seen)
    ):
        raise ListRecordError("sha256 is malformed")
    if not 0 < record.size <= MAX_INFLATED or record.entries < 1:
        raise ListRecordError("size or entries is out of range")
    if not (NAME.fullmatch(record.profile) if record.signed else record.profile == ""):
        raise ListRecordError("profile is malformed")
    return record


def _take_counts(fields: Mapping[str, object], name: str) -> dict[str, int]:
    found = take(fields, name, dict)
    if not all(isinstance(key, str) and key.isascii() and type(count) is int for key, count in found.items()):
        raise ListRecordError(f"{name} is malformed")
    return found
