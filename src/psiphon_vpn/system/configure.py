# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of an installation after its files are in place, the same for a clone and for a package.

The order matters. Steps that can fail without the lock come first and change nothing that a person would notice; then
the lock closes; then everything else. The tables are recorded first, so that they are undone last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.network.bridges import load_bridges, render_bridges
from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_frame_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.missing_parts import Part, do_without
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.run import CommandError
from psiphon_vpn.system import released
from psiphon_vpn.system.change import Change
from psiphon_vpn.system.config_owner import restore_owner
from psiphon_vpn.system.journal import Ledger
from psiphon_vpn.system.layout import GUARD_UNIT, KILLSWITCH_UNIT, SERVERS_TIMER, SERVICE_UNIT, Layout
from psiphon_vpn.system.person import find_person, render_readers
from psiphon_vpn.system.platform import Account, Platform
from psiphon_vpn.system.system_changes import (
    DEFAULT,
    AccountMade,
    RoutingMade,
    ServiceReread,
    SettingWritten,
    TablesLoaded,
    UnitsRead,
    UnitStarted,
    reread,
)
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten

READERS: Final = (
    *(ServiceReread(unit=manager.units[0], verb=manager.reread) for manager in MANAGERS if manager.reread is not None),
    ServiceReread(unit=released.RESOLVED_UNIT, verb="restart"),
)
"""Services that read files of the installation."""
UNKNOWN_ACCOUNT: Final = Account(uid=0, gid=0)
"""Stands for psiphon-user in a dry run on a machine without it; nothing is rendered with it."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The texts that root loads without Python, for this machine."""

    boot: str
    guard: str
    frames: str
    bridges: str
    drop: str


def render_rules(
    account: Account,
    network_managers: tuple[int, ...],
    *,
    lacking: frozenset[Part] = frozenset(),
    bridges: tuple[InterfaceName, ...] = (),
) -> Rules:
    """Render the rules with this machine's numbers: names do not resolve at boot, when the rules are loaded.

    Args:
        account: psiphon-user.
        network_managers: uids that may send DHCP.
        lacking: mechanisms that this machine's nft or kernel does not have.
        bridges: the bridges that root allowed.
    """
    identity = Identity(uid=account.uid, gid=account.gid, network_manager_uids=network_managers)
    base = do_without(build_base_table(Policy(state=State.LOCKED, identity=identity)), lacking)
    return Rules(
        boot=base.render_replacement(),
        guard=build_wire_guard(identity).render_replacement(),
        frames=build_frame_guard(identity).render_replacement(),
        bridges=render_bridge_rules(identity, bridges),
        drop=build_drop_only(base).render_replacement(),
    )


def record_lock(ledger: Ledger) -> None:
    """Record first what is undone last: the tables, the routing, and which services have read files of ours."""
    ledger.record_only(TablesLoaded(), RoutingMade(), *READERS, UnitsRead())


def prepare(ledger: Ledger) -> Account:
    """Make account, directories and rules. Nothing is locked yet.

    Raises:
        UserError: it cannot be done; what was done is recorded.
    """
    platform, layout = ledger.platform, ledger.platform.layout
    declaration = _target(layout, layout.sysusers)
    ledger.do(AccountMade(declaration=declaration))
    account = platform.accounts.find()
    if account is None:
        if not ledger.dry_run:
            raise _failed(_("the user psiphon-user could not be made"), _("See: journalctl -t systemd-sysusers"))
        account = UNKNOWN_ACCOUNT
    ledger.do(*_list_directories(layout, account))
    if layout.tmpfiles.exists() or ledger.dry_run:
        ledger.act(
            f"systemd-tmpfiles --create {_target(layout, layout.tmpfiles)}",
            lambda: platform.directories.make(layout.tmpfiles),
        )
    config = FileWritten(
        path=_target(layout, layout.config),
        mode=0o600,
        uid=account.uid,
        gid=account.gid,
        kept=True,
        content=layout.config_template.read_bytes() if layout.config_template.is_file() else b"",
    )
    readers = FileWritten(
        path=_target(layout, layout.readers), mode=0o644, kept=True, content=render_readers(find_person()).encode()
    )
    bridges = FileWritten(
        path=_target(layout, layout.bridges), mode=0o644, kept=True, content=render_bridges(()).encode()
    )
    ledger.do(config, readers, bridges)
    if not ledger.dry_run:
        ledger.count(restore_owner(layout.config, account, root_uid=layout.root.stat().st_uid))
    _write_rules(ledger, account)
    return account


def _list_directories(layout: Layout, account: Account) -> tuple[Change, ...]:
    def make(path: str, mode: int = 0o755, owner: Account | None = None) -> DirectoryMade:
        uid, gid = (owner.uid, owner.gid) if owner else (0, 0)
        return DirectoryMade(path=path, mode=mode, uid=uid, gid=gid)

    return (
        make(_target(layout, layout.rules_dir)),
        make(_target(layout, layout.config_dir)),
        make(_target(layout, layout.core_dir)),
        make(_target(layout, layout.servers_dir)),
        make(_target(layout, layout.state_dir), 0o700, account),
    )


def _write_rules(ledger: Ledger, account: Account) -> None:
    platform, layout = ledger.platform, ledger.platform.layout
    managers = platform.accounts.find_network_managers()
    bridges = load_bridges(layout.bridges)
    rules = render_rules(account, managers, bridges=bridges)
    if platform.manager.is_running() and platform.kernel.check_rules(rules.boot) is not None:
        # The only part of the boot rules that some kernels lack; if another is missing, the check below says so.
        rules = render_rules(account, managers, lacking=frozenset({Part.REJECT}), bridges=bridges)
    for path, text in ((layout.boot_rules, rules.boot), (layout.drop_rules, rules.drop)):
        ledger.act(f"nft -c -f {_target(layout, path)}", functools.partial(_check, platform, text))
    ledger.do(
        *(
            FileWritten(path=_target(layout, path), mode=0o644, content=text.encode())
            for path, text in (
                (layout.boot_rules, rules.boot),
                (layout.drop_rules, rules.drop),
                (layout.guard_rules, rules.guard),
                (layout.frame_rules, rules.frames),
                (layout.bridge_rules, rules.bridges),
            )
        )
    )


