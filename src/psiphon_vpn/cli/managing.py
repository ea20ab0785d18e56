# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of the commands in `manage`.

Everything that `uninstall` needs is imported at the top, since later the files may be gone.
"""

from __future__ import annotations

import os

import click

from psiphon_vpn.cli import starting
from psiphon_vpn.cli.starting import say
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
from psiphon_vpn.system.journal import Journal, Method
from psiphon_vpn.system.linux_platform import open_platform
from psiphon_vpn.system.next_step import Need, advise
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.set_up import SetUp, find_set_up


def need_root(command: str) -> None:
    """Raise NotRootError for other users."""
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


def need_systemd(platform: Platform) -> None:
    """Raise UserError if systemd does not run."""
    if not platform.manager.is_running():
        raise UserError(
            _("The service cannot be managed here"),
            _("this system was not started by systemd"),
            _("Use a computer or a virtual machine with systemd."),
        )


def report_findings(platform: Platform) -> None:
    """Say what else on this machine deals with the network, and what it means to have both."""
    account = platform.accounts.find()
    taker = find_name_taker(account.uid if account is not None else None)
    for finding in (
        *find_other_firewalls(platform.manager),
        *find_ownerless_links(),
        *describe_refused_logins(),
        *([taker] if taker is not None else []),
    ):
        say(_("Found {name}. {meaning}").format(name=finding.name, meaning=finding.meaning))


def explain_install(platform: Platform) -> None:
    """Say what the lock means, before anybody agrees to it."""
    for line in (
        _("This installs the Psiphon VPN service on this computer:"),
        _(
            "- From now on nothing leaves this computer except through Psiphon's tunnel, even when the service is "
            "stopped, broken or updated, and from the first moment of every start of the computer."
        ),
        _("- Printers, network disks and everything else on the local network are out of reach. Ping does not work."),
        _("- Nobody reaches this computer from outside, not even over SSH."),
        _("- Every change is recorded first; 'sudo psiphon-vpn uninstall' undoes them all."),
    ):
        say(line)
    report_findings(platform)


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


def uninstall(*, yes: bool, dry_run: bool) -> int:
    """Undo the journal."""
    need_root("uninstall")
    platform = open_platform()
    record, removal = Journal(platform).read(), find_removal()
    if record is None:
        say(_("Nothing is set up here."))
        if removal is not None:
            say(_("To remove the program: sudo {command}").format(command=removal))
        return 0
    if record.method is Method.PACKAGE:
        say(
            _(
                "This undoes the set-up: it removes the service's data and its tunnel program, keeps the "
                "configuration, and then opens the network: everything on this computer can then reach the internet "
                "without the tunnel, as before."
            )
        )
    else:
        say(
            _(
                "This removes the service, its configuration, its data and its tunnel program, and then opens the "
                "network: everything on this computer can then reach the internet without the tunnel, as before."
            )
        )
    if not dry_run and not yes and not click.confirm(_("Go on?"), default=False, err=True):
        raise click.Abort
    starting.survive_hangup()
    installation.uninstall(platform, say=say if dry_run else lambda _line: None, dry_run=dry_run)
    say(_("Nothing was changed.") if dry_run else _("Removed. The network is open, as it was before."))
    if removal is not None:
        say(
            _("The program itself is still there; it changes nothing. To remove it: sudo {command}").format(
                command=removal
            )
        )
    return 0


def release() -> int:
    """Open the network, after the user has typed a word."""
    need_root("release")
    platform = open_platform()
    if find_set_up(platform.layout) is SetUp.NO and platform.kernel.is_locked() is not True:
        advice = advise(Need.SERVICE, platform.layout)
        raise UserError(_("Nothing was opened"), _("this computer is not set up, and nothing is locked"), advice.step)
    need_systemd(platform)
    say(
        _(
            "This opens the network: programs on this computer then send without the tunnel, and whoever watches your "
            "connection sees it. It lasts until 'start' or until the next boot."
        )
    )
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
