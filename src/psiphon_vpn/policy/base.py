# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The base table `inet psiphon_filter`: what may pass in each state (R1, R2, R4, R5, R7, R10, R11, R19).

This module has the chains for what this machine itself sends and receives, and puts the whole table together.
"""

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.forward_and_nat import (
    build_forward,
    build_open_chains,
    build_postrouting,
    build_wire_mark,
    guest_jump,
)
from psiphon_vpn.policy.match import Permit, RuntimeValue
from psiphon_vpn.policy.model import Policy, State
from psiphon_vpn.policy.render_guests import guest_input_rules, guest_output_rules
from psiphon_vpn.policy.render_rules import TUNNEL_PROTOCOLS, RenderContext, accept, render_match
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Set, Table
from psiphon_vpn.policy.shortcuts import answer_shortcuts, application_shortcuts, core_shortcuts
from psiphon_vpn.policy.values import LOOPBACK, name_by_index, quote_set
from psiphon_vpn.policy.wire import (
    REFUSED_IPV4,
    REFUSED_IPV6,
    core_rules,
    find_core_match,
    may_connect,
    may_open,
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


def _loopback_rules(policy: Policy) -> tuple[Rule, ...]:
    """What this machine may send to itself: everything, but to the SOCKS proxy only while the tunnel is open."""
    port = policy.socks_port
    rules = []
    if may_open(policy):
        context = RenderContext(identity=policy.identity, values={RuntimeValue.SOCKS_PORT: (port,)})
        rules.append(accept(permits.SOCKS, render_match(permits.SOCKS.match, context, interface=f"oif {LOOPBACK}")))
    rules.append(
        Rule(
            text=f"tcp dport {port} ip daddr 127.0.0.0/8 reject with tcp reset",
            comment="the core's SOCKS proxy is closed while the tunnel is",
        )
    )
    return (*rules, accept(permits.LOOPBACK, f"oif {LOOPBACK}"))


def _tunnel_rules(policy: Policy) -> tuple[Rule, ...]:
    """What may enter the TUN from the output chain."""
    uid = policy.identity.uid
    context = RenderContext(identity=policy.identity, values={RuntimeValue.PROBED: policy.ipv6_probe})
    rules: list[Rule] = []
    if may_open(policy):
        rules += application_shortcuts(policy.identity, {4: REFUSED_IPV4, 6: REFUSED_IPV6})
    if may_connect(policy):
        rules.append(accept(permits.PROBE, render_match(permits.PROBE.match, context)))
        if policy.ipv6_probe:
            rules.append(accept(permits.PROBE_IPV6, render_match(permits.PROBE_IPV6.match, context)))
    rules.append(
        Rule(text=f"meta skuid {uid} counter goto refused", comment="the core must not loop into its own tunnel")
    )
    if not may_open(policy):
        return tuple(rules)
    rules += [
        Rule(
            text=f"ip saddr != {names.TUN_IPV4} counter goto refused",
            comment="only the TUN's own address: the server answers to the first source it sees",
        ),
        Rule(text=f"ip6 saddr != {names.TUN_IPV6} counter goto refused", comment="only the TUN's own address"),
        Rule(
            text=f"meta l4proto != {quote_set(TUNNEL_PROTOCOLS)} counter goto refused",
            comment="the tunnel carries TCP and UDP",
        ),
        _leased(permits.NAMES, context),
        Rule(text=f"ip daddr {quote_set(REFUSED_IPV4)} counter goto refused", comment="no private or reserved address"),
        Rule(
            text=f"ip6 daddr {quote_set(REFUSED_IPV6)} counter goto refused", comment="no private or reserved address"
        ),
        Rule(text="meta nfproto ipv6 th dport 53 counter goto refused", comment="IPv6 resolvers: programs try IPv4"),
        _leased(permits.APPLICATIONS, context),
        _leased(permits.APPLICATIONS_IPV6, context),
    ]
    return tuple(rules)


def _leased(permit: Permit, context: RenderContext) -> Rule:
    return accept(permit, render_match(permit.match, context, checked=TUNNEL_PROTOCOLS))


def _output(policy: Policy) -> tuple[Chain, ...]:
    # A chain for each kind of packet, so that no kind is asked about another: by interfaces, which exclude each other.
    chains = [Chain(name="refused", rules=refusal_rules()), Chain(name="loopback", rules=_loopback_rules(policy))]
    rules = [Rule(text=f"oif {LOOPBACK} goto loopback", comment="this machine to itself")]
    if policy.links.tun_index is not None:
        chains.append(Chain(name="to_tunnel", rules=(*_tunnel_rules(policy), Rule(text="goto refused"))))
        rules.append(
            Rule(
                text=f'oifname "{names.TUN_NAME}" oif {name_by_index(policy.links.tun_index)} goto to_tunnel',
                comment="into the tunnel: our own TUN, by name and by index",
            )
        )
    rules += [
        # The uplink, which they name, never has the TUN's name.
        *core_shortcuts(policy, find_core_match(policy), group=True),
        Rule(text=f'oifname "{names.TUN_NAME}" goto refused', comment="a device that only has its name"),
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
    """A container on the host's network may have psiphon-user's uid and gid, but not the service's control group.

    The rule matches membership and refuses the rest. A socket in a group that is less deep matches no level, so an
    inverted match (`!=`) would let it pass.
    """
    if policy.control_group is None or not may_connect(policy):
        return ()
    owner = policy.identity.owner
    return (
        Rule(text=f"{owner} {policy.control_group.match} jump to_wire", comment="psiphon-user in the service"),
        Rule(text=f"{owner} counter goto refused", comment="a process with psiphon-user's numbers elsewhere"),
    )


def _input(policy: Policy) -> Chain:
    context = RenderContext(identity=policy.identity)

    def let_in(permit: Permit, interface: str = "") -> Rule:
        return accept(permit, render_match(permit.match, context, interface=interface))

    rules = [accept(permits.LOOPBACK_IN, f"iif {LOOPBACK}")]
    # Both of these accept packets of known flows alone, so it makes no difference that invalid ones are dropped later.
    if policy.links.tun_index is not None:
        tun = f'iifname "{names.TUN_NAME}" iif {name_by_index(policy.links.tun_index)}'
        rules.append(let_in(permits.TUNNEL_ANSWERS, tun))
    rules += answer_shortcuts(policy.identity)
    rules.append(Rule(text="ct state invalid counter drop"))
    rules.append(Rule(text=f'iifname "{names.TUN_NAME}" counter drop', comment="nobody reaches in through the tunnel"))
    rules += tunnel_address_rules()
    rules += [
        *map(let_in, (permits.CORE_ANSWERS, permits.NEIGHBOURS_IN, permits.MLD_QUERIES)),
        *guest_input_rules(policy.links.bridges),
        *map(let_in, (permits.DHCP_ANSWERS, permits.DHCPV6_ANSWERS)),
    ]
    return Chain(name="input", hook=Hook(kind="filter", hook="input", priority=0, policy="drop"), rules=tuple(rules))


def build_base_table(policy: Policy) -> Table:
    """The base table of a policy. Pure."""
    lease = "an interface named here is open; the kernel forgets it by itself, the service renews it (B2)"
    chains = [*_output(policy), _input(policy), build_forward(policy), *build_postrouting(policy), build_wire_mark()]
    if may_open(policy):
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


def build_drop_only(table: Table) -> Table:
    """The replacement for a base table that did not load: loopback, and nothing else in any direction."""
    lo = accept(permits.LOOPBACK, f"oif {LOOPBACK}", "")
    return Table(
        family=table.family,
        name=table.name,
        chains=tuple(
            Chain(name=name, hook=Hook(kind="filter", hook=name, priority=priority, policy="drop"), rules=rules)
            for name, priority, rules in (
                ("output", 0, (lo,)),
                ("input", 0, (accept(permits.LOOPBACK_IN, f"iif {LOOPBACK}", ""),)),
                ("forward", 0, ()),
                ("postrouting", 300, (lo,)),
            )
        ),
        heading="Psiphon kill switch: the policy's own rules could not be loaded. Everything is dropped.",
    )
