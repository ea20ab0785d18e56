# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides whether a file is a core that may be installed: an ELF program for this processor, with known content."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from psiphon_vpn.core.elf import HEADER_SIZE, check_elf
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.manifest import Manifest, PinnedCore, compute_blob_id
from psiphon_vpn.core.record import CoreRecord
from psiphon_vpn.i18n import _

_CHUNK: Final = 1 << 20


def verify_core(
    path: Path, *, manifest: Manifest, machine: str, source: str, expected: PinnedCore | None, sha256: str | None
) -> CoreRecord:
    """Verify a file and return its record.

    Args:
        path: a file that nobody else can change.
        manifest: the known cores.
        machine: the processor, as uname(2) names it.
        source: where it came from, for the record.
        expected: the pinned core that it must be; None: any core of the manifest, or the one with `sha256`.
        sha256: the SHA-256 that it must have as well.

    Raises:
        CoreFlawError: NOT_ELF, WRONG_ARCHITECTURE, MISMATCH or UNPINNED.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        check_elf(file.read(HEADER_SIZE), machine=machine)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        blob = compute_blob_id(iter(lambda: file.read(_CHUNK), b""), size)
    if expected is not None and not expected.matches(size=size, sha256=found, blob=blob):
        if expected.size not in {None, size}:
            why = _("it has {size} bytes, and {expected} were expected").format(size=size, expected=expected.size)
        else:
            why = _("its git id is {found}, its SHA-256 {sha256}; expected was git id {blob}").format(
                found=blob, sha256=found, blob=expected.blob
            )
        raise _mismatch(why)
    if sha256 is not None and found != sha256.lower():
        raise _mismatch(
            _("its SHA-256 is {found}, and {expected} was expected").format(found=found, expected=sha256.lower())
        )
    pinned = expected or manifest.find(size=size, sha256=found, blob=blob)
    if pinned is None and sha256 is None:
        raise CoreFlawError(
            CoreFlaw.UNPINNED,
            _what(),
            _("nothing shows that this is a genuine tunnel program: this version of psiphon-vpn does not know it"),
            _("If you know its SHA-256 from another source, give it with --sha256."),
        )
    return CoreRecord(
        sha256=found,
        size=size,
        blob=blob,
        architecture=machine,
        revision=pinned.revision if pinned else None,
        commit=pinned.commit if pinned else None,
        order=pinned.order if pinned else None,
        source=source,
        installed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def compare_order(new: CoreRecord, old: CoreRecord | None, *, allow_older: bool) -> tuple[str, ...]:
    """Refuse a core that is older by the manifest's order; warn if the order is unknown.

    Returns:
        Warnings for the user, translated.

    Raises:
        CoreFlawError: OLDER.
    """
    if old is None or new.sha256 == old.sha256:
        return ()
    if new.order is None or old.order is None:
        return (_("It is not known whether this tunnel program is older than the one in use."),)
    if new.order >= old.order:
        return ()
    if not allow_older:
        raise CoreFlawError(
            CoreFlaw.OLDER,
            _what(),
            _("revision {new} is older than {old}, which is in use").format(new=new.revision, old=old.revision),
            _("An older tunnel program may have known weaknesses. If you want it all the same: --allow-older"),
        )
    return (_("This tunnel program is older than the one in use, and may have known weaknesses."),)


def _what() -> str:
    return _("The tunnel program is not installed")


def _mismatch(why: str) -> CoreFlawError:
    return CoreFlawError(
        CoreFlaw.MISMATCH,
        _what(),
        _("the file is not the expected one: {why}").format(why=why),
        _("It is damaged or was tampered with. Get it again, by another way; never use this one."),
    )
