# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The result as JUnit XML: a suite for each attack, a case for each state. Pure."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from psiphon_lab.leaktest.matrix import Result
from psiphon_lab.leaktest.verdict import Kind


def render_junit(result: Result) -> str:
    """The text of the XML file."""
    out_of_reach = {attack.id: attack.out_of_reach for attack in result.attacks}
    lines = ['<?xml version="1.0" encoding="utf-8"?>', f'<testsuites name="leaktest" time="{result.seconds:.1f}">']
    for attack in result.attacks:
        cells = [cell for cell in result.cells if cell["attack"] == attack.id]
        reach = bool(attack.out_of_reach)
        failures = 0 if reach else sum(cell["verdict"] == Kind.LEAK for cell in cells)
        errors = 0 if reach else sum(cell["verdict"] == Kind.INCONCLUSIVE for cell in cells)
        skipped = sum(reach or cell["verdict"] in {Kind.NOT_APPLICABLE, Kind.WEAKER} for cell in cells)
        name = quoteattr(f"{attack.id} {attack.name}")
        lines.append(
            f'  <testsuite name={name} tests="{len(cells)}" failures="{failures}" errors="{errors}" '
            f'skipped="{skipped}">'
        )
        for cell in cells:
            head = (
                f'    <testcase classname="{attack.id}" name={quoteattr(str(cell["state"]))} time="{cell["seconds"]}"'
            )
            reason = quoteattr(_clean(cell["reason"]))
            if out_of_reach[attack.id]:
                lines.append(f"{head}><skipped message={quoteattr(_clean(attack.out_of_reach))}/></testcase>")
            elif cell["verdict"] == Kind.LEAK:
                frames = "\n".join(leak["text"] for leak in cell["leaks"])
                lines.append(f"{head}><failure message={reason}>{escape(_clean(frames))}</failure></testcase>")
            elif cell["verdict"] == Kind.INCONCLUSIVE:
                lines.append(f"{head}><error message={reason}/></testcase>")
            elif cell["verdict"] in {Kind.NOT_APPLICABLE, Kind.WEAKER}:
                lines.append(f"{head}><skipped message={reason}/></testcase>")
            else:
                lines.append(f"{head}/>")
        lines.append("  </testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _clean(text: str) -> str:
    """Remove characters that XML 1.0 cannot contain."""
    return "".join(letter for letter in text if letter in "\n\t" or ord(letter) >= 32)
