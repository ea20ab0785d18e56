# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bundle: what the tunnel needs in one file, for a friend, a USB stick, a messenger.

Nothing in it vouches for itself: the core counts only if it is one of the manifest or has the SHA-256 that a user gives
(`core/verify.py`), its record is made anew, and the list counts by its signature (`isolated.py`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.servers import bundle_format
from psiphon_vpn.servers.bundle_format import CORE, LIST, MAX_BUNDLE, MAX_SIZES, BundleFlaw, NotABundleError
from psiphon_vpn.stored_files import StoredError, parse_object, take
from psiphon_vpn.unprivileged import Limits, UnprivilegedError, run_unprivileged

_LIMITS: Final = Limits(memory=1 << 30, output=4096)
_CHUNK: Final = 1 << 20


class BundleError(UserError):
    """A bundle is not used, by `flaw`; None: it could not be read at all. Nothing has changed."""

    def __init__(self, flaw: BundleFlaw | None, why: str, next_step: str) -> None:
        super().__init__(_("The bundle is not used"), why, next_step)
        self.flaw = flaw


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What is in a bundle, unverified.

    Attributes:
        core: the tunnel core; None if it is not in it.
        server_list: the signed list; None if it is not in it.
    """

    core: bytes | None = field(repr=False)
    server_list: bytes | None = field(repr=False)


def read_bundle_file(path: Path) -> Bundle:
    """Read a bundle from a file that a user names.

    Raises:
        BundleError: it is not used.
    """
    try:
        # Not waiting for a pipe, nor opening a device: only an ordinary file is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with contextlib.closing(os.fdopen(descriptor, "rb")) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _explain(BundleFlaw.NOT_A_BUNDLE)
            content = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise BundleError(
            None, f"{path}: {error.strerror or error}", _("Check the name of the file, and run it again.")
        ) from error
    return read_bundle(content)


def read_bundle(content: bytes) -> Bundle:
    """Find the parts of a bundle, without privileges.

    Raises:
        BundleError: it is not used.
    """
    if len(content) > MAX_BUNDLE:
        raise _explain(BundleFlaw.TOO_LARGE)
    try:
        answer = parse_object(run_unprivileged(bundle_format.__name__, (), content, _LIMITS))
        if "flaw" in answer:
            raise _explain(BundleFlaw(take(answer, "flaw", str)))
        parts = {name: _cut(content, name, place) for name, place in take(answer, "parts", dict).items()}
    except UnprivilegedError as error:
        raise BundleError(
            None,
            _("the process that reads it without privileges gave no result ({trouble})").format(trouble=error.trouble),
            _("Run it again; if that does not help, make memory free, and see that setpriv works."),
        ) from error
    except ValueError as error:  # StoredError, too: a process that was taken over may answer anything
        raise _explain(BundleFlaw.DAMAGED) from error
    if not parts:
        raise _explain(BundleFlaw.EMPTY)
    return Bundle(core=parts.get(CORE), server_list=parts.get(LIST))


def make_bundle(*, core: bytes | None, server_list: bytes | None) -> bytes:
    """A bundle of what there is.

    Raises:
        BundleError: there is nothing, or it is too large.
    """
    parts = {name: content for name, content in ((CORE, core), (LIST, server_list)) if content is not None}
    try:
        return bundle_format.render_bundle(parts)
    except NotABundleError as error:
        raise _explain(error.flaw) from error


def _cut(content: bytes, name: object, place: object) -> bytes:
    """A part, if the answer names one within the content."""
    if name not in MAX_SIZES or not isinstance(place, list) or len(place) != 2:
        raise StoredError("a place is malformed")
    offset, size = place
    if type(offset) is not int or type(size) is not int:
        raise StoredError("a place is malformed")
    if offset < 0 or not 0 < size <= MAX_SIZES[str(name)] or offset + size > len(content):
        raise StoredError("a place is outside")
    return content[offset : offset + size]


def _explain(flaw: BundleFlaw) -> BundleError:
    whys = {
        BundleFlaw.NOT_A_BUNDLE: _("it is no bundle of this program"),
        BundleFlaw.COMPRESSED: _("it is compressed"),
        BundleFlaw.TRUNCATED: _("its end is missing: it did not arrive whole"),
        BundleFlaw.DAMAGED: _("it was damaged on the way"),
        BundleFlaw.OTHER_CONTENT: _("there is something in it that does not belong into a bundle"),
        BundleFlaw.TWICE: _("a part is in it twice"),
        BundleFlaw.TOO_LARGE: _("it is larger than a bundle can be ({size} MiB)").format(size=MAX_BUNDLE >> 20),
        BundleFlaw.EMPTY: _("there is nothing in it"),
    }
    steps = {
        BundleFlaw.COMPRESSED: _("Unpack it (gunzip, unzip), and give the file that was in it."),
        BundleFlaw.EMPTY: _("A computer that is online makes one: psiphon-vpn bundle FILE"),
    }
    return BundleError(flaw, whys[flaw], steps.get(flaw, _("Get it again, by another way if you can.")))
