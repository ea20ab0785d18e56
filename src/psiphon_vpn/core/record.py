"""The record of an installed core: record.json beside it, owned by root, so that psiphon-user cannot change it."""

import json
import os
import stat
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from psiphon_vpn.core.manifest import MAX_CORE_SIZE, SHA256
from psiphon_vpn.stored_files import parse_object, take, take_or_none

RECORD_NAME: Final = "record.json"
BINARY_NAME: Final = "psiphon-tunnel-core"
MAX_RECORD_SIZE: Final = 64 * 1024
_WRITABLE_BY_OTHERS: Final = 0o022


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


def check_owner(status: os.stat_result, *, owner: int, name: str) -> None:
    """Accept a file or directory that belongs to `owner` and that nobody else can write to; raises RecordError."""
    if status.st_uid != owner:
        raise RecordError(f"{name} does not belong to root")
    if stat.S_IMODE(status.st_mode) & _WRITABLE_BY_OTHERS:
        raise RecordError(f"{name} can be written by others than root")


def read_record(directory: int, *, owner: int = 0) -> CoreRecord:
    """Read the record in an open directory, if nobody but `owner` can have written it.

    Args:
        directory: descriptor of the core's own directory.
        owner: uid that must own both: root, except in tests without root.

    Raises:
        FileNotFoundError: there is no record.
        RecordError: it cannot be trusted or read.
    """
    check_owner(os.fstat(directory), owner=owner, name="its directory")
    try:
        descriptor = os.open(RECORD_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(error.strerror or str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError("it is no regular file")
        check_owner(status, owner=owner, name="the record")
        content = file.read(MAX_RECORD_SIZE + 1)
    if len(content) > MAX_RECORD_SIZE:
        raise RecordError("it is too large")
    return parse_record(content)
