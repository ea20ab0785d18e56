# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The real platform: systemd, nft, ip, the account tools. Needs only the standard library and `run`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from psiphon_vpn.accounts import find_group, find_user
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.linux.identity import find_network_managers
from psiphon_vpn.linux.lockstate import read_lock_state
from psiphon_vpn.linux.traffic import remove_filters
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import LAYERS, REMOVAL
from psiphon_vpn.policy.routing import RULE_PRIORITIES
from psiphon_vpn.run import CommandError, run
from psiphon_vpn.system.layout import GROUP, USER, Layout
from psiphon_vpn.system.platform import Account, Platform

UNIT_SECONDS: Final = 120.0
"""Longer than any of the service's units takes to start or to stop, systemd's own limits included."""
SYSTEMCTL_NO_UNIT: Final = 5
RUNTIME_UNITS: Final = Path("/run/systemd/system")
USERDEL_NO_USER, GROUPDEL_NO_GROUP = 6, 6
"""Exit codes: userdel(8), groupdel(8)."""
SCRATCH: Final = names.SCRATCH_TABLES[0]


class Systemctl:
    """systemd by systemctl(1)."""

    def __init__(self, root: Path) -> None:
        self._is_here = root == Path("/")

    def is_running(self) -> bool:
        """sd_booted(3); another root is never running."""
        return self._is_here and RUNTIME_UNITS.is_dir()

    def reread(self) -> None:
        """daemon-reload."""
        self._online("daemon-reload")

    def is_active(self, unit: str) -> bool:
        """is-active."""
        return self.is_running() and run(["systemctl", "is-active", "--quiet", unit], ok=range(256)).returncode == 0

    def start(self, unit: str) -> None:
        """Start, after resetting the unit's failure count."""
        self._reset(unit)
        self._online("start", unit)

    def stop(self, unit: str) -> None:
        """Stop. For a unit that refuses this (RefuseManualStop=), a temporary drop-in allows it."""
        if not self.is_running():
            return
        shown = run(["systemctl", "show", "--property=RefuseManualStop", unit]).stdout.strip()
        if shown == "RefuseManualStop=yes":
            with self._allow_stop(unit):
                self._online("stop", unit)
        else:
            self._online("stop", unit, ok=(0, SYSTEMCTL_NO_UNIT))
        self._reset(unit)

    @contextlib.contextmanager
    def _allow_stop(self, unit: str) -> Iterator[None]:
        dropin = RUNTIME_UNITS / f"{unit}.d" / "psiphon-vpn-stop.conf"
        dropin.parent.mkdir(parents=True, exist_ok=True)
        dropin.write_text("[Unit]\nRefuseManualStop=no\n", encoding="ascii")
        try:
            self.reread()
            yield
        finally:
            dropin.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                dropin.parent.rmdir()
            self.reread()

    def reload(self, unit: str) -> None:
        """Reload."""
        self._online("reload", unit)

    def restart(self, unit: str) -> None:
        """Restart."""
        self._reset(unit)
        self._online("restart", unit)

    def _reset(self, unit: str) -> None:
        self._online("reset-failed", unit, ok=range(256))

    def _online(self, *words: str, ok: Iterable[int] = (0,)) -> None:
        if self.is_running():
            run(["systemctl", *words], ok=tuple(ok), timeout=UNIT_SECONDS)


class LinuxKernel:
    """Rules by nft(8), routes by ip(8), settings by /proc/sys."""

    def __init__(self) -> None:
        self._settings = Path("/proc/sys")

    def check_rules(self, text: str) -> str | None:
        """`nft -c`, with other table names: nft cannot even check a table that its holder owns."""
        for table in LAYERS:
            text = text.replace(f" {table.name} {{", f" {SCRATCH} {{").replace(f" {table.name}\n", f" {SCRATCH}\n")
        try:
            run(["nft", "-c", "-f", "-"], input=text)
        except CommandError as error:
            return error.why
        return None

    def load_rules(self, path: Path) -> None:
        """`nft -f`."""
        run(["nft", "-f", str(path)])

    def read_setting(self, name: str) -> str | None:
        """Read a file below /proc/sys."""
        try:
            return (self._settings / name).read_text(encoding="ascii").strip()
        except OSError:
            return None

    def write_setting(self, name: str, value: str) -> None:
        """Write a file below /proc/sys."""
        with contextlib.suppress(FileNotFoundError):
            (self._settings / name).write_text(value, encoding="ascii")

    def list_interfaces(self) -> tuple[str, ...]:
        """Directories below net/ipv4/conf."""
        with contextlib.suppress(OSError):
            found = {path.name for path in (self._settings / "net/ipv4/conf").iterdir()}
            return tuple(sorted(found - {"all", "default", names.TUN_NAME}))
        return ()

    def is_locked(self) -> bool | None:
        """Run sample packets through the kernel's rules."""
        return read_lock_state().locked

    def remove_routing(self) -> None:
        """Remove what the daemon made besides the tables."""
        for version in ("-4", "-6"):
            for rule in _list_json(["ip", version, "-j", "rule", "show"]):
                if (selector := find_own_rule(rule)) is not None:
                    run(["ip", version, "rule", "del", *selector], ok=(0, 2))
            run(["ip", version, "route", "flush", "table", str(names.ROUTE_TABLE)], ok=(0, 1, 2))
        for link in _list_json(["ip", "-j", "-d", "link", "show", "dev", names.TUN_NAME]):
            # Another program's device may have the name: it stays.
            if link.get("linkinfo", {}).get("info_kind") == "tun":
                run(["ip", "link", "del", "dev", names.TUN_NAME], ok=(0, 1))

    def remove_tables(self) -> None:
        """Remove each in a transaction that succeeds even if it is absent: `destroy` needs nft 1.0.7.

        The filters go first. They require the mark of two of the tables: a filter that stayed would let nothing out.
        """
        try:
            remove_filters()
        except OSError as error:
            raise UserError(
                _("The network was not opened"),
                _("a filter of traffic control could not be removed ({reason})").format(reason=error.strerror),
                _("Find it with: tc filter show dev INTERFACE egress"),
            ) from error
        standing = {line.strip() for line in run(["nft", "list", "tables"]).stdout.splitlines()}
        for table in REMOVAL:
            if f"table {table}" in standing:
                run(["nft", "-f", "-"], input=f"table {table}\ndelete table {table}\n")


