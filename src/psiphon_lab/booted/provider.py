# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the provider's DHCP server and router advertiser."""

from __future__ import annotations

import subprocess
from pathlib import Path

from psiphon_lab.addresses import Lan
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until

LEASE_SECONDS, LEASE6_SECONDS = 3600, 120
"""The second value is dnsmasq's minimum; a client renews it after a minute."""
RENEW_SECONDS, REBIND_SECONDS = 3, 6
"""T1 and T2 of DHCPv4 (RFC 2131, 4.4.5) for short leases. dnsmasq accepts no less than three seconds."""
_BRIDGE = "lan"


def find_log(lan: Lan, directory: Path) -> Path:
    """The log file of a provider's server."""
    return directory / f"{lan.name}.dnsmasq.log"


def find_leases(lan: Lan, directory: Path) -> Path:
    """The file of a provider's server with a line for each lease, which begins with its end, Unix time."""
    return directory / f"{lan.name}.leases"


def start_provider(
    host: Host, lan: Lan, *, directory: Path, short_leases: bool = False, seconds: int = LEASE_SECONDS
) -> subprocess.Popen[bytes]:
    """Start a real DHCP server and router advertiser (dnsmasq) on a provider; it ends with the host.

    It names the provider's router as gateway and as resolver, for both families. The lab's own services answer DNS
    queries, because they record who sent them.

    short_leases: DHCPv4 is renewed every few seconds, and DHCPv6, in addition to the advertisements, every minute.
    seconds: how long an IPv4 address is leased, at least 120.
    """
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file="]
    argv += [f"--interface={_BRIDGE}", "--bind-interfaces", "--no-resolv", "--no-hosts", "--dhcp-authoritative"]
    # Otherwise it pings an address before it assigns it, which takes three seconds.
    argv += ["--no-ping", f"--dhcp-leasefile={find_leases(lan, directory)}", "--log-facility=-", "--log-dhcp"]
    argv += [f"--dhcp-range={lan.client4},{lan.client4},{seconds}", f"--dhcp-host={lan.mac},{lan.client4}"]
    argv += [f"--dhcp-option=option:router,{lan.router4}", f"--dhcp-option=option:dns-server,{lan.router4}"]
    network6 = lan.network6.partition("/")[0]
    if short_leases:
        argv += [f"--dhcp-option-force=58,{RENEW_SECONDS}", f"--dhcp-option-force=59,{REBIND_SECONDS}"]
        argv += [f"--dhcp-range={network6}d600,{network6}d6ff,slaac,{lan.prefix6},{LEASE6_SECONDS}"]
    else:
        argv += [f"--dhcp-range={network6},ra-stateless,{lan.prefix6},{LEASE_SECONDS}"]
    argv += ["--enable-ra"]
    argv += [f"--dhcp-option=option6:dns-server,[{lan.router6}]", f"--ra-param={_BRIDGE},10"]
    path = find_log(lan, directory)
    with path.open("wb") as log:
        child = host.spawn(argv, stdout=log, stderr=log)
    wait_until(lambda: b"started" in path.read_bytes() or child.poll() is not None, "dnsmasq")
    if child.poll() is not None:
        raise LabError(f"dnsmasq ended: {path.read_text(errors='replace')[-500:]}")
    return child
