# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface names that an attacker would choose: the kernel accepts them, and nft may read more into them.

Any desktop user can make such an interface with NetworkManager. Every test of the policy uses them.
"""

from __future__ import annotations

from hypothesis import strategies as st

_KERNEL_SPACES = frozenset(b"\t\n\x0b\x0c\r \xa0")
"""What the kernel's isspace() says of each byte (lib/ctype.c)."""
_LONGEST = 15
"""bytes (IFNAMSIZ - 1)"""

KNOWN: tuple[bytes, ...] = (
    b'c*"}accept#',
    b'd*"}accept#',
    b'a"b',
    b'"',
    b"*",
    b"eth*",
    b"eth0\\*",
    b"\\",
    b"#",
    b";",
    b";accept;",
    b"{",
    b"}",
    b"@tunnel_open",
    b"@set",
    b"$var",
    b"$(id)",
    b"`id`",
    b"-f",
    b"--",
    b"!",
    b"!=lo",
    b"lo,accept",
    b"'",
    b"{0}",
    b"\xff",
    b"a\xffb",
    b"\xc3\xa9th0",
    b"\x01",
    b"\x1b[31m",
    b"\x1c\x1d\x1e\x85",
    b"\x7f",
    b".lo",
    b"_lo",
    b'lo"',
    b'"lo"',
)
"""Names of no usual form."""
MISLEADING: tuple[bytes, ...] = (
    b"7",
    b"1",
    b"0",
    b"00000000000007",
    b"0x7",
    b"accept",
    b"drop",
    b"counter",
    b"lo0",
    b"loo",
    b"LO",
    b"PsiphonTUN0",
    b"psiphontun",
    b"WIRES",
    b"a" * 15,
    b"eth0.100",
    b"x-y_z",
)
"""Names of the usual form that could be taken for something else."""


def is_name(name: bytes) -> bool:
    """Whether the kernel accepts this as an interface name (dev_valid_name; it replaces %d with a number)."""
    return (
        0 < len(name) <= _LONGEST
        and name not in {b".", b".."}
        and not any(byte in _KERNEL_SPACES or byte in b"/:%\0" for byte in name)
    )


_pieces = st.sampled_from(
    [
        b'"',
        b"}",
        b"{",
        b"*",
        b"#",
        b";",
        b",",
        b"accept",
        b"drop",
        b"lo",
        b"@",
        b"$",
        b"eth0",
        b"7",
        b"\\",
        b"\xff",
    ]
)
names = (
    st.sampled_from([*KNOWN, *MISLEADING])
    | st.lists(_pieces, min_size=1, max_size=6).map(lambda parts: b"".join(parts)[:_LONGEST])
    | st.binary(min_size=1, max_size=_LONGEST)
).filter(is_name)
"""Any name that the kernel takes, mostly bad ones."""
