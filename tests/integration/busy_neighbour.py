# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Another program that adds elements to a set of its own: `python busy_neighbour.py RATE COUNT [rules]`.

With `rules` it adds rules to a chain of its own instead. It uses one netlink socket, so it costs little; each element
is a commit. It prints how many it made, and in how many seconds.
"""

from __future__ import annotations

import struct
import sys
import time

from psiphon_vpn.linux.netlink import write_attribute
from psiphon_vpn.linux.nfnetlink import NFPROTO_INET, NFT_MSG_NEWSETELEM, NLM_F_CREATE, Message, NftSocket

NESTED = 0x8000
NFT_MSG_NEWRULE = 6


def element(number: int) -> Message:
    """An address in the set `bans` of the table `f2b`."""
    key = write_attribute(1 | NESTED, write_attribute(1, struct.pack(">I", 0x0A000000 + number)))
    elements = write_attribute(3 | NESTED, write_attribute(1 | NESTED, key))
    body = write_attribute(1, b"f2b\0") + write_attribute(2, b"bans\0") + elements
    return Message(NFT_MSG_NEWSETELEM, NFPROTO_INET, NLM_F_CREATE, body)


def rule(_number: int) -> Message:
    """An empty rule in the chain `jail` of the same table."""
    body = write_attribute(1, b"f2b\0") + write_attribute(2, b"jail\0")
    return Message(NFT_MSG_NEWRULE, NFPROTO_INET, NLM_F_CREATE, body)


def main() -> None:
    """Add them at an even rate."""
    rate, count = float(sys.argv[1]), int(sys.argv[2])
    make = rule if sys.argv[3:] == ["rules"] else element
    netlink = NftSocket()
    begin = time.monotonic()
    for number in range(count):
        netlink.commit([make(number)])
        time.sleep(max(0.0, begin + (number + 1) / rate - time.monotonic()))
    sys.stdout.write(f"{count} {time.monotonic() - begin}\n")


if __name__ == "__main__":
    main()
