# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stored lists: versions (`versions.py`) named by the SHA-256 of the signed file, which is kept byte for byte.

A list is verified before anything is written, stored whole or not at all, and the one before it is kept. The file stays
root's, and is verified again by its signature before each use (`handing.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.isolated import VerifiedList, read_bare_entries, read_signed_list
from psiphon_vpn.servers.profile import Profile
from psiphon_vpn.servers.record import (
    MAX_RECORD_SIZE,
    MAX_SEEN,
    RECORD_NAME,
    ListRecord,
    ListRecordError,
    parse_record,
    render_record,
)
from psiphon_vpn.servers.signed_list import MAX_INFLATED
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.versions import BusyError, NoPreviousError, OwnerError, Versions, read_owned, write_synced

SMALLER: Final = 2
"""A list is much smaller if the one in use has more than this many times its servers."""


@dataclass(frozen=True, kw_only=True)
class ListChange:
    """The result of storing a list.

    Attributes:
        old: the list in use before; None if there was none with a readable record.
        new: the list in use now.
        changed: False if that list was in use already.
    """

    old: ListRecord | None
    new: ListRecord
    changed: bool


class ServerStore:
    """The lists below `layout.servers_dir`.

    Args:
        layout: the paths.
        directory: another directory in the place of `layout.servers_dir`, for the laboratory.
        root_uid: uid that must own everything: root, except in tests without root.
    """

    def __init__(self, layout: Layout, *, directory: Path | None = None, root_uid: int = 0) -> None:
        self._directory = directory or layout.servers_dir
        self._root_uid = root_uid
        self._versions = Versions(self._directory, root_uid=root_uid)

    # -- reading --------------------------------------------------------------------------------------------------

    def read_current(self) -> ListRecord | None:
        """The record of the list in use; None if there is none.

        Raises:
            ListError: BAD_RECORD: it exists and cannot be trusted.
        """
        return self._read_record(self._versions.current)

    def read_previous(self) -> ListRecord | None:
        """The record of the previous list; like `read_current`."""
        return self._read_record(self._versions.previous)

    def open_current(self) -> tuple[ListRecord, bytes] | None:
        """Record and content of the list in use, from the same directory; None if there is none.

        The content is root's and as long as recorded; its signature is not checked here.

        Raises:
            ListError: BAD_RECORD: it exists and cannot be trusted or read.
        """
        with self._opened(self._versions.current) as directory:
            if directory is None or (record := self._read(directory)) is None:
                return None
            try:
                content = read_owned(record.file_name, directory=directory, owner=self._root_uid, high=MAX_INFLATED)
            except (OwnerError, OSError) as error:
                raise _bad_record(str(error)) from error
            if len(content) != record.size:
                raise _bad_record(_("the list is not as long as recorded"))
            return record, content

    def _read_record(self, link: Path) -> ListRecord | None:
        with self._opened(link) as directory:
            return None if directory is None else self._read(directory)

    @contextlib.contextmanager
    def _opened(self, link: Path) -> Iterator[int | None]:
        try:
            descriptor = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            raise _bad_record(error.strerror or str(error)) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, directory: int) -> ListRecord | None:
        try:
            return parse_record(
                read_owned(RECORD_NAME, directory=directory, owner=self._root_uid, high=MAX_RECORD_SIZE)
            )
        except FileNotFoundError:
            return None
        except (OwnerError, ListRecordError) as error:
            raise _bad_record(str(error)) from error

    # -- changing -------------------------------------------------------------------------------------------------

    def add(
        self,
        content: bytes,
        *,
        source: str,
        profile: Profile | None,
        allow_smaller: bool = False,
        allow_seen: bool = False,
    ) -> ListChange:
        """Verify a list and put it into use.

        Args:
            content: the signed file, byte for byte, or bare entries.
            source: where it came from, for the record.
            profile: whose key must have signed it; None: bare entries, which root vouches for.
            allow_smaller: take it also if it has far fewer servers than the list in use.
            allow_seen: take it also if it was in use earlier.

        Raises:
            ListError: it is not used, and nothing has changed. MUCH_SMALLER and SEEN_BEFORE are for a user to decide.
        """
        verified = read_bare_entries(content) if profile is None else read_signed_list(content, profile)
        return self.put(
            verified,
            content,
            source=source,
            profile=profile,
            allow_smaller=allow_smaller,
            allow_seen=allow_seen,
        )

    def put(
        self,
        verified: VerifiedList,
        content: bytes,
        *,
        source: str,
        profile: Profile | None,
        allow_smaller: bool = False,
        allow_seen: bool = False,
    ) -> ListChange:
        """Put a list into use that `read_signed_list` or `read_bare_entries` has just accepted; like `add`."""
        assert hashlib.sha256(content).hexdigest() == verified.sha256, "what was verified is what is stored"
        with self._exclusive():
            old = self._read_old()
            same = old is not None and old.data_sha256 == verified.data_sha256
            kept = self._read_kept(old) if old is not None and same else None
            if old is not None and kept is not None:
                # Packed otherwise, it would be another version, and take the place of the one to go back to.
                verified, content = replace(verified, sha256=old.sha256), kept
            if old is not None and not same:
                _ask(verified, old, allow_smaller=allow_smaller, allow_seen=allow_seen)
            record = _make_record(verified, content, source=source, profile=profile, old=old)
            with self._disk_errors():
                try:
                    staging = self._versions.make_staging()
                    write_synced(staging / record.file_name, content, mode=0o644)
                    write_synced(staging / RECORD_NAME, render_record(record), mode=0o644)
                    # The list in use, received again: its record gets a new date, and its file is written anew.
                    changed = self._versions.activate(
                        record.sha256, parts=(record.file_name, RECORD_NAME), is_valid=lambda _target: False
                    )
                finally:
                    self._versions.drop_staging()
            # What takes the place of a damaged file is a change: nothing could use that file.
            return ListChange(old=old, new=record, changed=changed or kept is None)

    def rollback(self) -> ListChange:
        """Swap the list in use and the previous one.

        Raises:
            ListError: NO_PREVIOUS, or its record cannot be trusted. Nothing has changed.
        """
        with self._exclusive():
            try:
                self._versions.find_previous()
            except NoPreviousError as error:
                raise ListError(
                    ListFlaw.NO_PREVIOUS,
                    _("no list before the present one is kept"),
                    _("The list in use stays in use."),
                    what=_("There is nothing to go back to"),
                ) from error
            old, new = self._read_old(), self.read_previous()
            if new is None:
                raise _bad_record(_("it is missing"))
            with self._disk_errors():
                self._versions.swap()
            return ListChange(old=old, new=new, changed=True)

    def remove(self) -> bool:
        """Forget the list in use and the previous one; returns whether there was one. Raises ListError."""
        with self._exclusive(), self._disk_errors():
            return self._versions.forget()

    # -- steps ----------------------------------------------------------------------------------------------------

    def _read_old(self) -> ListRecord | None:
        # An unreadable record must not prevent that a good list is stored.
        with contextlib.suppress(ListError):
            return self.read_current()
        return None

    def _read_kept(self, record: ListRecord) -> bytes | None:
        """The file of the list in use, if it is what its record says."""
        with contextlib.suppress(ListError):
            found = self.open_current()
            if found is not None and hashlib.sha256(found[1]).hexdigest() == record.sha256:
                return found[1]
        return None

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with self._disk_errors():
                try:
                    stack.enter_context(self._versions.exclusive())
                except OwnerError as error:
                    step = _("Find out who changed that, then: chown root: {path}; chmod 755 {path}")
                    raise ListError(
                        ListFlaw.BAD_RECORD, str(error), step.format(path=self._directory), what=_what()
                    ) from error
                except BusyError as error:
                    why = _("another command is changing the server lists")
                    raise ListError(ListFlaw.BUSY, why, _("Wait until it has finished."), what=_what()) from error
            yield

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ListError(
                ListFlaw.DISK,
                _("{path} cannot be written: {cause}").format(path=self._directory, cause=error.strerror or error),
                _("Make room there, or see what is wrong with the disk; the list in use stays in use."),
                what=_what(),
            ) from error


