# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of an installed core: record.json beside it, owned by root, so that psiphon-user cannot change it."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from psiphon_vpn.core.manifest import MAX_CORE_SIZE, SHA256
from psiphon_vpn.stored_files import parse_object, take, take_or_none
from psiphon_vpn.versions import OwnerError, read_owned

RECORD_NAME: Final = "record.json"
BINARY_NAME: Final = "psiphon-tunnel-core"
MAX_RECORD_SIZE: Final = 64 * 1024


class RecordError(ValueError):
    """The record cannot be used. The text is the reason, in English."""


@dataclass(frozen=True, kw_only=True)
class CoreRecord:
    """What is known about one installed core.

    Attributes:
        sha256: SHA-256 of the binary, computed from the verified copy; checked before every start.
        size: bytes.
        blob: git blob id of the content.
        architecture: as uname(2) names it.
        revision: revision of the core's source; None for a core that is not in the manifest.
        commit: commit of the distribution's repository; None likewise.
        order: its order in the manifest, larger is newer; None likewise.
        source: where it came from: an address without credentials, or a path.
        installed_at: UTC, ISO 8601.
    """

    sha256: str
    size: int
    blob: str
    architecture: str
    revision: str | None = None
    commit: str | None = None
    order: int | None = None
    source: str
    installed_at: str


def render_record(record: CoreRecord) -> bytes:
    """The record as indented JSON."""
    fields = asdict(record)
    # A path may contain bytes that are not valid text (os.fsdecode); they are shown as escapes.
    fields["source"] = record.source.encode(errors="backslashreplace").decode()
    return (json.dumps(fields, indent=2) + "\n").encode()


def parse_record(content: bytes) -> CoreRecord:
    """Read a record; raises RecordError if it is not a valid one. Fields of later versions are ignored."""
    try:
        fields = parse_object(content)
        record = CoreRecord(
            sha256=take(fields, "sha256", str),
            size=take(fields, "size", int),
            blob=take(fields, "blob", str),
            architecture=take(fields, "architecture", str),
            revision=take_or_none(fields, "revision", str),
            commit=take_or_none(fields, "commit", str),
            order=take_or_none(fields, "order", int),
            source=take(fields, "source", str),
            installed_at=take(fields, "installed_at", str),
        )
        datetime.fromisoformat(record.installed_at).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RecordError(str(error)) from error
    if not SHA256.fullmatch(record.sha256):
        raise RecordError("sha256 is malformed")
    if not 0 <= record.size <= MAX_CORE_SIZE:
        raise RecordError("size is out of range")
    return record


def read_record(directory: int, *, owner: int = 0) -> CoreRecord:
    """Read the record in an open directory, if nobody but `owner` can have written it.

    Args:
        directory: descriptor of the core's own directory.
        owner: uid that must own both: root, except in tests without root.

    Raises:
        FileNotFoundError: there is no record.
        RecordError: it cannot be trusted or read.
    """
    try:
        return parse_record(read_owned(RECORD_NAME, directory=directory, owner=owner, high=MAX_RECORD_SIZE))
    except OwnerError as error:
        raise RecordError(str(error)) from error
