# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`install` from a clone, `setup` after a package, and the two commands that the package itself calls.

Everything that a removal needs is imported at the top, since later the files may be gone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from psiphon_vpn.cli import managing, starting
from psiphon_vpn.cli.starting import say
from psiphon_vpn.cli.status_readers import describe_readers
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system import install as installation
from psiphon_vpn.system.compiling import compile_installed
from psiphon_vpn.system.distribution import find_removal
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.linux_platform import open_platform
from psiphon_vpn.system.person import find_person
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.removal import is_lock_recorded
from psiphon_vpn.system.sessions import OPTION, RemoteSessionsError
from psiphon_vpn.system.set_up import SetUp, find_set_up
from psiphon_vpn.system.stage import JournalError

Act = Callable[[Callable[[], bool] | None], installation.InstallResult]
"""Makes the changes; is given what installs core and list, and returns whether they are different now."""


def install(commands: click.Group, *, cut_remote: bool, dry_run: bool, **options: Any) -> int:
    """Install from a clone. options: as `provisions.Wishes`."""
    managing.need_root("install")
    platform = open_platform()
    if (removal := find_removal()) is not None:
        raise UserError(
            _("Nothing was installed"),
            _("this program was installed by this system's package manager, which keeps it up to date"),
            _(
                "To repair what acts on this system: sudo psiphon-vpn setup. To install from here instead, remove the "
                "package first, which opens the network: sudo {command}"
            ).format(command=removal),
        )
    from psiphon_vpn.system.acting import collect_acting_files
    from psiphon_vpn.system.payload import collect_payload

    def act(bring: Callable[[], bool] | None) -> installation.InstallResult:
        return installation.install_clone(
            platform,
            collect_payload(commands),
            collect_acting_files(),
            say=say if dry_run else lambda _line: None,
            bring=bring,
            dry_run=dry_run,
        )

    return ask_and_set_up(platform, act, cut_remote=cut_remote, dry_run=dry_run, options=options)


def setup(*, cut_remote: bool, dry_run: bool, **options: Any) -> int:
    """Lock this machine and connect: what `install` does, after a package has brought the program.

    options: as `provisions.Wishes`.
    """
    managing.need_root("setup")
    platform = open_platform()
    from psiphon_vpn.system.acting import collect_acting_files

    def act(bring: Callable[[], bool] | None) -> installation.InstallResult:
        return installation.set_up(
            platform,
            collect_acting_files(),
            say=say if dry_run else lambda _line: None,
            bring=bring,
            dry_run=dry_run,
        )

    return ask_and_set_up(platform, act, cut_remote=cut_remote, dry_run=dry_run, options=options)


def ask_and_set_up(platform: Platform, act: Act, *, cut_remote: bool, dry_run: bool, options: Mapping[str, Any]) -> int:
    """Explain, ask two questions at most, gather core and list while the network is open, and then lock.

    Args:
        platform: the system to change.
        act: makes the changes.
        cut_remote: connections from outside may end.
        dry_run: only show.
        options: as `provisions.Wishes`.

    Raises:
        UserError: as `installation.install_clone`, or what was given is refused, and nothing was changed.
    """
    managing.need_systemd(platform)
    from psiphon_vpn.cli import provisions

    layout, wishes = platform.layout, provisions.Wishes(**options)
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(provisions.gather_given(layout, wishes))
        managing.explain_install(platform)
        if not dry_run:
            starting.check_sessions(platform, cut_remote=cut_remote)
            if not wishes.yes and not click.confirm(_("Go on?"), default=False, err=True):
                raise click.Abort
            is_locked = platform.kernel.is_locked() is True
            found = stack.enter_context(provisions.gather_rest(layout, found, wishes, is_locked=is_locked))
        starting.survive_hangup()
        if not dry_run:
            say(_("Setting this computer up. This takes some seconds, on a slow computer longer."))
        bring = None
        if found.core is not None or found.server_list is not None:
            bring = functools.partial(found.install, layout)
            if not dry_run and find_set_up(layout) is SetUp.YES:
                # Its places are there: what is refused now leaves the set-up as it is, done.
                changed = bring()
                bring = functools.partial(bool, changed)
        result = act(bring)
    if dry_run:
        say(_("Nothing was changed."))
        return 0
    is_connecting = report_result(platform, result)
    if is_connecting and not wishes.offline:
        # A set-up that was made stays made: Ctrl-C ends only the waiting.
        with contextlib.suppress(KeyboardInterrupt):
            say(await_tunnel(layout))
    return 0