def find_own_rule(rule: dict[str, Any]) -> list[str] | None:
    """The arguments of `ip rule del` for a rule that the daemon made; None for another program's rule.

    Args:
        rule: one object of `ip -j rule show` (iproute.c, print_rule of iprule.c).
    """
    priority, table = rule.get("priority"), str(rule.get("table"))
    if priority not in RULE_PRIORITIES or table not in {str(names.ROUTE_TABLE), "main", "254"}:
        return None
    words = ["priority", str(priority), "table", table]
    if rule.get("dst"):
        words += ["to", f"{rule['dst']}/{rule['dstlen']}" if rule.get("dstlen") else str(rule["dst"])]
    for key, word in (("iif", "iif"), ("oif", "oif"), ("fwmark", "fwmark"), ("ipproto", "ipproto"), ("dport", "dport")):
        if rule.get(key) is not None:
            # Without /etc/protocols, ip prints "ipproto-17" and does not accept it as input.
            words += [word, str(rule[key]).removeprefix("ipproto-")]
    if rule.get("uid_start") is not None:
        words += ["uidrange", f"{rule['uid_start']}-{rule['uid_end']}"]
    # The daemon's rules to the main table always have a selector; one without is another program's.
    is_ours = table == str(names.ROUTE_TABLE) or len(words) > 4
    return words if is_ours else None


def _list_json(argv: list[str]) -> list[dict[str, Any]]:
    done = run(argv, ok=(0, 1, 2))
    try:
        listed = json.loads(done.stdout or "[]")
    except ValueError:
        return []
    return [entry for entry in listed if isinstance(entry, dict) and entry]


class SystemAccounts:
    """Accounts by systemd-sysusers(8), userdel(8) and groupdel(8)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = [] if root == Path("/") else ["--prefix", str(root)]

    def find(self) -> Account | None:
        """Look both up."""
        user, group = find_user(USER, root=self._root), find_group(GROUP, root=self._root)
        return None if user is None or group is None else Account(uid=user.uid, gid=group)

    def list_existing(self) -> tuple[bool, bool]:
        """Look both up."""
        return find_user(USER, root=self._root) is not None, find_group(GROUP, root=self._root) is not None

    def make(self, declaration: Path) -> None:
        """systemd-sysusers with the given file only."""
        root = [f"--root={self._root}"] if self._prefix else []
        run(["systemd-sysusers", *root, str(declaration)], timeout=30)

    def remove(self, *, user: bool, group: bool) -> None:
        """The user first: a user's primary group cannot be removed."""
        if user:
            run(["userdel", *self._prefix, USER], ok=(0, USERDEL_NO_USER), timeout=30)
        if group and find_group(GROUP, root=self._root) is not None:
            run(["groupdel", *self._prefix, GROUP], ok=(0, GROUPDEL_NO_GROUP), timeout=30)

    def find_network_managers(self) -> tuple[int, ...]:
        """From this machine's accounts."""
        return find_network_managers()


class Tmpfiles:
    """Directories by systemd-tmpfiles(8)."""

    def __init__(self, root: Path) -> None:
        self._root = [] if root == Path("/") else [f"--root={root}"]

    def make(self, declaration: Path) -> None:
        """systemd-tmpfiles with the given file only."""
        run(["systemd-tmpfiles", *self._root, "--create", str(declaration)], timeout=30)


def open_platform(layout: Layout | None = None) -> Platform:
    """The platform of this machine, or of the tree at another root."""
    layout = layout or Layout()
    return Platform(
        layout=layout,
        manager=Systemctl(layout.root),
        kernel=LinuxKernel(),
        accounts=SystemAccounts(layout.root),
        directories=Tmpfiles(layout.root),
    )
