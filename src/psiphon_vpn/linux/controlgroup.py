# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The control group that the daemon and its core are in, and whether this kernel's rules can match it."""

import logging
import socket
from pathlib import Path

from psiphon_vpn.linux.disturbance import PASSING, decide
from psiphon_vpn.linux.scratch import list_scratch
from psiphon_vpn.policy.values import LOOPBACK, ControlGroup

log = logging.getLogger(__name__)

OWN = Path("/proc/self/cgroup")
UNIT = "psiphon-vpn.service"
_PORT = 9
"""The port of discard: nothing answers."""


def parse_control_group(text: str) -> ControlGroup | None:
    """The group of the unified hierarchy in the text of /proc/PID/cgroup (cgroups(7)), if it is our unit's.

    Args:
        text: lines such as "0::/system.slice/psiphon-vpn.service".

    Returns:
        None if no service manager started the daemon, or the path cannot stand in a rule.
    """
    for line in text.splitlines():
        number, _, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        if number == "0" and path.endswith(f"/{UNIT}"):
            try:
                return ControlGroup(path.removeprefix("/"))
            except ValueError:
                return None
    return None


def _read_own() -> ControlGroup | None:
    try:
        return parse_control_group(OWN.read_text())
    except OSError:
        return None


async def find_control_group() -> ControlGroup | None:
    """The daemon's own group, if a rule that names it matches a packet of the daemon's.

    Tried with a packet to this machine itself, not guessed: nft must find the group's directory, and the kernel counts
    levels from its own root or, since Linux 6.11, from the root of the namespace (nft_socket.c).

    Raises:
        CommandError: the try was disturbed, several times in a row. Not known is not missing.
    """
    group = _read_own()
    if group is None or await decide(lambda: _matches(group), what="the control group"):
        return group
    log.info("rules cannot match the service's control group here: they recognise psiphon-user by user and group only")
    return None


async def _matches(group: ControlGroup) -> bool:
    rule = f"oif {LOOPBACK} udp dport {_PORT} {group.match} counter"
    chain = f"chain c {{\ntype filter hook output priority -400; policy accept;\n{rule}\n}}"
    try:
        listing = await list_scratch("inet", chain, dormant=False, act=_send)
    except OSError as error:
        if error.errno in PASSING:
            raise
        return False
    return listing is not None and "counter packets 1 " in listing


def _send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", ("127.0.0.1", _PORT))
