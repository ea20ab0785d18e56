"""The base table `inet psiphon_filter`: what may pass in each state (R1, R2, R4, R5, R7, R10, R11, R19).

Here are the chains for what this machine itself sends and receives, and the whole table.
"""

from psiphon_vpn.policy import names
from psiphon_vpn.policy.guests import guest_input_rules, guest_output_rules
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.plumbing import ICMPV6
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Set, Table
from psiphon_vpn.policy.transit import build_forward, build_open_chains, build_postrouting, build_wire_mark, guest_jump
from psiphon_vpn.policy.values import LOOPBACK, name_by_index, quote_set
from psiphon_vpn.policy.wire import (
    REFUSED_IPV4,
    REFUSED_IPV6,
    TCP,
    UDP,
    core_rules,
    plumbing_rules,
    refusal_rules,
    tunnel_address_rules,
)

HEADING = {
    State.LOCKED: "Locked: nothing leaves this machine but what keeps its own link alive (DHCP, neighbour discovery).",
    State.CONNECTING: "Connecting: psiphon-tunnel-core may reach its server; applications may reach nothing.",
    State.VERIFYING: "Verifying: as connecting; the service asks the resolver through the tunnel whether it answers.",
    State.OPEN: "Open: applications may use the tunnel for as long as the service renews the lease; no wire, ever.",
    State.FAILED: "Failed: locked, until a person does something about it.",
}


def _socks_rules(policy: Policy) -> tuple[Rule, ...]:
    port = policy.socks_port
    rules = []
    if policy.tunnel_may_open:
        rules.append(
            Rule(
                text=f"oif {LOOPBACK} tcp dport {port} oifname @{names.LEASE_SET} accept",
                comment="the core's SOCKS proxy while the lease runs",
            )
        )
    rules.append(
        Rule(
            text=f"oif {LOOPBACK} ip daddr 127.0.0.0/8 tcp dport {port} reject with tcp reset",
            comment="the core's SOCKS proxy is closed while the tunnel is",
        )
    )
    return tuple(rules)


def _tunnel_rules(policy: Policy) -> tuple[Rule, ...]:
    """The way into the TUN, as seen by the output chain."""
    uid, owner = policy.identity.uid, policy.identity.owner
    rules: list[Rule] = []
    if policy.core_may_connect:
        rules.append(
            Rule(
                text=f"{owner} ip saddr {names.TUN_IPV4} ip daddr {names.RESOLVER_IPV4} udp dport 53 accept",
                comment="the service asks the resolver whether the tunnel carries packets",
            )
        )
        if policy.ipv6_probe:
            rules.append(
                Rule(
                    text=f"{owner} ip6 saddr {names.TUN_IPV6} ip6 daddr {quote_set(policy.ipv6_probe)} "
                    "udp dport 53 accept",
                    comment="the service asks whether the tunnel carries IPv6",
                )
            )
    rules.append(
        Rule(text=f"meta skuid {uid} counter goto refused", comment="the core must not loop into its own tunnel")
    )
    if not policy.tunnel_may_open:
        return tuple(rules)
    rules += [
        Rule(
            text=f"ip saddr != {names.TUN_IPV4} counter goto refused",
            comment="only the TUN's own address: the server answers to the first source it sees",
        ),
        Rule(text=f"ip6 saddr != {names.TUN_IPV6} counter goto refused", comment="only the TUN's own address"),
        Rule(text=f"meta l4proto != {{ {TCP}, {UDP} }} counter goto refused", comment="the tunnel carries TCP and UDP"),
        Rule(
            text=f"ip daddr {names.RESOLVER_IPV4} th dport 53 oifname @{names.LEASE_SET} accept",
            comment="names, asked of the resolver inside the tunnel",
        ),
        Rule(text=f"ip daddr {quote_set(REFUSED_IPV4)} counter goto refused", comment="no private or reserved address"),
        Rule(
            text=f"ip6 daddr {quote_set(REFUSED_IPV6)} counter goto refused", comment="no private or reserved address"
        ),
        Rule(text="meta nfproto ipv6 th dport 53 counter goto refused", comment="IPv6 resolvers: programs try IPv4"),
        Rule(
            text=f"meta nfproto ipv4 oifname @{names.LEASE_SET} accept",
            comment="applications, while the lease runs",
        ),
        Rule(
            text=f"meta nfproto ipv6 oifname @{names.LEASE_SET_IPV6} accept",
            comment="applications, while the lease runs and the tunnel carries IPv6",
        ),
    ]
    return tuple(rules)


