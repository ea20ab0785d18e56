# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon on a machine whose interfaces eth* and usb* count as cards: `python carded_daemon.py ARGS`.

In the laboratory they are veth pairs, which the kernel does not call cards.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from psiphon_vpn.linux import links
from psiphon_vpn.linux.rtlist import list_links
from psiphon_vpn.linux.rtvalues import Link
from psiphon_vpn.service import __main__ as daemon


async def list_cards() -> tuple[Link, ...]:
    """The links, with these interfaces as cards."""
    return tuple(replace(link, card=link.name.startswith(("eth", "usb"))) for link in await list_links())


def main() -> int:
    """Run the daemon with these links."""
    links.list_links = list_cards  # type: ignore[attr-defined]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
