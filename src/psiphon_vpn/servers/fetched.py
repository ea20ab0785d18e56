# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The list that the daemon itself fetched: a file of psiphon-user's, trusted only by its signature, at each use."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

from psiphon_vpn.servers.errors import ListError
from psiphon_vpn.servers.isolated import read_signed_list
from psiphon_vpn.servers.list_hosts import ListHost, find_list_hosts
from psiphon_vpn.servers.profile import NONE, Profile, load_profile_in
from psiphon_vpn.servers.record import ListRecord
from psiphon_vpn.servers.signed_list import MAX_SIGNED
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.stored_files import StoredError, read_stored

FILE_NAME: Final = "fetched-list"


class FetchedLists:
    """Finds the hosts to ask, and keeps what they gave.

    Args:
        path: of the list that is kept.
        store: root's lists; None: there are none.
        profiles_dir: root's profiles.
    """

    def __init__(self, path: Path, *, store: ServerStore | None, profiles_dir: Path) -> None:
        self._path = path
        self._store = store
        self._profiles_dir = profiles_dir

    def find_hosts(self, profile: str) -> tuple[ListHost, ...]:
        """The hosts of the list of a profile, by its name in the configuration; none if it cannot be used."""
        found = self._load(profile)
        return find_list_hosts(found) if found is not None else ()

    def accept(self, content: bytes, profile: str) -> bool:
        """Verify a list and keep it, in place of one that was kept before. Blocks for a second or two.

        Returns:
            Whether it is a list that the core does not have yet.

        Raises:
            OSError: it cannot be stored.
        """
        trusted = self._load(profile)
        if trusted is None or hashlib.sha256(content).hexdigest() in self._list_known():
            return False
        try:
            verified = read_signed_list(content, trusted)
        except ListError:
            return False
        if (record := self._read_record()) and verified.data_sha256 in {record.data_sha256, *record.seen}:
            return False  # root's own, packed otherwise, or one that came before it
        temporary = self._path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(self._path)
        return True

    def _load(self, profile: str) -> Profile | None:
        try:
            return None if profile == NONE else load_profile_in(self._profiles_dir, profile)
        except ListError:
            return None

    def _list_known(self) -> set[str]:
        """SHA-256 of the lists that the core gets already."""
        known = set()
        with contextlib.suppress(OSError, StoredError):
            known.add(hashlib.sha256(read_stored(self._path, high=MAX_SIGNED)).hexdigest())
        if (record := self._read_record()) is not None:
            known.add(record.sha256)
        return known

    def _read_record(self) -> ListRecord | None:
        with contextlib.suppress(ListError):
            return None if self._store is None else self._store.read_current()
        return None
