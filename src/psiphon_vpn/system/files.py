# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files for other programs of the system: users, directories, kernel settings, drop-ins. Each with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.resources import render_resource

_HEADING: Final = "# From psiphon-vpn; reinstalled with it, so changes here are lost.\n"


def render_sysctls() -> str:
    """The kernel settings of policy/sysctls.py from boot on; "-" leaves out what this kernel does not have."""
    lines = [f"-{name.replace('/', '.')} = {value}" for name, value in GLOBAL_SYSCTLS.items()]
    return _HEADING + "\n".join(lines) + "\n"


def render_system_files(layout: Layout) -> dict[Path, str]:
    """Every such file, by its path."""
    return {
        # Nobody can log in as this user. If the number is taken, it gets another free one.
        layout.sysusers: render_resource("sysusers.conf"),
        # Owners and modes as R12 demands. Runs at every boot, and corrects them.
        layout.tmpfiles: render_resource("tmpfiles.conf"),
        layout.sysctls: render_sysctls(),
        # Modules that the daemon may not load itself; nf_tables loads its own parts when rules name them.
        layout.modules: render_resource("modules-load.conf"),
        # systemd-resolved binds its queries to links, where they are refused: so it gets a server without a link.
        layout.resolved_dropin: render_resource("resolved.conf"),
        **{layout.locate(path): render_resource(name) for manager in MANAGERS for path, name in manager.files.items()},
    }