def await_tunnel(layout: Layout) -> str:
    """Wait a while for the first tunnel; returns a sentence that says how it went."""
    from psiphon_vpn import client
    from psiphon_vpn.cli import waiting

    watch = functools.partial(client.watch_status, layout.runtime_dir, refresh=waiting.POLL_SECONDS)
    return waiting.describe_end_of_set_up(watch)


def report_result(platform: Platform, result: installation.InstallResult, *, updated: bool = False) -> bool:
    """Say what was done, and what is left to do; returns whether the service has what it needs to connect."""
    from psiphon_vpn.cli import provisions

    missing = provisions.find_lasting_lack(platform.layout)
    if updated:
        say(_("This version is installed and runs now; the machine stayed locked meanwhile."))
    elif result.repeated and not result.changes and missing:
        say(_("Nothing was changed."))
    elif result.repeated and not result.changes:
        say(_("There was nothing to do: everything is installed as it should be."))
    elif result.repeated:
        say(_("Installed. Changes that were necessary: {count}.").format(count=result.changes))
    else:
        say(_("Installed, and locked: from now on nothing leaves this computer except through the tunnel."))
    if (sentence := managing.describe_numbers(platform)) is not None:
        say(sentence)
    if missing:
        if missing.core:
            text = _("This computer stays offline without {what}. Bring a file that has it:")
            say(text.format(what=missing.describe()))
        else:
            # The configuration may name a server, and the tunnel program may remember some.
            say(_("There is no list of servers. Unless a server is known already, bring a file that has one:"))
        say("    sudo psiphon-vpn setup --bundle FILE")
    else:
        if (known := provisions.describe_list(platform.layout)) is not None:
            say(known)
        say(_("The service connects now, by itself, and again at every start of this computer."))
    if not updated:
        say(describe_readers(platform.layout, find_person()))
    say(_("To see the state: psiphon-vpn status"))
    return not missing


def system_configure(*, cut_remote: bool) -> int:
    """After a package's files are in place. Changes nothing on a machine that was never set up; asks nothing."""
    managing.need_root("system-configure")
    platform = open_platform()
    compile_installed(platform.layout)
    found = find_set_up(platform.layout)
    record = installation.read_record(platform)
    if record is None or (found is SetUp.UNFINISHED and not is_lock_recorded(record.changes)):
        if found is SetUp.UNFINISHED:
            # For whoever began it to finish: it has questions. Until then this machine is as it was, or boots locked.
            say(_("The program is installed. The set-up was begun and did not come to its end."))
        else:
            say(_("The program is installed. Nothing about this computer's network was changed; nothing is locked."))
        say(_("To set it up: sudo psiphon-vpn setup"))
        return 0
    close = platform.manager.is_running()
    was_locked = close and platform.kernel.is_locked() is True
    if close:
        try:
            starting.check_sessions(platform, cut_remote=cut_remote)
        except RemoteSessionsError as error:
            close = False
            say(f"psiphon-vpn: {_('Not locked yet')}: {error.why}.")
            say(_("The lock closes at the next boot, or now: sudo psiphon-vpn start {option}").format(option=OPTION))
    from psiphon_vpn.system.acting import collect_acting_files

    starting.survive_hangup()
    result = installation.configure_package(platform, collect_acting_files(), say=lambda _line: None, close=close)
    managing.report_findings(platform)
    if result.closed:
        report_result(platform, result, updated=result.repeated and was_locked)
    elif (sentence := managing.describe_numbers(platform)) is not None:
        say(sentence)
    return 0


def system_deconfigure() -> int:
    """Before a package's files go: undo the set-up. Opens the network last, and says so before and after."""
    managing.need_root("system-deconfigure")
    platform = open_platform()
    starting.survive_hangup()
    try:
        if installation.read_record(platform) is not None:
            say(_("psiphon-vpn is being removed: this opens the network, for everything on this computer."))
        if installation.uninstall(platform, say=lambda _line: None):
            say(_("Removed. The network is open. The configuration stays in /etc/psiphon-vpn."))
    except JournalError as error:
        say(str(error))
        return error.exit_code
    return 0
