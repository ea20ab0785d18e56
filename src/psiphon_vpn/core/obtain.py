# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Obtains the requested core and verifies it: from a file, from an address, or the one that this version pins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from psiphon_vpn.core.elf import explain_other_architecture
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.manifest import PinnedCore
from psiphon_vpn.core.record import CoreRecord
from psiphon_vpn.core.store import CoreStore, StagedCore
from psiphon_vpn.i18n import _
from psiphon_vpn.tree_removal import remove_tree

if TYPE_CHECKING:
    import ssl

    from psiphon_vpn.core.fetch import Limits, Progress


@dataclass(frozen=True, kw_only=True)
class CoreRequest:
    """The core to install. Without file and url: the newest that the manifest pins for this machine.

    Attributes:
        file: a local file.
        url: an https address.
        sha256: the SHA-256 that it must have, besides what the manifest requires.
        allow_older: accept a core that is older than the one in use.
        proxy: proxy for the download, with its password.
    """

    file: Path | None = None
    url: str | None = None
    sha256: str | None = None
    allow_older: bool = False
    proxy: str | None = field(default=None, repr=False)

    @property
    def needs_network(self) -> bool:
        """Whether it must be downloaded."""
        return self.file is None


def find_pinned(store: CoreStore) -> PinnedCore:
    """The core that this version pins for this machine.

    Raises:
        CoreFlawError: UNSUPPORTED: there is none.
    """
    pinned = store.manifest.newest(store.machine)
    if pinned is None:
        raise CoreFlawError(
            CoreFlaw.UNSUPPORTED,
            _("There is no tunnel program to download for this machine"),
            _("its processor is {machine}").format(machine=store.machine),
            explain_other_architecture(),
        )
    return pinned


def find_up_to_date(store: CoreStore, request: CoreRequest) -> CoreRecord | None:
    """The core in use, if it is already the requested one and valid: then no download is needed."""
    if request.file is not None or request.url is not None:
        return None
    pinned = find_pinned(store)
    with contextlib.suppress(CoreFlawError):
        record = store.check_current()
        if pinned.matches(size=record.size, sha256=record.sha256, blob=record.blob) and (
            request.sha256 in {None, record.sha256}
        ):
            return record
    return None


@contextlib.contextmanager
def obtain(
    store: CoreStore,
    request: CoreRequest,
    *,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Iterator[StagedCore]:
    """Get the requested core and verify it; inside the block it can be activated.

    Args:
        store: the store of cores.
        request: the core.
        tls: trusted certificates for the download; None: those of this system.
        limits: limits of the download.
        progress: called during the download.

    Raises:
        UserError: FetchError or CoreFlawError. Nothing has changed.
    """
    # Check first: a download takes minutes, and could not be activated.
    store.find_owner()
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.exclusive())
        pinned = None
        if request.file is not None:
            path, source = request.file, str(request.file)
        else:
            # Imported only here: a local file needs no network code.
            from psiphon_vpn.core.fetch import describe_source, fetch_core

            pinned = find_pinned(store) if request.url is None else None
            url = request.url or store.manifest.url_of(find_pinned(store))
            path = fetch_core(url, store.downloads(), proxy=request.proxy, tls=tls, limits=limits, progress=progress)
            source = describe_source(url)
        try:
            staged = stack.enter_context(
                store.stage(
                    path, source=source, expected=pinned, sha256=request.sha256, allow_older=request.allow_older
                )
            )
        except CoreFlawError as error:
            if request.needs_network and error.flaw is not CoreFlaw.DISK:
                # It is complete and wrong: resuming it would be useless.
                remove_tree(store.downloads())
            raise
        yield staged
        remove_tree(store.downloads())
