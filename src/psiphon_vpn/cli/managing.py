"""The work of the commands in `manage`.

Everything that `uninstall` needs is imported at the top, since later the files may be gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from psiphon_vpn.errors import NotRootError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names
from psiphon_vpn.system import install as installation
from psiphon_vpn.system import release as releasing
from psiphon_vpn.system.distribution import find_removal
from psiphon_vpn.system.findings import (
    describe_refused_logins,
    find_name_taker,
    find_other_firewalls,
    find_ownerless_links,
)
from psiphon_vpn.system.journal import Journal, JournalError, Method
from psiphon_vpn.system.linux_platform import open_platform
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.sessions import OPTION, RemoteSessionsError, describe_sessions, find_sessions

if TYPE_CHECKING:
    from psiphon_vpn.core.obtain import CoreRequest
    from psiphon_vpn.core.record import CoreRecord
    from psiphon_vpn.core.store import CoreStore


def say(line: str) -> None:
    """Print a line. The terminal may be gone: closing the lock ends the SSH session of this command."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def need_root(command: str) -> None:
    """Raise NotRootError for other users."""
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


def check_sessions(platform: Platform, *, cut_remote: bool) -> None:
    """Refuse to end connections from outside without agreement. A locked machine has none.

    Raises:
        RemoteSessionsError: there are connections from outside.
    """
    if platform.kernel.is_locked() is True:
        return
    sessions = find_sessions()
    if not sessions:
        return
    if not cut_remote:
        raise RemoteSessionsError(sessions)
    say(describe_sessions(sessions)[:1].upper() + describe_sessions(sessions)[1:] + ".")


