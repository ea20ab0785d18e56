# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Hands the known servers to the core: verified again, in a sealed file in memory that nobody can change any more.

The stored list is root's, and a list that the daemon fetched itself is psiphon-user's; neither is trusted for where it
is, only for its signature. Both are opened by processes without privileges, and verified by openssl (`isolated.py`),
which takes a fraction of a second. What was verified is sealed (F_SEAL_WRITE in fcntl(2)) and kept while the daemon
runs: a file with the same SHA-256 needs no second look, so a restart of the core costs nothing but the reading of the
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.isolated import VerifiedList, explain, read_bare_entries, read_signed_list
from psiphon_vpn.servers.profile import NONE, Profile, load_profile_in
from psiphon_vpn.servers.record import ListRecord
from psiphon_vpn.servers.signed_list import MAX_SIGNED
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.stored_files import StoredError, read_stored

log = logging.getLogger(__name__)

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a core is started with.

    Attributes:
        profile: the network; None: the user wants none, or it cannot be used.
        image: descriptor of the sealed entries, which stays open while the daemon runs; None: there are none.
        record: the stored list whose entries are in it.
        flaw: why the stored list, the fetched one or the profile is not used; None: nothing is wrong.
    """

    profile: Profile | None = None
    image: int | None = None
    record: ListRecord | None = None
    flaw: ListFlaw | None = None

    @property
    def path(self) -> str | None:
        """Path of the entries, as a process sees it that inherits the descriptor."""
        return None if self.image is None else f"/proc/self/fd/{self.image}"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file that is not verified yet; without a profile: bare entries that root imported."""

    content: bytes
    sha256: str
    profile: Profile | None
    record: ListRecord | None = None

    def verify(self) -> VerifiedList:
        return read_bare_entries(self.content) if self.profile is None else read_signed_list(self.content, self.profile)


_Key = tuple[Profile | None, tuple[str, ...]]


class Handing:
    """Prepares the known servers for the core. Blocks: call it in a thread.

    Args:
        store: root's lists; None: there are none.
        profiles_dir: root's profiles.
        fetched: a signed list that the daemon fetched itself.
        root_uid: uid that must own root's files: root, except in tests without root.
    """

    def __init__(
        self, store: ServerStore | None, *, profiles_dir: Path, fetched: Path | None = None, root_uid: int = 0
    ) -> None:
        self._store = store
        self._profiles_dir = profiles_dir
        self._fetched = fetched
        self._root_uid = root_uid
        self._one = threading.Lock()
        self._image: int | None = None
        self._last: tuple[_Key, Handed] | None = None

    def prepare(self, name: str) -> Handed:
        """The known servers, for a core with this profile. Nothing that is wrong with them keeps a core from starting.

        Args:
            name: of the profile, as in the configuration; NONE: only entries that root imported unsigned.
        """
        with self._one:
            return self._prepare(name)

    def _prepare(self, name: str) -> Handed:
        flaws: list[ListFlaw] = []
        profile, found = None, []
        with _noted(flaws):
            profile = None if name == NONE else load_profile_in(self._profiles_dir, name, owner=self._root_uid)
        with _noted(flaws):
            if self._store is not None and (stored := self._store.open_current()) is not None:
                found.append(_check_stored(*stored, profile))
        with _noted(flaws):
            if profile is not None and (content := self._read_fetched()) is not None:
                found.append(_Found(content=content, sha256=hashlib.sha256(content).hexdigest(), profile=profile))
        key = (profile, tuple(each.sha256 for each in found))
        if self._last is not None and self._last[0] == key and not flaws:
            return self._last[1]
        verified: list[VerifiedList] = []
        record = None
        for each in found:
            with _noted(flaws):
                verified.append(each.verify())
                record = record or each.record
        handed = Handed(profile=profile, image=self._seal(verified), record=record, flaw=flaws[0] if flaws else None)
        # What failed is looked at again by the next start: it may have failed for want of memory.
        self._last = None if flaws else (key, handed)
        return handed

    def _read_fetched(self) -> bytes | None:
        if self._fetched is None:
            return None
        try:
            return read_stored(self._fetched, high=MAX_SIGNED)
        except FileNotFoundError:
            return None
        except (OSError, StoredError) as error:
            raise explain(ListFlaw.UNREADABLE) from error

    def _seal(self, lists: list[VerifiedList]) -> int | None:
        """The entries of these lists in a sealed file in memory, in the place of the one before."""
        if self._image is not None:
            os.close(self._image)
            self._image = None
        if not lists:
            return None
        image = os.memfd_create("servers", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            for found in lists:
                view = memoryview(found.entries_text)
                while view:
                    view = view[os.write(image, view) :]
            fcntl.fcntl(image, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(image)
            raise
        self._image = image
        return image

    def close(self) -> None:
        """Forget everything."""
        self._last = None
        self._seal([])


@contextlib.contextmanager
def _noted(flaws: list[ListFlaw]) -> Iterator[None]:
    """Note a flaw and go on: the core may know servers of its own."""
    try:
        yield
    except ListError as error:
        log.warning("server list: %s", error.flaw)
        flaws.append(error.flaw)
    except OSError as error:
        # No memory, no descriptor: a core without a list is better than none.
        log.error("server list: %s", error.strerror)
        flaws.append(ListFlaw.UNREADABLE)


def _check_stored(record: ListRecord, content: bytes, profile: Profile | None) -> _Found:
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != record.sha256:
        raise explain(ListFlaw.DAMAGED)
    if record.signed and (profile is None or record.profile != profile.name):
        raise explain(ListFlaw.OTHER_PROFILE)
    return _Found(content=content, sha256=sha256, profile=profile if record.signed else None, record=record)
