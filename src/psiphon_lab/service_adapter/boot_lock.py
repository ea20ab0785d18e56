# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock as it is at boot, before there is a daemon: the boot rules, and the guards that the holder loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psiphon_lab.service_adapter.names import BRIDGE_GUARD
from psiphon_vpn.linux.identity import find_network_managers
from psiphon_vpn.linux.traffic import remove_filters
from psiphon_vpn.network.bridges import render_bridges
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_frame_guard, build_wire_guard, render_bridge_rules
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.values import InterfaceName, parse_names

__all__ = ["Identity", "InterfaceName", "remove_filters", "render_bridges"]


@dataclass(frozen=True, kw_only=True)
class GuardRules:
    """What the holder receives.

    Attributes:
        files: rules by file name, each included by a command of its own, so that one that the kernel refuses does not
            prevent the others.
        commands: further commands.
    """

    files: dict[str, str]
    commands: tuple[str, ...] = ()


def make_identity(uid: int) -> Identity:
    """psiphon-user and psiphon-group, with the same number, and the network managers of this machine."""
    return Identity(uid=uid, gid=uid, network_manager_uids=find_network_managers())


def render_boot_rules(identity: Identity) -> str:
    """The base table at boot, for `nft -f`."""
    return build_base_table(Policy(state=State.LOCKED, identity=identity)).render_replacement()


def render_guards(
    identity: Identity, *, cards: Sequence[str], bridges: Sequence[InterfaceName], replacing: bool, bridge_guard: bool
) -> GuardRules:
    """The guards of the holder.

    Args:
        identity: psiphon-user.
        cards: the machine's cards, plugged in or not.
        bridges: the bridges that root has allowed.
        replacing: whether the holder has older guards, which each table replaces in one transaction.
        bridge_guard: whether there is a bridge guard now.
    """
    tables = build_wire_guard(identity), build_frame_guard(identity, parse_names(*cards))
    files = {f"{table.name}.nft": (_render_removal(table) if replacing else "") + table.render() for table in tables}
    if bridges:
        files["bridges.nft"] = render_bridge_rules(identity, tuple(bridges))
    removed = replacing and bridge_guard and not bridges
    return GuardRules(files=files, commands=(f"delete table {BRIDGE_GUARD}",) if removed else ())


def _render_removal(table: Table) -> str:
    # In one transaction with the new table: the old one is gone when the new one is there, and not earlier.
    address = f"{table.family} {table.name}"
    return f"table {address} {{\n\tflags {table.flags}\n}}\ndelete table {address}\n"