def survive_hangup() -> None:
    """Go on when this command itself ends the SSH session that it runs in."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def need_systemd(platform: Platform) -> None:
    """Raise UserError if systemd does not run."""
    if not platform.manager.is_running():
        raise UserError(
            _("The service cannot be managed here"),
            _("this system was not started by systemd"),
            _("Use a computer or a virtual machine with systemd."),
        )


def install(
    commands: click.Group,
    *,
    core_file: Path | None,
    sha256: str | None,
    core_url: str | None,
    download_core: bool,
    yes: bool,
    cut_remote: bool,
    dry_run: bool,
) -> int:
    """Install from a clone."""
    need_root("install")
    platform = open_platform()
    if (removal := find_removal()) is not None:
        raise UserError(
            _("Nothing was installed"),
            _("this program was installed by this system's package manager, which keeps it up to date"),
            _("To install from here instead, remove it first: sudo {command}").format(command=removal),
        )
    need_systemd(platform)
    from psiphon_vpn.system.payload import collect_payload

    _explain_install(platform)
    if not dry_run:
        check_sessions(platform, cut_remote=cut_remote)
        if not yes and not click.confirm(_("Go on?"), default=False, err=True):
            raise click.Abort
    request = _find_request(
        platform,
        core_file=core_file,
        core_url=core_url,
        sha256=sha256,
        download=download_core,
        ask=not yes and not dry_run,
    )
    survive_hangup()
    result = installation.install_clone(
        platform,
        collect_payload(commands),
        say=say if dry_run else lambda _line: None,
        install_core=_choose_core(platform, request),
        dry_run=dry_run,
    )
    if dry_run:
        say(_("Nothing was changed."))
        return 0
    _report_result(platform, result)
    return 0


def _report_findings(platform: Platform) -> None:
    account = platform.accounts.find()
    taker = find_name_taker(account.uid if account is not None else None)
    for finding in (
        *find_other_firewalls(platform.manager),
        *find_ownerless_links(),
        *describe_refused_logins(),
        *([taker] if taker is not None else []),
    ):
        say(_("Found {name}. {meaning}").format(name=finding.name, meaning=finding.meaning))


def _explain_install(platform: Platform) -> None:
    for line in (
        _("This installs the Psiphon VPN service on this computer:"),
        _("- From now on nothing leaves this computer except through Psiphon's tunnel, even when the service is"),
        _("  stopped, broken or updated, and from the first moment of every start of the computer."),
        _("- Printers, network disks and everything else on the local network are out of reach. Ping does not work."),
        _("- Nobody reaches this computer from outside, not even by SSH."),
        _("- Every change is recorded first; 'sudo psiphon-vpn uninstall' undoes them all."),
    ):
        say(line)
    _report_findings(platform)


def _choose_core(platform: Platform, request: CoreRequest | None) -> Callable[[], bool] | None:
    """A function that installs the wanted core and returns whether it is a different one; None if none is wanted."""
    if request is None:
        return None

    def bring() -> bool:
        from psiphon_vpn.cli.update import Conversation, bring_core
        from psiphon_vpn.core.store import CoreStore

        store = CoreStore(platform.layout)
        before = _read_core(store)
        bring_core(store, request, Conversation(runtime_dir=platform.layout.runtime_dir, assume_yes=True))
        return _read_core(store) != before

    return bring


def _read_core(store: CoreStore) -> CoreRecord | None:
    with contextlib.suppress(UserError):  # a record that cannot be read is replaced
        return store.read_current()
    return None


def _find_request(
    platform: Platform, *, core_file: Path | None, core_url: str | None, sha256: str | None, download: bool, ask: bool
) -> CoreRequest | None:
    """The core that the user wants. The question comes before the lock closes: then nothing can be downloaded."""
    from psiphon_vpn.core.obtain import CoreRequest

    if sum((core_file is not None, core_url is not None, download)) > 1:
        raise click.UsageError(_("Give one of --core-file, --core-url and --download-core."))
    if core_file is not None or core_url is not None:
        return CoreRequest(file=core_file, url=core_url, sha256=sha256)
    if sha256 is not None and not download:
        raise click.UsageError(_("--sha256 goes with --core-file, --core-url or --download-core."))
    if not download and ask and not platform.layout.core_record.exists() and platform.kernel.is_locked() is not True:
        say(
            _("The tunnel needs psiphon-tunnel-core, which is not installed yet. It can be downloaded now, without the")
        )
        say(_("tunnel, from Psiphon's own distribution. After the lock has closed you can only bring it as a file."))
        download = click.confirm(_("Download it now?"), default=True, err=True)
    return CoreRequest(sha256=sha256) if download else None


def describe_numbers(platform: Platform) -> str | None:
    """A sentence if psiphon-user has another number than the usual one; None if it has that, or does not exist."""
    account, usual = platform.accounts.find(), names.ACCOUNT_NUMBER
    if account is None or account.uid == account.gid == usual:
        return None
    # An existing user or group keeps its number too.
    return _(
        "psiphon-user has the numbers {uid} (user) and {gid} (group): {usual} was not free, or the account existed "
        "already. Run no container on this computer's own network (--network host) with both numbers: the rules may "
        "take it for psiphon-user. 'sudo psiphon-vpn diagnose' names such a program."
    ).format(uid=account.uid, gid=account.gid, usual=usual)


def _report_result(platform: Platform, result: installation.InstallResult, *, updated: bool = False) -> None:
    if updated:
        say(_("This version is installed and runs now; the machine stayed locked meanwhile."))
    elif result.repeated and not result.changes:
        say(_("There was nothing to do: everything is installed as it should be."))
    elif result.repeated:
        say(_("Installed. Changes that were necessary: {count}.").format(count=result.changes))
    else:
        say(_("Installed, and locked: from now on nothing leaves this computer except through the tunnel."))
    if (sentence := describe_numbers(platform)) is not None:
        say(sentence)
    if not platform.layout.core_record.exists():
        say(_("There is no tunnel core yet, so this computer stays offline. Bring one as a file:"))
        say("    sudo psiphon-vpn update --core-file FILE --sha256 HEX")
    say(_("To see the state: psiphon-vpn status"))


def uninstall(*, yes: bool, dry_run: bool) -> int:
    """Undo the journal."""
    need_root("uninstall")
    platform = open_platform()
    record = Journal(platform).read()
    removal = find_removal()
    if removal is not None or (record is not None and record.method is Method.PACKAGE):
        raise UserError(
            _("Nothing was removed"),
            _("this program was installed by this system's package manager"),
            _("Remove it with: sudo {command}").format(command=removal or "apt remove psiphon-vpn"),
        )
    if record is None:
        say(_("Nothing is installed here."))
        return 0
    say(_("This removes the service, its configuration, its data and its tunnel core, and then opens the network:"))
    say(_("everything on this computer can then reach the internet without the tunnel, as before."))
    if not dry_run and not yes and not click.confirm(_("Go on?"), default=False, err=True):
        raise click.Abort
    survive_hangup()
    installation.uninstall(platform, say=say if dry_run else lambda _line: None, dry_run=dry_run)
    say(_("Nothing was changed.") if dry_run else _("Removed. The network is open, as it was before."))
    return 0


def release() -> int:
    """Open the network, after the user has typed a word."""
    need_root("release")
    platform = open_platform()
    need_systemd(platform)
    say(_("This opens the network: programs on this computer then send without the tunnel, and whoever watches your"))
    say(_("connection sees it. It lasts until 'start' or until the next boot."))
    word = click.prompt(
        _("Type the word {word} to open it").format(word=releasing.WORD), default="", show_default=False, err=True
    )
    if word.strip() != releasing.WORD:
        raise UserError(_("Nothing was opened"), _("that was not the word"), _("The machine is as it was."))
    releasing.release(platform, by=os.environ.get("SUDO_UID", str(os.getuid())))
    click.echo(
        click.style(_("RELEASED. Everything can leave this computer without the tunnel."), fg="red", bold=True),
        err=True,
    )
    say(_("To lock it again: sudo psiphon-vpn start"))
    return 0


def start_if_stopped(platform: Platform, *, cut_remote: bool) -> bool:
    """Lock and start the service if it does not run. Returns whether that was necessary.

    Raises:
        UserError: it cannot be started, or would end connections from outside.
    """
    from psiphon_vpn.system.layout import SERVICE_UNIT

    if not platform.manager.is_running() or not (platform.layout.unit_dir / SERVICE_UNIT).exists():
        return False
    if (sentence := installation.find_interruption(platform)) is not None:
        say(sentence)
    check_sessions(platform, cut_remote=cut_remote)
    if platform.manager.is_active(SERVICE_UNIT) and platform.kernel.is_locked() is True:
        return False
    survive_hangup()
    releasing.start(platform)
    return True


def system_configure(*, cut_remote: bool) -> int:
    """Configure, for a package whose files are in place; asks nothing."""
    need_root("system-configure")
    platform = open_platform()
    close = platform.manager.is_running()
    was_locked = close and platform.kernel.is_locked() is True
    if close:
        try:
            check_sessions(platform, cut_remote=cut_remote)
        except RemoteSessionsError as error:
            close = False
            say(f"psiphon-vpn: {_('Not locked yet')}: {error.why}.")
            say(_("The lock closes at the next boot, or now: sudo psiphon-vpn start {option}").format(option=OPTION))
    survive_hangup()
    result = installation.configure_package(platform, say=lambda _line: None, close=close)
    _report_findings(platform)
    if result.closed:
        _report_result(platform, result, updated=result.repeated and was_locked)
    elif (sentence := describe_numbers(platform)) is not None:
        say(sentence)
    return 0


def system_deconfigure() -> int:
    """Undo the configuration, for a package before its files go. Opens the network last."""
    need_root("system-deconfigure")
    platform = open_platform()
    survive_hangup()
    try:
        installation.uninstall(platform, say=lambda _line: None)
    except JournalError as error:
        say(str(error))
        return error.exit_code
    return 0
