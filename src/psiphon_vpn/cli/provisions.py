# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tunnel needs, a core and a signed list of servers, brought while the network is still open, or from a file.

It is gathered and checked before anything is changed; it is installed when its places exist (`Provisions.install`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from psiphon_vpn.cli.starting import say
from psiphon_vpn.config import Settings
from psiphon_vpn.core.flaws import CoreFlawError
from psiphon_vpn.core.obtain import CoreRequest, find_pinned
from psiphon_vpn.core.store import CoreStore
from psiphon_vpn.core.verify import verify_core
from psiphon_vpn.editing.installed import read_installed_settings
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.servers.bundle import read_bundle_file
from psiphon_vpn.servers.errors import ListError
from psiphon_vpn.servers.isolated import read_signed_list
from psiphon_vpn.servers.profile import NONE, Profile, load_profile
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.system.layout import Layout

if TYPE_CHECKING:
    import ssl

    from psiphon_vpn.core.fetch import Limits
    from psiphon_vpn.core.record import CoreRecord

_ROOM: Final = "/var/tmp"  # noqa: S108  for directories with a random name that only root can enter
"""On the disk: /tmp may be in memory."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the options of `install` and `setup` say.

    Attributes:
        bundle: a file with both.
        core_file: a core as a file.
        core_url: where to download the core.
        sha256: the SHA-256 that the core must have.
        download: download what is missing, without a question.
        offline: lock also if something is missing, without a question.
        yes: do not ask.
    """

    bundle: Path | None = None
    core_file: Path | None = None
    core_url: str | None = None
    sha256: str | None = None
    download: bool = False
    offline: bool = False
    yes: bool = False

    def check(self) -> None:
        """Raise click.UsageError for options that exclude each other."""
        if sum((self.bundle is not None, self.core_file is not None, self.core_url is not None)) > 1:
            raise click.UsageError(_("Give one of --bundle, --core-file and --core-url."))
        if self.sha256 is not None and not (self.bundle or self.core_file or self.core_url or self.download):
            raise click.UsageError(_("--sha256 goes with --bundle, --core-file, --core-url or --download."))


@dataclass(frozen=True, kw_only=True)
class Provisions:
    """What was gathered.

    Attributes:
        core: the core to install; None for none.
        server_list: the signed list, verified; None for none.
        source: where the list came from, for its record.
        profile: whose list it is; None: the configuration wants none.
    """

    core: CoreRequest | None = None
    server_list: bytes | None = field(default=None, repr=False)
    source: str = ""
    profile: Profile | None = None

    def install(self, layout: Layout) -> bool:
        """Install both; returns whether anything is different now.

        Raises:
            UserError: one of them is refused. What was in use is in use.
        """
        changed = False
        if self.core is not None:
            from psiphon_vpn.cli.update import Conversation, bring_core

            store = CoreStore(layout)
            before = _read_core(store)
            bring_core(store, self.core, Conversation(runtime_dir=layout.runtime_dir, assume_yes=True, brief=True))
            changed = _read_core(store) != before
        if self.server_list is not None and self.profile is not None:
            change = ServerStore(layout).add(self.server_list, source=self.source, profile=self.profile)
            changed = changed or change.changed
        return changed


def _read_core(store: CoreStore) -> CoreRecord | None:
    """The record of the core in use, if the file is what it says: what is damaged is replaced."""
    with contextlib.suppress(UserError):
        return store.check_current()
    return None


def find_profile(layout: Layout) -> Profile | None:
    """The profile that the configuration chooses; the public network's where there is no usable configuration."""
    name = Settings().servers
    with contextlib.suppress(UserError):
        name = read_installed_settings(layout).servers
    return None if name == NONE else load_profile(name, layout)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What the tunnel lacks.

    Attributes:
        core: the core, or one that may be started.
        server_list: the list of servers.
        damaged: the core is there, and its file or record is damaged.
    """

    core: bool
    server_list: bool
    damaged: bool = False

    def __bool__(self) -> bool:
        return self.core or self.server_list

    def describe(self) -> str:
        """For people."""
        if self.core and self.server_list:
            return _("the tunnel program and the list of servers")
        if self.damaged:
            return _("a new copy of the tunnel program, whose file is damaged")
        return _("the tunnel program") if self.core else _("the list of servers")


def find_missing(layout: Layout, found: Provisions) -> Missing:
    """What this machine lacks, after what was gathered."""
    has_list = found.server_list is not None
    with contextlib.suppress(ListError):
        has_list = has_list or ServerStore(layout).open_current() is not None
    no_core = found.core is None and _read_core(CoreStore(layout)) is None
    return Missing(
        core=no_core,
        damaged=no_core and layout.core_record.exists(),
        server_list=found.profile is not None and not has_list and not _names_server(layout),
    )


def _names_server(layout: Layout) -> bool:
    """Whether the configuration names the only server that may be used: then no list is needed."""
    with contextlib.suppress(UserError):
        return "TargetServerEntry" in read_installed_settings(layout).core_advanced
    return False


def find_lasting_lack(layout: Layout) -> Missing:
    """What keeps this machine offline after the set-up; nothing is claimed of a configuration that is not usable."""
    profile = None
    with contextlib.suppress(UserError):
        profile = find_profile(layout)
    return find_missing(layout, Provisions(profile=profile))


def describe_list(layout: Layout) -> str | None:
    """A sentence that says how many servers the stored list has; None without a readable list."""
    record = None
    with contextlib.suppress(ListError):
        record = ServerStore(layout).read_current()
    if record is None:
        return None
    text = ngettext("The list has {count} server.", "The list has {count} servers.", record.entries)
    return text.format(count=f"{record.entries:,}")


@contextlib.contextmanager
def gather_given(layout: Layout, wishes: Wishes) -> Iterator[Provisions]:
    """What the options name, checked; a core from a bundle is a file that exists inside the block.

    Raises:
        UserError: it is refused.
    """
    wishes.check()
    found = Provisions(profile=find_profile(layout))
    if wishes.bundle is None:
        if wishes.core_file is not None or wishes.core_url is not None:
            request = CoreRequest(file=wishes.core_file, url=wishes.core_url, sha256=wishes.sha256)
            found = replace(found, core=request)
        yield found
        return
    bundle = read_bundle_file(wishes.bundle)
    if bundle.server_list is not None and found.profile is not None:
        read_signed_list(bundle.server_list, found.profile)
        found = replace(found, server_list=bundle.server_list, source=_("a bundle"))
    if bundle.core is None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="psiphon-vpn-", dir=_ROOM) as directory:  # which only root can enter
        path = Path(directory) / "core"
        path.write_bytes(bundle.core)
        store = CoreStore(layout)
        verify_core(
            path, manifest=store.manifest, machine=store.machine, source="", expected=None, sha256=wishes.sha256
        )
        yield replace(found, core=CoreRequest(file=path, sha256=wishes.sha256))


@contextlib.contextmanager
def download(
    layout: Layout,
    found: Provisions,
    missing: Missing,
    *,
    sha256: str | None = None,
    tls: ssl.SSLContext | None = None,
    limits: Limits | None = None,
) -> Iterator[Provisions]:
    """Bring what is missing in the open; the core is a file that exists inside the block.

    Args:
        layout: the paths.
        found: what there is already.
        missing: what to bring.
        sha256: what the core must have, besides what the manifest says.
        tls: trusted certificates; None: those of this system.
        limits: of a download.

    Raises:
        UserError: it cannot be had. Nothing was changed.
    """
    from psiphon_vpn.cli.update import show_progress
    from psiphon_vpn.core.fetch import fetch_core
    from psiphon_vpn.servers.fetch import fetch_list

    with tempfile.TemporaryDirectory(prefix="psiphon-vpn-", dir=_ROOM) as name:
        if missing.server_list and found.profile is not None:
            fetched = fetch_list(found.profile, Path(name), tls=tls, limits=limits)
            found = replace(found, server_list=fetched.content, source=fetched.source)
        if missing.core:
            store = CoreStore(layout)
            pinned = find_pinned(store)
            with show_progress() as bar:
                path = fetch_core(
                    store.manifest.url_of(pinned), Path(name), tls=tls, limits=limits, progress=bar.advance
                )
                bar.finish()
            verify_core(path, manifest=store.manifest, machine=store.machine, source="", expected=pinned, sha256=sha256)
            found = replace(found, core=CoreRequest(file=path, sha256=sha256))
        yield found


def explain_download(layout: Layout, found: Provisions, missing: Missing) -> Iterator[str]:
    """What would come from where, and what that shows to the network, before anybody agrees to it."""
    yield _("What the tunnel needs can be downloaded now, while the network is open: {what}.").format(
        what=missing.describe()
    )
    if missing.core:
        store = CoreStore(layout)
        with contextlib.suppress(CoreFlawError):
            yield _("- {host}: the tunnel program, checked against what this version knows of it").format(
                host=urlsplit(store.manifest.url_of(find_pinned(store))).hostname
            )
    if missing.server_list and found.profile is not None:
        host, *mirrors = (urlsplit(address.url).hostname or "" for address in found.profile.list_urls)
        yield _("- {host}: the list of servers, signed by the network's makers").format(host=host)
        if mirrors:
            yield _("- only if that fails, mirrors of the list: {hosts}").format(hosts=", ".join(mirrors))
    yield _(
        "Whoever watches your network sees that this computer asks these hosts, and may conclude that you are about "
        "to use Psiphon. If that is dangerous for you, say no, and bring a file that somebody else has made."
    )


def explain_offline(missing: Missing) -> str:
    """What it means to lock without them, in one sentence."""
    return _(
        "Without {what} this computer is offline from the moment it locks, until you bring a file: "
        "sudo psiphon-vpn setup --bundle FILE"
    ).format(what=missing.describe())


@contextlib.contextmanager
def gather_rest(layout: Layout, found: Provisions, wishes: Wishes, *, is_locked: bool) -> Iterator[Provisions]:
    """Bring what is still missing: by the options, or after a question.

    Raises:
        UserError: something is missing, and nobody has agreed to be offline.
        click.Abort: the user does not want to be offline.
    """
    missing = find_missing(layout, found)
    if not missing:
        yield found
        return
    if is_locked:
        # Nothing gets out, so nothing can be downloaded; and being locked is no news.
        say(explain_offline(missing))
        yield found
        return
    wanted = wishes.download
    if not wanted and not wishes.yes and not wishes.offline:
        for line in explain_download(layout, found, missing):
            say(line)
        wanted = click.confirm(_("Download it now?"), default=True, err=True)
    with contextlib.ExitStack() as stack:
        if wanted:
            try:
                found = stack.enter_context(download(layout, found, missing, sha256=wishes.sha256))
            except UserError as error:
                if wishes.yes and not wishes.offline:
                    raise
                say(str(error))
            missing = find_missing(layout, found)
        if missing:
            _agree_to_be_offline(missing, wishes)
        yield found


def _agree_to_be_offline(missing: Missing, wishes: Wishes) -> None:
    if not wishes.yes or wishes.offline:
        say(explain_offline(missing))
    if wishes.offline:
        return
    if wishes.yes:
        raise UserError(
            _("Nothing was changed"),
            _("this computer would be offline, without {what}").format(what=missing.describe()),
            _("Give --bundle FILE or --download; or --offline to lock it all the same."),
        )
    if not click.confirm(_("Lock it all the same?"), default=False, err=True):
        raise click.Abort
