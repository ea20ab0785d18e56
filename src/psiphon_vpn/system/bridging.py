# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Allows or denies a bridge for root: changes the list and the holder's rules, and has both read again.

The order ensures that a crash between two lines leaves less allowed, never more: a bridge is in force only if list,
wire guard and bridge guard agree.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.network.bridges import MAX_BRIDGES, load_bridges, render_bridges
from psiphon_vpn.policy import names
from psiphon_vpn.policy.guards import render_bridge_rules
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.values import InterfaceName, show_name
from psiphon_vpn.run import CommandError
from psiphon_vpn.system.layout import GUARD_UNIT
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.tree_changes import write_file

MODE: Final = 0o644


def check_name(text: str) -> InterfaceName:
    """A name that a rule can have.

    Raises:
        UserError: it is not, or no bridge can have it.
    """
    name = InterfaceName.of(text)
    if name is None or name in {"lo", names.TUN_NAME}:
        raise UserError(
            _("Nothing was changed"),
            _("{name} cannot be the name of a bridge of guests").format(name=show_name(text)),
            _("See the bridges of this machine: ip link show type bridge"),
        )
    return name


def allow(platform: Platform, name: InterfaceName, *, reread: Callable[[], None]) -> bool:
    """Allow a bridge. Returns whether it was not allowed before.

    Args:
        platform: the system to change.
        name: of the bridge; it need not exist yet.
        reread: has the service read its list again.

    Raises:
        UserError: the kernel cannot guard it, or the guard did not accept it: nothing was changed.
    """
    before = load_bridges(platform.layout.bridges)
    if name in before:
        return False
    if len(before) >= MAX_BRIDGES:
        raise _unchanged(
            _("{count} bridges are allowed already").format(count=len(before)),
            _("Take one back: sudo psiphon-vpn bridge deny NAME"),
        )
    text = _render(platform, (*before, name))
    if (why := platform.kernel.check_rules(text)) is not None:
        raise _unchanged(
            _("this kernel or its nftables cannot guard the ports of a bridge ({why})").format(
                why=textwrap.shorten(why, 200)
            ),
            _("Use a kernel with nf_tables for bridges and with owned tables (Linux 5.12), and nftables 1.0."),
        )
    try:
        # The guards first: the list alone opens nothing.
        _load(platform, text)
    except (CommandError, OSError) as error:
        _load_quietly(platform, _render(platform, before))
        raise _unchanged(
            _("the guard did not accept it ({why})").format(why=_explain(error)),
            _("Read the log: journalctl -b -u {unit}").format(unit=GUARD_UNIT),
        ) from error
    _write_list(platform, (*before, name))
    reread()
    return True


def deny(platform: Platform, name: InterfaceName, *, reread: Callable[[], None]) -> bool:
    """Deny a bridge. Returns whether it was allowed. Arguments as for `allow`.

    Raises:
        UserError: the guard did not accept it. Base rules and list no longer have the bridge.
    """
    before = load_bridges(platform.layout.bridges)
    after = tuple(item for item in before if item != name)
    if after != before:
        _write_list(platform, after)
    reread()
    try:
        _load(platform, _render(platform, after))
    except (CommandError, OSError) as error:
        raise UserError(
            _("The bridge is denied, but the wire guard still has it"),
            _explain(error),
            _("Read the log: journalctl -b -u {unit}").format(unit=GUARD_UNIT),
        ) from error
    return after != before


def _render(platform: Platform, bridges: tuple[InterfaceName, ...]) -> str:
    account = platform.accounts.find()
    if account is None or not platform.layout.guard_rules.exists():
        raise _unchanged(_("the set-up of this computer is damaged"), _("Restore it: sudo psiphon-vpn setup"))
    managers = platform.accounts.find_network_managers()
    identity = Identity(uid=account.uid, gid=account.gid, network_manager_uids=managers)
    return render_bridge_rules(identity, bridges)


def _load(platform: Platform, text: str) -> None:
    write_file(platform.layout.bridge_rules, text.encode(), mode=MODE, uid=0, gid=0)
    if platform.manager.is_running():
        if platform.manager.is_active(GUARD_UNIT):
            platform.manager.reload(GUARD_UNIT)
        else:
            platform.manager.start(GUARD_UNIT)


def _load_quietly(platform: Platform, text: str) -> None:
    try:
        _load(platform, text)
    except (CommandError, OSError):
        return  # the present guard allows no more than before


def _write_list(platform: Platform, bridges: tuple[InterfaceName, ...]) -> None:
    write_file(platform.layout.bridges, render_bridges(bridges).encode(), mode=MODE, uid=0, gid=0)


def _explain(error: CommandError | OSError) -> str:
    return error.why if isinstance(error, CommandError) else error.strerror or type(error).__name__


def _unchanged(why: str, next_step: str) -> UserError:
    return UserError(_("Nothing was changed"), why, next_step)
