# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists of names in sentences for people."""

from collections.abc import Sequence
from typing import Final

from psiphon_vpn.i18n import ngettext
from psiphon_vpn.policy.values import show_name

MOST_NAMES: Final = 5


def show_names(names: Sequence[str]) -> str:
    """The first names of interfaces, and how many more there are: a server may have hundreds."""
    shown = ", ".join(map(show_name, names[:MOST_NAMES]))
    more = len(names) - MOST_NAMES
    if more > 0:
        shown = ngettext("{names} and {count} more", "{names} and {count} more", more).format(names=shown, count=more)
    return shown
