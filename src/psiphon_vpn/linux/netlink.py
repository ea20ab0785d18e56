"""The framing that all netlink messages share (netlink(7))."""

import struct
from collections.abc import Iterator

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""


def iterate_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message in what a netlink socket received. Ends at the first that is malformed."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        yield kind, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3
