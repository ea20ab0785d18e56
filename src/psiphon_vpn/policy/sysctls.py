# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel settings that the policy depends on (kernel documentation, Documentation/networking/ip-sysctl.rst)."""

from psiphon_vpn.policy import names

GLOBAL_SYSCTLS: dict[str, str] = {
    # The reverse-path check must use the mark of packets that arrive on a wire: policy/routing.py.
    "net/ipv4/conf/all/src_valid_mark": "1",
    # A neighbour must not learn by ARP that this machine has the tunnel's address (MLLVD-CR-24-03).
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
    # No host on a wire may redirect this machine's routes (RFC 1122 3.2.2.2, RFC 4861 8).
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv6/conf/all/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    # MLD version 1: a report goes to the group that it names, so rules can compare it. Version 2 carries any groups and
    # sources that a user joins.
    "net/ipv6/conf/all/force_mld_version": "1",
    # 127.0.0.0/8 stays inside: the SOCKS proxy and stub resolvers listen there.
    "net/ipv4/conf/all/route_localnet": "0",
}
"""Paths below /proc/sys and their values."""

TUN_SYSCTLS: dict[str, str] = {
    # No link-local address, no router solicitation, no MLD report: one stray source spoils a tunnel session.
    f"net/ipv6/conf/{names.TUN_NAME}/addr_gen_mode": "1",
    f"net/ipv6/conf/{names.TUN_NAME}/accept_ra": "0",
    f"net/ipv6/conf/{names.TUN_NAME}/accept_dad": "0",
    f"net/ipv6/conf/{names.TUN_NAME}/router_solicitations": "0",
    f"net/ipv4/conf/{names.TUN_NAME}/route_localnet": "0",
    # psiphon-tunnel-core's TUN loses its carrier when the core ends; the routes must stay where they are.
    f"net/ipv4/conf/{names.TUN_NAME}/ignore_routes_with_linkdown": "0",
    f"net/ipv6/conf/{names.TUN_NAME}/ignore_routes_with_linkdown": "0",
}

SYSCTLS: dict[str, str] = GLOBAL_SYSCTLS | TUN_SYSCTLS
"""All that must hold while the tunnel is open. Settings that do not exist (kernel too old, TUN gone) are skipped."""
