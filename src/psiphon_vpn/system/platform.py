# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces by which an installation touches the system: small Protocols, so that tests need no machine.

`linux_platform.py` implements them. Both need only the standard library: `uninstall` must work when the packages that
the service depends on are broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from psiphon_vpn.system.layout import Layout


class ServiceManager(Protocol):
    """systemd. If it does not run (an image that is being built), starting and stopping do nothing."""

    def is_running(self) -> bool:
        """Whether this system was booted with systemd (sd_booted(3))."""

    def reread(self) -> None:
        """Read the unit files again."""

    def is_active(self, unit: str) -> bool:
        """Whether the unit runs (for a oneshot: whether it has run successfully)."""

    def start(self, unit: str) -> None:
        """Start the unit and wait until it has started. Raises CommandError."""

    def stop(self, unit: str) -> None:
        """Stop the unit, even one that refuses a manual stop, and wait until it has stopped.

        Does nothing for a unit that does not exist.
        """

    def reload(self, unit: str) -> None:
        """Have the unit read its files again. Raises CommandError."""

    def restart(self, unit: str) -> None:
        """Stop and start the unit. Raises CommandError."""


class Kernel(Protocol):
    """The rules and settings of the kernel."""

    def check_rules(self, text: str) -> str | None:
        """Why nft would not load this text; None if it would. Loads nothing."""

    def load_rules(self, path: Path) -> None:
        """Load a file in one transaction. Raises CommandError; then nothing was changed."""

    def read_setting(self, name: str) -> str | None:
        """A setting below /proc/sys; None if this kernel does not have it."""

    def write_setting(self, name: str, value: str) -> None:
        """Write a setting; does nothing if this kernel does not have it."""

    def list_interfaces(self) -> tuple[str, ...]:
        """The interfaces that have settings of their own."""

    def is_locked(self) -> bool | None:
        """Whether no application can send on a wire, as read from the kernel; None if unknown."""

    def remove_routing(self) -> None:
        """Remove the service's TUN, routing rules and routing table, and only those."""

    def remove_tables(self) -> None:
        """Remove the service's filters of traffic control, then its tables: this opens.

        Raises CommandError if a table remains, and UserError if a filter does; then no table was removed.
        """


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user and a group, by number."""

    uid: int
    gid: int


class Accounts(Protocol):
    """The user and the group of the service."""

    def find(self) -> Account | None:
        """The numbers of psiphon-user and psiphon-group; None unless both exist."""

    def list_existing(self) -> tuple[bool, bool]:
        """Whether the user exists, and whether the group does."""

    def make(self, declaration: Path) -> None:
        """Make them as a sysusers.d file says. Raises CommandError."""

    def remove(self, *, user: bool, group: bool) -> None:
        """Remove one or both; does nothing for one that does not exist. Raises CommandError."""

    def find_network_managers(self) -> tuple[int, ...]:
        """Numbers of the users that may send DHCP."""


class Directories(Protocol):
    """systemd-tmpfiles."""

    def make(self, declaration: Path) -> None:
        """Make what a tmpfiles.d file says. Raises CommandError."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One system, as an installation sees it."""

    layout: Layout
    manager: ServiceManager
    kernel: Kernel
    accounts: Accounts
    directories: Directories
