# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that the tables share: what may be on a wire, and what is refused.

A *wire* is every interface but loopback and our TUN.
"""

from dataclasses import replace

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.match import TCP, Match, Owner, RuntimeValue
from psiphon_vpn.policy.model import Identity, Policy
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.plumbing import discovery_rules
from psiphon_vpn.policy.render_rules import RenderContext, accept, render_match, render_owner, render_protocols
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import Address, quote_set

IPV4, IPV6 = 4, 6

# Destinations that do not enter the tunnel: special-purpose ranges of the IANA registries (RFC 6890) that can exist on
# a local network. The documentation ranges are left out: nobody can be there.
REFUSED_IPV4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)
REFUSED_IPV6 = ("::/127", "::ffff:0:0/96", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")


def plumbing_rules(
    identity: Identity, dhcp_servers: tuple[Address, ...], on_link: OnLink | None = None
) -> tuple[Rule, ...]:
    """What the machine's links need to keep working, sent by the kernel or the network manager.

    Sources: RFC 4861 (hop limit 255), RFC 2710 (MLD, hop limit 1), RFC 2131 (DHCP), RFC 8415 (DHCPv6).

    Args:
        identity: the users that may send DHCP and router solicitations.
        dhcp_servers: gateways of this link outside the private ranges.
        on_link: the neighbours that the kernel may talk to; None for a static table, which knows no links.
    """
    context = RenderContext(identity=identity)
    dhcp = permits.DHCP.match
    rules = [*discovery_rules(identity, on_link)]
    if dhcp.fixed_destinations:
        everywhere = replace(dhcp, destinations=dhcp.fixed_destinations)
        rules.append(accept(permits.DHCP, render_match(everywhere, context), "DHCP of root or the network manager"))
    rules.append(
        accept(permits.DHCPV6, render_match(permits.DHCPV6.match, context), "DHCPv6 of root or the network manager")
    )
    if dhcp_servers and RuntimeValue.GATEWAYS in dhcp.destinations:
        renewal = replace(dhcp, destinations=(RuntimeValue.GATEWAYS,))
        known = RenderContext(identity=identity, values={RuntimeValue.GATEWAYS: dhcp_servers})
        rules.append(
            accept(permits.DHCP, render_match(renewal, known), "DHCP renewal by unicast to this link's gateway")
        )
    return tuple(rules)


def tunnel_address_rules(verdict: str = "drop") -> tuple[Rule, ...]:
    """Drop packets with an address of the tunnel on a wire, in either direction (CVE-2019-14899)."""
    subnets = ((4, "ip", names.TUN_IPV4_SUBNET), (6, "ip6", names.TUN_IPV6_SUBNET))
    return tuple(
        Rule(
            text=f"{word} {side} {subnet} {verdict}",
            comment=f"the tunnel's IPv{version} addresses are never on a wire",
        )
        for version, word, subnet in subnets
        for side in ("saddr", "daddr")
    )


def may_connect(policy: Policy) -> bool:
    """Whether psiphon-user may use the uplink in this state."""
    return policy.state in permits.CORE.states and policy.links.uplink is not None


def may_open(policy: Policy) -> bool:
    """Whether a lease has any effect in this state."""
    return policy.state in permits.APPLICATIONS.states and policy.links.tun_index is not None


def find_core_match(policy: Policy) -> Match | None:
    """What psiphon-user may send to servers in this state; None for nothing."""
    if not may_connect(policy):
        return None
    match, proxy = permits.CORE.match, policy.upstream_proxy
    if proxy is None:
        return match
    if TCP not in match.protocols or (match.destination_ports and proxy.port not in match.destination_ports):
        return None
    if match.destinations and proxy.address not in match.destinations:
        return None
    return replace(match, protocols=(TCP,), destinations=(proxy.address,), destination_ports=(proxy.port,))


def core_rules(policy: Policy) -> tuple[Rule, ...]:
    """What psiphon-user may do on its uplink in this state (R5, R11)."""
    if not may_connect(policy):
        return ()
    context = RenderContext(identity=policy.identity)
    uplink = f'oifname "{policy.links.uplink}"'
    who = f"{render_owner(Owner.PSIPHON_USER, policy.identity)} {uplink}"
    marked = f"ct mark set {names.CORE_MARK}"
    rules = [
        accept(
            permits.CORE_NAMES,
            render_match(replace(permits.CORE_NAMES.match, destinations=(server,)), context, interface=uplink)
            + f" {marked}",
        )
        for server in policy.bootstrap_dns
        if server.version in permits.CORE_NAMES.match.versions
    ]
    asking = quote_set(permits.NAME_PORTS)
    rules.append(
        Rule(
            text=f"{who} {render_protocols(permits.CORE_NAMES.match)} th dport {asking} drop",
            comment="no name is looked up outside the tunnel, not even by psiphon-user",
        )
    )
    match = find_core_match(policy)
    if match is None:
        return tuple(rules)
    if policy.upstream_proxy is None:
        rules += _next_hop_rules(policy, who)
    rules.append(
        accept(
            permits.CORE,
            f"{render_match(match, context, interface=uplink)} {marked}",
            "psiphon-user to its server, on the uplink only",
        )
    )
    return tuple(rules)


def _next_hop_rules(policy: Policy, who: str) -> list[Rule]:
    """Only through a gateway: without a route, a socket bound to the uplink would seek its server on the link (ARP)."""
    rules = []
    for version, family in ((IPV4, "ip"), (IPV6, "ip6")):
        gateways = tuple(gateway for gateway in policy.links.gateways if gateway.version == version)
        if version not in policy.links.versions:
            rules.append(
                Rule(
                    text=f"{who} meta nfproto ipv{version} counter drop",
                    comment=f"the uplink has no IPv{version} route: a server would be looked for on the link",
                )
            )
        elif gateways:
            rules.append(
                Rule(
                    text=f"{who} rt {family} nexthop != {quote_set(gateways)} counter drop",
                    comment="a server is no neighbour: without its route, it would be looked for on the link",
                )
            )
    return rules


def refusal_rules() -> tuple[Rule, ...]:
    """The end of an output chain: refuse at once, so that no application hangs.

    TCP gets a reset: after an ICMPv6 error alone, an IPv6 connect() waits another second.
    """
    return (
        Rule(text=f"meta l4proto {TCP} counter reject with tcp reset", comment="refused at once: not in the tunnel"),
        Rule(text="counter reject with icmpx type admin-prohibited", comment="refused at once: not in the tunnel"),
    )
