# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The control group that the daemon and its core are in, and whether this kernel's rules can match it."""

import logging
import socket
from pathlib import Path

from psiphon_vpn.linux.disturbance import PASSING, decide, is_refusal
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import LOOPBACK, ControlGroup
from psiphon_vpn.run import CommandError, run_async

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
    table = f"inet {names.SCRATCH_TABLES[0]}"
    rule = f"oif {LOOPBACK} udp dport {_PORT} {group.match} counter"
    text = (
        f"table {table}\ndelete table {table}\ntable {table} {{\nchain c {{\n"
        f"type filter hook output priority -400; policy accept;\n{rule}\n}}\n}}\n"
    )
    try:
        await run_async(["nft", "-f", "-"], input=text)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"", ("127.0.0.1", _PORT))
            listing = (await run_async(["nft", "list", "table", *table.split()])).stdout
        finally:
            await run_async(["nft", "delete", "table", *table.split()])
    except CommandError as error:
        if is_refusal(error):
            return False
        raise
    except OSError as error:
        if error.errno in PASSING:
            raise
        return False
    return "counter packets 1 " in listing
