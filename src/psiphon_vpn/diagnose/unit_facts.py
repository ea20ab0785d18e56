# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Systemd's properties of the service's units and of the network managers."""

from __future__ import annotations

from typing import Final

from psiphon_vpn import network_managers
from psiphon_vpn.diagnose.basic_facts import BasicFacts
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.i18n import _
from psiphon_vpn.system import layout as places

OTHER_UNITS: Final = (
    "systemd-resolved.service",
    "nftables.service",
    "firewalld.service",
    "ufw.service",
    "docker.service",
    "libvirtd.service",
    "network-pre.target",
)
MANAGERS: Final = tuple(name for name in network_managers.UNITS if "@" not in name)
PROPERTIES: Final = (
    "Id LoadState ActiveState SubState UnitFileState Result MainPID FragmentPath DropInPaths NeedDaemonReload Before "
    "After Wants WantedBy Requires Restart WatchdogUSec ActiveEnterTimestampMonotonic ExecMainStartTimestampMonotonic"
).split()


class UnitFacts:
    """Units by name, each a map of systemd's own properties."""

    def __init__(self, facts: BasicFacts) -> None:
        self._facts = facts

    def _read_all(self) -> dict[str, dict[str, str]]:
        wanted = (*places.UNIT_FILES, *MANAGERS, *OTHER_UNITS)
        answer = self._facts.system.run(["systemctl", "show", f"--property={','.join(PROPERTIES)}", "--", *wanted])
        if not answer.good:
            reason = " ".join((answer.trouble or answer.err).split())[:200]
            raise Unknowable(_("systemctl does not answer ({reason})").format(reason=reason))
        found = {}
        # One block for each requested unit, in that order; `Id` of an alias is another name.
        for name, block in zip(wanted, answer.out.strip("\n").split("\n\n"), strict=False):
            found[name] = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        return found

    def need_systemd(self) -> None:
        """Skip if systemd is not the service manager."""
        if not self._facts.exists(self._facts.at("/run/systemd/system")):
            raise Skip(_("this system was not booted with systemd"))

    def read(self, name: str) -> dict[str, str]:
        """A unit's properties; empty if systemd does not know it."""
        self.need_systemd()
        return self._facts.once("systemctl show", self._read_all).get(name, {})

    def need_installed(self, name: str) -> dict[str, str]:
        """The same for a unit of the service; skips if nothing is installed."""
        self._facts.need_installed()
        return self.read(name)

    def is_active(self, name: str) -> bool:
        """Whether a unit runs or has run successfully."""
        return self.read(name).get("ActiveState") in {"active", "reloading", "activating"}
