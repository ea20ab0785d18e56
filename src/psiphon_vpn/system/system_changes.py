# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of accounts, kernel and services."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from psiphon_vpn.system.change import Change, locate
from psiphon_vpn.system.layout import GROUP, KILLSWITCH_UNIT, USER
from psiphon_vpn.system.platform import Platform


@dataclass(frozen=True, kw_only=True)
class AccountMade(Change):
    """The service's user and group, by systemd-sysusers."""

    kind: ClassVar[str] = "account"
    declaration: str
    had_user: bool = False
    had_group: bool = False

    @property
    def key(self) -> str:
        """There is only one."""
        return "account"

    def describe(self) -> str:
        """systemd-sysusers(8)."""
        return f"systemd-sysusers {shlex.quote(self.declaration)}"

    def describe_undo(self) -> str | None:
        """userdel(8)."""
        words = [*([] if self.had_user else [f"userdel {USER}"]), *([] if self.had_group else [f"groupdel {GROUP}"])]
        return "; ".join(words) or None

    def observe(self, platform: Platform) -> Self:
        """Note which of the two exists."""
        user, group = platform.accounts.list_existing()
        return replace(self, had_user=user, had_group=group)

    def is_applied(self, platform: Platform) -> bool:
        """Whether both exist."""
        return platform.accounts.find() is not None

    def apply(self, platform: Platform) -> None:
        """Make them."""
        platform.accounts.make(locate(platform, self.declaration))

    def undo(self, platform: Platform) -> None:
        """Remove those that did not exist."""
        platform.accounts.remove(user=not self.had_user, group=not self.had_group)


DEFAULT: Final = "/conf/default/"
"""Part of the name of a setting for future interfaces."""


@dataclass(frozen=True, kw_only=True)
class SettingWritten(Change):
    """A kernel setting below /proc/sys.

    A new interface gets the value of `default`; IPv4 also gives it to existing interfaces that were never set. Undoing
    must restore each of them, since they do not follow a second time (devinet.c, devinet_copy_dflt_conf). An interface
    that existed before has its own record, which is undone after this one.
    """

    kind: ClassVar[str] = "setting"
    name: str
    value: str
    previous: str | None = None
    """None if this kernel has no such setting."""

    @property
    def key(self) -> str:
        """Its name."""
        return self.name

    def describe(self) -> str:
        """sysctl(8)."""
        return f"sysctl -w {self.name.replace('/', '.')}={self.value}"

    def describe_undo(self) -> str | None:
        """sysctl(8)."""
        return None if self.previous is None else f"sysctl -w {self.name.replace('/', '.')}={self.previous}"

    def observe(self, platform: Platform) -> Self:
        """Note the old value."""
        return replace(self, previous=platform.kernel.read_setting(self.name))

    def is_applied(self, platform: Platform) -> bool:
        """Whether it has the value."""
        return not platform.manager.is_running() or platform.kernel.read_setting(self.name) in {self.value, None}

    def apply(self, platform: Platform) -> None:
        """Write it."""
        platform.kernel.write_setting(self.name, self.value)

    def undo(self, platform: Platform) -> None:
        """Write the old value."""
        if self.previous is None or not platform.manager.is_running():
            return
        platform.kernel.write_setting(self.name, self.previous)
        if DEFAULT in self.name:
            for interface in platform.kernel.list_interfaces():
                name = self.name.replace(DEFAULT, f"/conf/{interface}/")
                if platform.kernel.read_setting(name) == self.value:
                    platform.kernel.write_setting(name, self.previous)


@dataclass(frozen=True, kw_only=True)
class UnitStarted(Change):
    """A unit that runs."""

    kind: ClassVar[str] = "started"
    unit: str
    stays: bool = False
    """Undoing does not stop it: the network managers, which require it, would stop too."""

    @property
    def key(self) -> str:
        """The unit."""
        return self.unit

    def describe(self) -> str:
        """systemctl(1)."""
        return f"systemctl start {self.unit}"

    def describe_undo(self) -> str | None:
        """systemctl(1)."""
        return None if self.stays else f"systemctl stop {self.unit}"

    def observe(self, platform: Platform) -> Self:
        """Nothing to note: a unit that already runs comes from an installation without a record."""
        return self

    def is_applied(self, platform: Platform) -> bool:
        """Whether it runs."""
        return not platform.manager.is_running() or platform.manager.is_active(self.unit)

    def apply(self, platform: Platform) -> None:
        """Start it."""
        platform.manager.start(self.unit)

    def undo(self, platform: Platform) -> None:
        """Stop it."""
        if not self.stays:
            platform.manager.stop(self.unit)


class _Standing(Change):
    """Something that the units or the daemon do. Recorded early so that it is undone late; applying does nothing."""

    @property
    def key(self) -> str:
        """There is only one."""
        return self.kind

    def describe(self) -> str | None:
        """Nothing to do."""
        return None

    def observe(self, platform: Platform) -> Self:
        """Nothing to note."""
        return self

    def is_applied(self, platform: Platform) -> bool:
        """Always."""
        return True

    def apply(self, platform: Platform) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class TablesLoaded(_Standing):
    """The service's tables in the kernel, which units and daemon load. Undoing this opens the machine.

    Recorded first, so that it is undone last.
    """

    kind: ClassVar[str] = "tables"

    def describe_undo(self) -> str:
        """A summary."""
        return "nft delete table ... # the service's tables: this opens"

    def undo(self, platform: Platform) -> None:
        """Open."""
        if platform.manager.is_running():
            platform.kernel.remove_tables()


@dataclass(frozen=True, kw_only=True)
class RoutingMade(_Standing):
    """The TUN, the routing rules and the routing table, which the daemon makes."""

    kind: ClassVar[str] = "ways"

    def describe_undo(self) -> str:
        """A summary."""
        return "ip link del PsiphonTUN; ip rule del ...; ip route flush table ... # the service's"

    def undo(self, platform: Platform) -> None:
        """Remove them."""
        if platform.manager.is_running():
            platform.kernel.remove_routing()


@dataclass(frozen=True, kw_only=True)
class UnitsRead(_Standing):
    """The service's unit files, as systemd has read them."""

    kind: ClassVar[str] = "units-read"

    def describe_undo(self) -> str:
        """A summary."""
        return "systemctl daemon-reload"

    def undo(self, platform: Platform) -> None:
        """Have systemd forget them. Then nothing requires the boot lock's unit any more, and it may be stopped."""
        if not platform.manager.is_running():
            return
        platform.manager.reread()
        if not (platform.layout.unit_dir / KILLSWITCH_UNIT).exists():
            platform.manager.stop(KILLSWITCH_UNIT)


@dataclass(frozen=True, kw_only=True)
class ServiceReread(_Standing):
    """Another service that reads files of the installation: systemd-resolved, systemd-networkd, NetworkManager."""

    kind: ClassVar[str] = "reread"
    unit: str
    verb: str
    """"restart" or "reload": makes the service read them."""

    @property
    def key(self) -> str:
        """The unit."""
        return self.unit

    def describe_undo(self) -> str:
        """systemctl(1)."""
        return f"systemctl try-{self.verb} {self.unit}".replace("try-reload", "reload")

    def undo(self, platform: Platform) -> None:
        """Have it read its files without the installation's, if it runs."""
        reread(platform, self)


def reread(platform: Platform, service: ServiceReread) -> None:
    """Have another service read its files again, if it runs."""
    if platform.manager.is_running() and platform.manager.is_active(service.unit):
        (platform.manager.reload if service.verb == "reload" else platform.manager.restart)(service.unit)
