# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of `resources/`: units, drop-ins, settings of other programs, the guard's script, as they are installed.

@NAME@ in them stands for a value of this program, from VALUES. Any other name is an error, so no installed file
contains one. Paths and names of units are written out; a test compares them with `layout.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from psiphon_vpn import network_managers
from psiphon_vpn.core import naming
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import BASE, BRIDGES, EGRESS, FRAMES, GUARD

DIRECTORY: Final = Path(__file__).resolve().parents[1] / "resources"
TOKEN: Final = re.compile(r"@([A-Z][A-Z0-9_]*)@")
VALUES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ACCOUNT_NUMBER": str(names.ACCOUNT_NUMBER),
        "BASE_TABLE": str(BASE),
        "BRIDGES_TABLE": str(BRIDGES),
        "CORE_TARGET": str(naming.TARGET),
        "DEVICE_CHAIN_PREFIX": names.DEVICE_CHAIN_PREFIX,
        "EGRESS_TABLE": str(EGRESS),
        "FRAMES_CHAIN": names.FRAMES_CHAIN,
        "FRAMES_TABLE": str(FRAMES),
        "GUARD_TABLE": str(GUARD),
        "HEADERLESS_CHAIN": names.HEADERLESS_CHAIN,
        "LEASE_SET": names.LEASE_SET,
        "LEASE_SET_IPV6": names.LEASE_SET_IPV6,
        "NETWORK_MANAGERS": " ".join(network_managers.UNITS),
        "RESOLVER": str(names.RESOLVER_IPV4),
        "SCRATCH_TABLE": f"netdev {names.SCRATCH_TABLES[0]}",
        "TUN": names.TUN_NAME,
    }
)


def render_resource(name: str) -> str:
    """The text of a file of `resources/` with every @NAME@ replaced, in one pass.

    Args:
        name: of the file.

    Raises:
        KeyError: the file names an unknown value.
        OSError: there is no such file.
    """
    text = (DIRECTORY / name).read_text(encoding="utf-8")
    return TOKEN.sub(lambda found: VALUES[found[1]], text)
