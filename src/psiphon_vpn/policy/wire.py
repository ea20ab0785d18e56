"""What may be on a wire, and what is refused: the rules that the tables share.

Everything that is not `lo` and not our TUN is a *wire*.
"""

from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity, Policy
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.plumbing import discovery_rules
from psiphon_vpn.policy.ruleset import Rule
from psiphon_vpn.policy.values import Address, quote_set

TCP, UDP, ICMP = 6, 17, 1
IPV4, IPV6 = 4, 6

# What the tunnel cannot carry or must not be asked for: special-purpose ranges of the IANA registries (RFC 6890) that
# can be a destination on some local network. The documentation ranges are left out: nobody can be there.
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

# Where a unicast DHCP renewal may go besides the on-link gateways: ranges that no one routes on the internet.
PRIVATE_IPV4 = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")


def plumbing_rules(
    identity: Identity, dhcp_servers: tuple[Address, ...], on_link: OnLink | None = None
) -> tuple[Rule, ...]:
    """What the machine's own links need to stay alive, sent by the kernel or the network manager.

    Sources: RFC 4861 (hop limit 255), RFC 2710 (MLD, hop limit 1), RFC 2131 (DHCP), RFC 8415 (DHCPv6).

    Args:
        identity: who may speak DHCP and look for routers.
        dhcp_servers: gateways of this link outside of the private ranges.
        on_link: whom the kernel may speak to; None for a table that outlives what is known of the links.
    """
    dhcp_uids = quote_set(identity.network_manager_uids)
    dhcp_targets = quote_set(("255.255.255.255", *PRIVATE_IPV4))
    rules = [
        *discovery_rules(identity, on_link),
        Rule(
            text=f"meta skuid {dhcp_uids} udp sport 68 udp dport 67 ip daddr {dhcp_targets} accept",
            comment="DHCP of root or the network manager",
        ),
        Rule(
            text=f"meta skuid {dhcp_uids} udp sport 546 udp dport 547 ip6 daddr {{ fe80::/10, ff02::1:2 }} accept",
            comment="DHCPv6 of root or the network manager",
        ),
    ]
    if dhcp_servers:
        rules.append(
            Rule(
                text=f"meta skuid {dhcp_uids} udp sport 68 udp dport 67 ip daddr {quote_set(dhcp_servers)} accept",
                comment="DHCP renewal by unicast to this link's gateway",
            )
        )
    return tuple(rules)


def tunnel_address_rules(verdict: str = "drop") -> tuple[Rule, ...]:
    """No packet with an address of the tunnel belongs on a wire, in either direction (CVE-2019-14899)."""
    subnets = ((4, "ip", names.TUN_IPV4_SUBNET), (6, "ip6", names.TUN_IPV6_SUBNET))
    return tuple(
        Rule(
            text=f"{word} {side} {subnet} {verdict}",
            comment=f"the tunnel's IPv{version} addresses are never on a wire",
        )
        for version, word, subnet in subnets
        for side in ("saddr", "daddr")
    )


def core_rules(policy: Policy) -> tuple[Rule, ...]:
    """What psiphon-user may do on its uplink in this state (R5, R11)."""
    if not policy.core_may_connect:
        return ()
    who = f'{policy.identity.owner} oifname "{policy.links.uplink}"'
    rules = [
        Rule(
            text=f"{who} {'ip' if server.version == IPV4 else 'ip6'} daddr {server} meta l4proto {{ {TCP}, {UDP} }} "
            "th dport 53 ct mark set ct_mark accept".replace("ct_mark", str(names.CORE_MARK)),
            comment="the resolver that the configuration allows psiphon-tunnel-core",
        )
        for server in policy.bootstrap_dns
    ]
    rules.append(
        Rule(
            text=f"{who} meta l4proto {{ {TCP}, {UDP} }} th dport {{ 53, 137, 853, 5353, 5355 }} drop",
            comment="no name is looked up outside the tunnel, not even by psiphon-user",
        )
    )
    target = ""
    if policy.upstream_proxy is not None:
        proxy = policy.upstream_proxy
        family = "ip" if proxy.address.version == IPV4 else "ip6"
        target = f" {family} daddr {proxy.address} tcp dport {proxy.port}"
    else:
        rules += _next_hop_rules(policy, who)
    protocols = f" meta l4proto {{ {TCP}, {UDP} }}" if not target else ""
    rules.append(
        Rule(
            text=f"{who}{target}{protocols} ct mark set {names.CORE_MARK} accept",
            comment="psiphon-user to its server, on the uplink only",
        )
    )
    return tuple(rules)


def _next_hop_rules(policy: Policy, who: str) -> list[Rule]:
    """A server is no neighbour: bound to the uplink and without a route, the core would ask the link for its server."""
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
    """The end of an output chain: refuse at once rather than let the application hang.

    TCP gets a reset: after an ICMPv6 error alone, an IPv6 connect() waits another second.
    """
    return (
        Rule(text=f"meta l4proto {TCP} counter reject with tcp reset", comment="refused at once: not by the tunnel"),
        Rule(text="counter reject with icmpx type admin-prohibited", comment="refused at once: not by the tunnel"),
    )