def _check(platform: Platform, text: str) -> None:
    if platform.manager.is_running() and (why := platform.kernel.check_rules(text)) is not None:
        raise _failed(
            _("this kernel or its nftables does not accept the rules ({why})").format(why=why),
            _("Install the package 'nftables', version 0.9.3 or later, and check that the kernel has nf_tables."),
        )


def close_lock(ledger: Ledger, *, undisturbed: bool = False) -> None:
    """Close the lock now and at every boot. From here on only `release` and the removal open.

    Args:
        ledger: the operation.
        undisturbed: leave a lock that is closed according to the kernel, and a tunnel that is open, as they are.

    Raises:
        UserError: it could not be closed; says what holds.
    """
    platform = ledger.platform
    ledger.act("systemctl daemon-reload", platform.manager.reread)
    ledger.do(UnitStarted(unit=KILLSWITCH_UNIT, stays=True))
    ledger.do(UnitStarted(unit=GUARD_UNIT))
    if not ledger.dry_run and not (undisturbed and platform.kernel.is_locked() is True):
        # An active oneshot says nothing about the present rules: load them again, in one transaction.
        relock(platform)


def relock(platform: Platform) -> None:
    """Load the boot rules and make sure that the wire guard stands. Never opens: one table replaces the other.

    It does not restart the boot unit: the network managers, which require it, would be restarted too.

    Raises:
        UserError: the machine is not locked according to the kernel.
    """
    if not platform.manager.is_running():
        return
    layout = platform.layout
    try:
        platform.kernel.load_rules(layout.boot_rules)
    except CommandError as error:
        platform.kernel.load_rules(layout.drop_rules)
        raise _failed(
            _("the rules could not be loaded ({why}), so everything is dropped").format(why=error.why),
            _("Run it again; to see the reason: sudo nft -c -f {path}").format(path=layout.boot_rules),
        ) from error
    for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
        if not platform.manager.is_active(unit):
            platform.manager.start(unit)
    released.clear(platform)
    if platform.kernel.is_locked() is not True:
        raise _failed(
            _("the rules were loaded, but the kernel does not have them"),
            _("See: sudo nft list ruleset"),
        )


def find_running(platform: Platform) -> frozenset[str]:
    """Which of guard and service run now, and must take over new files."""
    return frozenset(unit for unit in (GUARD_UNIT, SERVICE_UNIT) if platform.manager.is_active(unit))


def start_service(ledger: Ledger, *, renew: frozenset[str] = frozenset(), undisturbed: bool = False) -> None:
    """Set the kernel's settings for the service and start it.

    Args:
        ledger: the operation.
        renew: which of guard and service ran before and must take over new files.
        undisturbed: nothing is new, so other services need not read it.
    """
    manager = ledger.platform.manager
    ledger.do(*list_settings(ledger))
    if not undisturbed:
        _reread_files(ledger)
    # One after the other, while the base table stands: it alone stops everything.
    failure: CommandError | None = None
    if GUARD_UNIT in renew:
        try:
            ledger.act(f"systemctl reload {GUARD_UNIT}", lambda: manager.reload(GUARD_UNIT))
        except CommandError as error:
            failure = error  # the guards from before stand; the new service must not be left out for that
    ledger.do(UnitStarted(unit=SERVICE_UNIT))
    if SERVICE_UNIT in renew:
        ledger.act(f"systemctl restart {SERVICE_UNIT}", lambda: manager.restart(SERVICE_UNIT))
    ledger.do(UnitStarted(unit=SERVERS_TIMER))
    if failure is not None:
        raise failure


def list_settings(ledger: Ledger) -> tuple[SettingWritten, ...]:
    """The kernel's settings; first those of the interfaces that exist when `default` is written for the first time.

    Afterwards all interfaces have the new value, and their earlier values can no longer be read.
    """
    changes = [SettingWritten(name=name, value=value) for name, value in GLOBAL_SYSCTLS.items()]
    recorded = {change.key for change in ledger.record.changes if isinstance(change, SettingWritten)}
    own = []
    for change in changes:
        if DEFAULT in change.name:
            found = [
                change.name.replace(DEFAULT, f"/conf/{name}/") for name in ledger.platform.kernel.list_interfaces()
            ]
            known = change.name in recorded
            own += [replace(change, name=name) for name in found if not known or name in recorded]
    return (*own, *changes)


def enable_for_boot(ledger: Ledger) -> None:
    """Close at the next boot, and change nothing now. The units start if the rules exist."""
    ledger.act("systemctl daemon-reload", ledger.platform.manager.reread)


def _reread_files(ledger: Ledger) -> None:
    """Have other services read the installation's files, now that this cannot open anything."""
    for reader in READERS:
        if ledger.platform.manager.is_active(reader.unit):
            ledger.act(f"systemctl {reader.verb} {reader.unit}", functools.partial(reread, ledger.platform, reader))


def _target(layout: Layout, path: object) -> str:
    """A path without the layout's root."""
    return "/" + str(path).removeprefix(str(layout.root)).lstrip("/")


def _failed(why: str, next_step: str) -> UserError:
    return UserError(_("The lock could not be set up"), why, next_step)
