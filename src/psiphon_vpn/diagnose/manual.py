# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes docs/diagnose.md, with the table of checks from the checks themselves.

Run `python -m psiphon_vpn.diagnose.manual` in the root of the checkout after adding or changing a check.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from psiphon_vpn.diagnose.model import GROUP_TITLES, Group
from psiphon_vpn.diagnose.registry import CHECKS

TARGET: Final = Path("docs") / "diagnose.md"
HEADING: Final = """\
# Diagnose and verify

Written by `python -m psiphon_vpn.diagnose.manual` from the checks themselves; do not edit.

```
sudo ./Psiphon-Linux-VPN-Service-Setup.sh diagnose
sudo psiphon-vpn diagnose
```

are the same command, from a checkout and on a machine where the service is installed. It only reads: it changes no
rule, route, file or setting, and the service notices nothing. To see how this kernel and this nft print the policy's
rules, it loads them in a network namespace of its own. It takes about a second; a check without an answer in time, or
with a defect, is *unknown* and counts as wrong.

| Sign | Verdict | Means |
| --- | --- | --- |
| `ok` | ok | As it should be |
| `!` | warning | Worth knowing, nothing wrong |
| `x` | failed | Wrong; the line below says why, the next one what to do |
| `?` | unknown | Could not be determined; counts as wrong |
| `-` | skipped | Does not apply here; says why |

| Exit code | Means |
| --- | --- |
| 0 | Nothing is wrong |
| 1 | Something is wrong, and the machine is locked: no program gets past the tunnel |
| 2 | Something is open, or whether the machine is locked could not be read |
| 77 | Not root |

`diagnose --quiet` leaves out what is well; `diagnose --json` prints one object for programs, with every check.

## Live probes

`diagnose --live` also tries to leak, on this machine: about thirty small packets for each network interface, as root
and as an ordinary user, TCP, UDP, names and ping, IPv4 and IPv6, unbound and bound to the interface, and a raw frame.
They go to documentation addresses, where nobody is. Meanwhile it watches the interfaces for them. A frame that *may*
leave (an ARP probe) shows that the watch works: without it, seeing nothing counts as unknown.

The laboratory shows what a watch from inside can see (`tests/diagnose/test_live.py`): a packet socket sees a frame in
the last step before the driver, after every hook of nftables, the egress hook too. So it does not see what was dropped,
and what it sees has left. It does *not* see frames that bypass the queue (`PACKET_QDISC_BYPASS`, AF_XDP), nor what a
network card does by itself; and containers are not tried. For those, and for evidence that does not depend on the
machine itself, there is the laboratory: `sudo ./Psiphon-Linux-VPN-Service-Setup.sh demo`.

## Reports

`diagnose --report FILE` writes the results of the checks, the rules, routes, units and the last lines of the service's
log into a new text file that only root can read. Addresses, names and secrets are replaced: everything known of the
machine (its name, users, addresses, interfaces, serial numbers, wireless networks, values of the configuration), even
if it is written in digits, lists of numbers, escapes or base64; and everything with the form of an address, a name with
dots or a long secret that is not the service's own. In doubt it is replaced: a number of eight digits may be an
address. A name that cannot be recognised as one, such as the one-word name of another machine, may remain. The report
is a text so that you can read it before you share it. The command does not overwrite a file or follow a link.

## Verify

`verify` compares every installed file with the manifest of the installation: content (SHA-256), mode and owner. It also
looks for other files among the program's. Exit code 0 or 1; `verify --json` for programs. An attacker who can change
the program as root can change the manifest too: `verify` finds damage and mistakes, not such an attacker. The program
is compiled on the machine, so this byte code is compared with a record that was made with it.

## The checks
"""


def render_manual() -> str:
    """The whole document."""
    lines = [HEADING]
    for group in Group:
        checks = [check for check in CHECKS if check.group is group]
        if not checks:
            continue
        lines += [f"### {GROUP_TITLES[group]}", "", "| Check | When all is well | What to do otherwise |"]
        lines.append("| --- | --- | --- |")
        lines += [f"| `{check.id}` | {check.title} | {_quote(check.next_step)} |" for check in checks]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _quote(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render_manual(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
