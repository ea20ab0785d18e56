"""The daemon, on a machine whose interfaces called eth... and usb... are cards: `python carded_daemon.py ARGS`.

In a laboratory they are virtual pairs, which to the kernel are no cards.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from psiphon_vpn.linux import links
from psiphon_vpn.linux.rtlist import list_links
from psiphon_vpn.linux.rtvalues import Link
from psiphon_vpn.service import __main__ as daemon


async def list_cards() -> tuple[Link, ...]:
    """The links, with these as cards."""
    return tuple(replace(link, card=link.name.startswith(("eth", "usb"))) for link in await list_links())


def main() -> int:
    """Run the daemon with these links."""
    links.list_links = list_cards  # type: ignore[attr-defined]
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())
