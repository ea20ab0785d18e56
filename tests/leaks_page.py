# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/leaks.md from the attacks: `python -m tests.leaks_page`. A test compares the page with them."""

from __future__ import annotations

from pathlib import Path

from psiphon_lab.attacks import load_attacks
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import MODES
from psiphon_lab.leaktest.states import STATES

PAGE = Path(__file__).parents[1] / "docs" / "leaks.md"
HEAD = """# Known leaks

Every way in which a Linux VPN is publicly known to leak, as `sudo psiphon-vpn leaktest` tries it, in every state of the
machine, on IPv4 and IPv6. This page is made from the attacks
themselves (`src/psiphon_lab/attacks/`), one file each. To add one, add a file and run `python -m tests.leaks_page`.

A frame outside is innocent only if it is ARP for a neighbour, EAPOL, neighbour discovery, an MLD report or DHCP, each
in exactly one form, or if the tunnel *server* has recorded it as the tunnel's. Each attempt must have been seen outside
without the lock, in the same run. Otherwise its cell is inconclusive, which never counts as held.

"""
BEYOND = """
## Out of reach

These are tried too, but shown separately and never counted as held. All of them take root; see
[SECURITY.md](../SECURITY.md#what-is-out-of-reach).

"""


def _describe(attack: Attack) -> str:
    lines = [f"### {attack.id}: {attack.name}", "", attack.summary, ""]
    if attack.out_of_reach:
        lines += [f"*Why it cannot be stopped*: {attack.out_of_reach}.", ""]
    families = " and ".join(f"IPv{family}" for family in attack.families)
    lines += [
        f"- Known from: {attack.reference}.",
        f"- Done by: {', '.join(attack.actors)}; {families}. Recognised on the wire {attack.recognised}.",
        f"- Positive control: {attack.control}.",
    ]
    if attack.tools:
        lines.append(f"- With: {', '.join(f'`{Path(tool).name}`' for tool in attack.tools)}.")
    lines += [f"- Not in the state `{mode}`: {reason}." for mode, reason in attack.not_applicable.items()]
    return "\n".join([*lines, ""])


def render() -> str:
    """The page."""
    attacks = load_attacks()
    states = ["## The states", "", "| State | How it is held |", "| --- | --- |"]
    states += [f"| `{mode}` | {STATES[mode].summary} |" for mode in MODES]
    within = [_describe(attack) for attack in attacks if not attack.out_of_reach]
    beyond = [_describe(attack) for attack in attacks if attack.out_of_reach]
    body = "\n".join([*states, "", "## The attacks", "", *within])
    return HEAD + body + BEYOND + "\n".join(beyond)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