def _output(policy: Policy) -> tuple[Chain, ...]:
    rules = [*_socks_rules(policy), Rule(text=f"oif {LOOPBACK} accept", comment="this machine to itself")]
    chains = [Chain(name="refused", rules=refusal_rules())]
    if policy.links.tun_index is not None:
        chains.append(Chain(name="to_tunnel", rules=(*_tunnel_rules(policy), Rule(text="goto refused"))))
        rules.append(
            Rule(
                text=f'oifname "{names.TUN_NAME}" oif {name_by_index(policy.links.tun_index)} goto to_tunnel',
                comment="into the tunnel: our own TUN, by name and by index",
            )
        )
    rules.append(Rule(text=f'oifname "{names.TUN_NAME}" goto refused', comment="a device that only has its name"))
    rules += [
        *tunnel_address_rules("goto refused"),
        *_stranger_rules(policy),
        *guest_jump(policy.links),
        Rule(text="jump to_wire", comment="everything else is a wire: only what chain to_wire lists may leave"),
        Rule(text="goto refused", comment="and nothing else"),
    ]
    if policy.links.bridges:
        chains.append(
            Chain(name=names.GUESTS_CHAIN, rules=guest_output_rules(policy.links.bridges, policy.identity.uid))
        )
    chains.append(
        Chain(
            name="to_wire",
            rules=(
                *plumbing_rules(policy.identity, policy.links.dhcp_servers, policy.links.on_link),
                *core_rules(policy),
            ),
        )
    )
    chains.append(
        Chain(name="output", hook=Hook(kind="filter", hook="output", priority=0, policy="drop"), rules=tuple(rules))
    )
    return tuple(chains)


def _stranger_rules(policy: Policy) -> tuple[Rule, ...]:
    """A container on this network may have both numbers of psiphon-user; it is not in the service's control group.

    Matched is who is in it: a socket whose group is not so deep matches no level, and would pass by an inversion.
    """
    if policy.control_group is None or not policy.core_may_connect:
        return ()
    owner = policy.identity.owner
    return (
        Rule(text=f"{owner} {policy.control_group.match} jump to_wire", comment="psiphon-user in the service"),
        Rule(text=f"{owner} counter goto refused", comment="a process with psiphon-user's numbers elsewhere"),
    )


def _input(policy: Policy) -> Chain:
    rules = [
        Rule(text=f"iif {LOOPBACK} accept", comment="this machine to itself"),
        Rule(text="ct state invalid counter drop"),
    ]
    if policy.links.tun_index is not None:
        rules.append(
            Rule(
                text=f'iifname "{names.TUN_NAME}" iif {name_by_index(policy.links.tun_index)} '
                "ct state established,related accept",
                comment="answers out of the tunnel",
            )
        )
    rules.append(Rule(text=f'iifname "{names.TUN_NAME}" counter drop', comment="nobody reaches in through the tunnel"))
    rules += tunnel_address_rules()
    rules += [
        Rule(
            text=f"ct state established,related ct direction reply ct mark {names.CORE_MARK} accept",
            comment="answers to psiphon-user, and path MTU errors about its flows",
        ),
        Rule(
            text=f"meta l4proto {ICMPV6} icmpv6 type {{ 134, 135, 136 }} icmpv6 code 0 ip6 hoplimit 255 accept",
            comment="IPv6 neighbour discovery: RA, NS, NA from this link",
        ),
        Rule(
            text=f"meta l4proto {ICMPV6} icmpv6 type 130 ip6 saddr fe80::/10 ip6 hoplimit 1 accept",
            comment="MLD queries from this link",
        ),
        *guest_input_rules(policy.links.bridges),
        Rule(text="udp sport 67 udp dport 68 accept", comment="DHCP answers"),
        Rule(text="ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept", comment="DHCPv6 answers"),
    ]
    return Chain(name="input", hook=Hook(kind="filter", hook="input", priority=0, policy="drop"), rules=tuple(rules))


def build_base_table(policy: Policy) -> Table:
    """The base table for a policy. Pure."""
    lease = "an interface named here is open; the kernel forgets it by itself, the service renews it (B2)"
    chains = [*_output(policy), _input(policy), build_forward(policy), build_postrouting(policy), build_wire_mark()]
    if policy.tunnel_may_open:
        chains += build_open_chains(policy)
    return Table(
        family="inet",
        name=names.BASE_TABLE,
        sets=(
            Set(name=names.LEASE_SET, type="ifname", flags="timeout", comment=lease),
            Set(name=names.LEASE_SET_IPV6, type="ifname", flags="timeout", comment="the same for IPv6"),
        ),
        chains=tuple(chains),
        heading=f"Psiphon kill switch. {HEADING[policy.state]}\nWritten by psiphon-vpn; do not edit.",
    )
