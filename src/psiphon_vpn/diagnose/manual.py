"""Writes docs/diagnose.md: the table of checks, from the checks themselves.

Run `python -m psiphon_vpn.diagnose.manual` in the root of the checkout after a check was added or changed.
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

are the same command, from a checkout and on a machine where the service is installed. It only reads: no rule, route,
file or setting is changed, and the service notices nothing. What the policy's rules would be in the words of this
kernel and this nft, it finds out in a network namespace of its own. It takes about a second; a check that gives no
answer in time, or that has a defect, is *unknown* and counts as wrong.

| Sign | Verdict | Means |
| --- | --- | --- |
| `ok` | ok | As it should be |
| `!` | warning | Worth knowing, nothing wrong |
| `x` | failed | Wrong; the line below says why, the next one what to do |
| `?` | unknown | Could not be told; counts as wrong |
| `-` | skipped | Does not apply here; says why |

| Exit code | Means |
| --- | --- |
| 0 | Nothing is wrong |
| 1 | Something is wrong, and the machine is locked: no program gets past the tunnel |
| 2 | Something is open, or whether the machine is locked could not be read |
| 77 | Not root |

`diagnose --quiet` leaves out what is well; `diagnose --json` prints one object for programs, with every check.

## Live probes

`diagnose --live` also tries to leak, on this very machine: about thirty small packets for each network interface, as
root and as an ordinary user, TCP, UDP, names and ping, IPv4 and IPv6, plain and bound to the interface, and a raw
frame. They go to documentation addresses, where nobody is. Meanwhile it watches the interfaces for them, and a frame
that *may* leave (an ARP probe) shows that the watch is awake: without it, seeing nothing counts as unknown.

What a watch from inside can see was tried in the laboratory (`tests/diagnose/test_live.py`): a packet socket is shown
a frame in the last step before the driver, behind every hook of nftables, the egress hook too. So what was dropped is
not shown, and what is shown has left. It is *not* shown frames that go around the queue (`PACKET_QDISC_BYPASS`,
AF_XDP), nor what a network card does by itself; and containers are not tried. For those, and for evidence that does
not rest on the machine itself, there is the laboratory: `sudo ./Psiphon-Linux-VPN-Service-Setup.sh demo`.

## Reports

`diagnose --report FILE` writes what the checks found, the rules, routes, units and the last lines of our own log into
a new text file that only root can read. Addresses, names and secrets are replaced: whatever is known of the machine
(its name, users, addresses, interfaces, serial numbers, wireless networks, values of the configuration), also where it
is written in digits, lists of numbers, escapes or base64; and whatever has the form of an address, a name with dots or
a long secret and is not the service's own. In doubt it is replaced: a number of eight digits may be an address. What
nobody can know for a name, such as the one-word name of another machine, may remain. It is a text so that you can read
it before you give it to anybody. It refuses to overwrite a file or to follow a link.

## Verify

`verify` compares every installed file with the manifest of the installation: content (SHA-256), mode and owner, and
that there is nothing else among the program's files. Exit code 0 or 1; `verify --json` for programs. Whoever can
change the program as root can change the manifest too: it finds damage and mistakes, not such a person.

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
    """A cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render_manual(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
