# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The names and numbers of the policy, in one place, so that no two parts of the program can disagree on them."""

from typing import Final

LOOPBACK_INDEX = 1
"""Interface index of loopback in every network namespace: it is registered first and can be neither deleted nor moved
(the kernel's drivers/net/loopback.c, loopback_net_init, LOOPBACK_IFINDEX). Root can change its name."""
TUN_NAME: Final = "PsiphonTUN"
TUN_TYPE: Final = 65534
"""Link-layer type of a TUN: none (ARPHRD_NONE of if_arp.h, tun_net_init in drivers/net/tun.c)."""
TUN_MTU: Final = 1500
"""bytes; psiphon-tunnel-core truncates anything larger."""

TUN_QUEUE: Final = 500
"""Packets that may wait for the core: the kernel's default for a TUN (TUN_READQ_SIZE of if_tun.h)."""

TUN_IPV4: Final = "10.200.3.1"
TUN_IPV4_SUBNET: Final = "10.200.3.0/24"
TUN_IPV6: Final = "fd42:42:42::1"
TUN_IPV6_SUBNET: Final = "fd42:42:42::/64"
RESOLVER_IPV4: Final = "10.200.3.2"
"""The tunnel core's transparent DNS address: the Psiphon server's own resolver answers there."""

BASE_TABLE: Final = "psiphon_filter"
GUARD_TABLE: Final = "psiphon_guard"
EGRESS_TABLE: Final = "psiphon_egress"
FRAME_TABLE: Final = "psiphon_frames"
FRAMES_CHAIN: Final = "frames"
HEADERLESS_CHAIN: Final = "frames_without_header"
DEVICE_CHAIN_PREFIX: Final = "on_"
"""Chains of the two tables above: the rules for what may leave, and the hook of each device."""
ARP_TABLE: Final = "psiphon_arp"
BRIDGE_TABLE: Final = "psiphon_bridges"
GUESTS_CHAIN: Final = "to_guests"
"""Chain of the base table: what may go to guests on bridges that root allowed. Exists only while one is in force."""
SCRATCH_TABLES: Final = ("psiphon_scratch", "psiphon_scratch2")
"""Dormant copies that see no packet. They show how nft lists a table."""
LEASE_SET: Final = "tunnel_open"
LEASE_SET_IPV6: Final = "tunnel_open_ipv6"

CORE_MARK: Final = 0x50530000
"""Connection mark of psiphon-user's own flows, and the packet mark that makes the reverse-path check of packets from a
wire use the main table. No rule accepts anything towards a wire because of a mark."""

ACCEPTED_BIT: Final = 0x02000000
"""Bit of the packet's mark that the egress guard and the frame guard set on what they accept. No rule accepts anything
because of it: the filter at a card's traffic control drops what lacks it (`policy/traffic_control.py`).

One bit only, so that other programs' bits of the mark stay. Bit 25, because it is not part of `CORE_MARK`, which
packets of containers carry, and none of these programs sets it: docker (0x100 and up), Kubernetes (0x4000, 0x8000),
podman (0x2000), wg-quick (51820, which is 0xca6c), Tailscale (0xff0000), Mullvad (0x6d6f6c65), Antrea (0x80000000),
dae (0x08000000), zapret (0x40000000, 0x20000000). Calico and Cilium use the upper half for themselves; a frame of
theirs that carries the bit gains something only if traffic control redirects it as well."""

ROUTE_TABLE: Final = 20595
"""Number of the private routing table (0x5073, "Ps")."""
ROUTE_METRIC: Final = 10
UNREACHABLE_METRIC: Final = 4278198272
"""A metric that any other route in the table beats (ip-route(8))."""
RULE_PRIORITY: Final = 5070
"""Priority of the first routing rule; the others follow it (`routing.RULE_PRIORITIES`)."""

ACCOUNT_NUMBER: Final = 573
"""Preferred uid of psiphon-user and gid of psiphon-group, used where free. It is in the system range, so that logs and
log-in screens treat it as such, and far from both ends from which such ids are given (systemd-sysusers from 999 down,
adduser from 100 up), because container images use those too. Nothing relies on it: rules use the actual ids."""

LEASE_SECONDS: Final = 5
"""Time-out of the lease in the kernel: how long a machine can stay open after its daemon has died."""
LEASE_RENEW_SECONDS: Final = 2
