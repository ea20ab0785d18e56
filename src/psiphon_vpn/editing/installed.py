# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The settings of an installation, for commands of root: read and parsed with the same care as for a change."""

from __future__ import annotations

from psiphon_vpn.config import Settings
from psiphon_vpn.editing.files import find_installed, read_file
from psiphon_vpn.editing.requests import read_settings
from psiphon_vpn.system.layout import Layout


def read_installed_settings(layout: Layout) -> Settings:
    """The settings; the defaults if there is no file.

    Raises:
        UserError: they cannot be read, or are not usable.
    """
    place = find_installed(layout)
    found = read_file(place)
    return Settings() if found is None else read_settings(found.content, path=place.path)
