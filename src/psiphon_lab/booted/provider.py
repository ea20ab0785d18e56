"""What a provider gives to a machine that asks: an address by DHCP, a prefix by router advertisements."""

from __future__ import annotations

import subprocess
from pathlib import Path

from psiphon_lab.addresses import Lan
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_until

LEASE_SECONDS, LEASE6_SECONDS = 3600, 120
"""The latter is the least that dnsmasq gives; a client renews it after a minute."""
RENEW_SECONDS, REBIND_SECONDS = 3, 6
"""T1 and T2 of DHCPv4 (RFC 2131, 4.4.5), where leases are short. dnsmasq takes nothing below three seconds."""
_BRIDGE = "lan"


def find_log(lan: Lan, directory: Path) -> Path:
    """Where a provider's server writes what it was asked and has answered."""
    return directory / f"{lan.name}.dnsmasq.log"


def start_provider(host: Host, lan: Lan, *, directory: Path, short_leases: bool = False) -> subprocess.Popen[bytes]:
    """Start a real DHCP server and router advertiser (dnsmasq) on a provider; it ends with the host.

    It names the provider's router as gateway and as resolver, for both families. Names are the lab's own services'
    work, so that they can tell who asked.

    short_leases: DHCPv4 is renewed every few seconds; there is DHCPv6 beside the advertisements, renewed every minute.
    """
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file="]
    argv += [f"--interface={_BRIDGE}", "--bind-interfaces", "--no-resolv", "--no-hosts", "--dhcp-authoritative"]
    # It would ping an address before it gives it away, which takes three seconds.
    argv += ["--no-ping", f"--dhcp-leasefile={directory / (lan.name + '.leases')}", "--log-facility=-", "--log-dhcp"]
    argv += [f"--dhcp-range={lan.client4},{lan.client4},{LEASE_SECONDS}", f"--dhcp-host={lan.mac},{lan.client4}"]
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
