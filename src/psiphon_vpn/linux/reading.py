# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `nft -s list table` says, in a form that two readings of the same rules agree on. Pure.

Text, not JSON: nft 1.0.6 prints uninitialised memory for the flags of a table there, which is not even always JSON, and
leaves out the devices of an egress chain. With `-s` the counters have no values.
"""

from dataclasses import dataclass

DORMANT = "flags dormant"


@dataclass(frozen=True)
class Reading:
    """A table as the kernel holds it: its chains, sets and rules in order, without its name, owner and elements.

    That it is dormant is a line of it: such a table stops nothing.
    """

    lines: tuple[str, ...]


def parse_listing(text: str, *, copy: bool = False) -> Reading:
    """Read the text of one table.

    Args:
        text: what `nft -s list table` says.
        copy: this is one of our copies, which are dormant; it is read as what it is a copy of.

    Raises:
        ValueError: this is not the listing of one table.
    """
    lines = [line.split(" # ")[0].strip() if line.startswith("table ") else line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines or not lines[0].startswith("table ") or not lines[0].endswith("{") or lines[-1] != "}":
        raise ValueError("not the listing of a table")
    body = lines[1:-1]
    kept: list[str] = []
    if body and body[0].startswith("flags "):
        # The table's own; "owner", of the wire guard, does not change what it does.
        if "dormant" in body[0].replace(",", " ").split() and not copy:
            kept.append(DORMANT)
        body = body[1:]
    in_elements = False
    for line in body:
        if line.startswith("elements = {"):
            in_elements = True
        if not in_elements:
            kept.append(line)
        elif line.endswith("}"):
            in_elements = False
    return Reading(tuple(kept))
