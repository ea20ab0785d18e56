"""From where a core is wanted to a verified one in the store: a file, an address, or what this version pins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
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
    """Which core is wanted. Neither file nor url: the newest that the manifest pins for this machine.

    Attributes:
        file: a file of this machine.
        url: an https address.
        sha256: what the SHA-256 has to be, beside what the manifest says.
        allow_older: also an older one than the one in use.
        proxy: to fetch through.
    """

    file: Path | None = None
    url: str | None = None
    sha256: str | None = None
    allow_older: bool = False
    proxy: str | None = None

    @property
    def needs_network(self) -> bool:
        """Whether something has to be fetched."""
        return self.file is None


def find_pinned(store: CoreStore) -> PinnedCore:
    """The core that this version pins for this machine.

    Raises:
        CoreFlawError: UNSUPPORTED, there is none.
    """
    pinned = store.manifest.newest(store.machine)
    if pinned is None:
        raise CoreFlawError(
            CoreFlaw.UNSUPPORTED,
            _("There is no tunnel core to download for this machine"),
            _("its processor is {machine}").format(machine=store.machine),
            explain_other_architecture(),
        )
    return pinned


def find_up_to_date(store: CoreStore, request: CoreRequest) -> CoreRecord | None:
    """The core in use, if it is the wanted one already and valid: then nothing has to be fetched."""
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
    """Get the wanted core and verify it; inside the block it can be activated.

    Args:
        store: where to.
        request: which.
        tls: whom to trust when fetching; None: the certificates of this system.
        limits: bounds of a download.
        progress: told during a download.

    Raises:
        UserError: FetchError or CoreFlawError. Nothing has changed.
    """
    # Before minutes are spent on a download that could not be put into use.
    store.find_owner()
    with contextlib.ExitStack() as stack:
        stack.enter_context(store.exclusive())
        pinned = None
        if request.file is not None:
            path, source = request.file, str(request.file)
        else:
            # Only here: a file from a stick needs nothing that speaks to a network.
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
                # It is complete and wrong: to go on with it would be of no use.
                remove_tree(store.downloads())
            raise
        yield staged
        remove_tree(store.downloads())
