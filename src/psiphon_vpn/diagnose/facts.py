# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts for all checks: the basic ones, and the answers of nft and systemd."""

from __future__ import annotations

import stat
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from psiphon_vpn.diagnose.basic_facts import BasicFacts
from psiphon_vpn.diagnose.kernel_rules import KernelRules
from psiphon_vpn.diagnose.unit_facts import UnitFacts

if TYPE_CHECKING:
    from psiphon_vpn.linux.features import Features

OPEN: Final = "OPEN"


class Facts(BasicFacts):
    """Everything that is known about this machine."""

    @cached_property
    def rules(self) -> KernelRules:
        """The answers of nft."""
        return KernelRules(self)

    @cached_property
    def units(self) -> UnitFacts:
        """The answers of systemd."""
        return UnitFacts(self)

    @property
    def features(self) -> Features:
        """The features of kernel and nft."""
        return self.rules.features


def describe_mode(status: Any) -> str:
    """Permissions as chmod(1) takes them."""
    return f"{stat.S_IMODE(status.st_mode):03o}"