def _what() -> str:
    return _("The server list is not stored")


def _bad_record(why: str) -> ListError:
    return ListError(
        ListFlaw.BAD_RECORD,
        _("its record cannot be trusted ({detail})").format(detail=why),
        _("Store a list anew with: sudo psiphon-vpn servers import FILE"),
    )


def _ask(verified: VerifiedList, old: ListRecord, *, allow_smaller: bool, allow_seen: bool) -> None:
    """Raise what only a user can decide."""
    if verified.data_sha256 in old.seen and not allow_seen:
        raise ListError(
            ListFlaw.SEEN_BEFORE,
            _("it was in use before the present list, so it is older"),
            _("If you want it all the same: sudo psiphon-vpn servers import --older FILE"),
        )
    found = verified.summary.entries
    if found * SMALLER < old.entries and not allow_smaller:
        raise ListError(
            ListFlaw.MUCH_SMALLER,
            _("it has {new} servers, and the list in use has {old}: it may be old, or not meant for you").format(
                new=found, old=old.entries
            ),
            _("If you want it all the same: sudo psiphon-vpn servers import --smaller FILE"),
        )


def _make_record(
    verified: VerifiedList, content: bytes, *, source: str, profile: Profile | None, old: ListRecord | None
) -> ListRecord:
    if old is None:
        seen: tuple[str, ...] = ()
    elif old.data_sha256 == verified.data_sha256:
        seen = old.seen
    else:
        seen = tuple(dict.fromkeys((old.data_sha256, *old.seen)))[:MAX_SEEN]
    return ListRecord(
        sha256=verified.sha256,
        data_sha256=verified.data_sha256,
        size=len(content),
        profile="" if profile is None else profile.name,
        signed=profile is not None,
        entries=verified.summary.entries,
        by_region=verified.summary.by_region,
        by_protocol=verified.summary.by_protocol,
        source=source,
        fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seen=tuple(name for name in seen if name != verified.data_sha256),
    )
