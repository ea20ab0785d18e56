# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The base table's other chains: forward, prerouting and postrouting, address translation."""

from psiphon_vpn.policy import names, permits
from psiphon_vpn.policy.match import Permit
from psiphon_vpn.policy.model import Links, Policy
from psiphon_vpn.policy.render_rules import TUNNEL_PROTOCOLS, RenderContext, accept, render_match
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule
from psiphon_vpn.policy.shortcuts import core_shortcuts
from psiphon_vpn.policy.values import LOOPBACK, InterfaceName, name_by_index, quote_set
from psiphon_vpn.policy.wire import REFUSED_IPV4, REFUSED_IPV6, find_core_match, may_open, tunnel_address_rules

_TUN = InterfaceName(names.TUN_NAME)


def _may_forward(policy: Policy) -> bool:
    """Whether containers may use the tunnel: only where it is known which interfaces lead out."""
    return may_open(policy) and bool(policy.links.wires) and policy.links.container_interfaces != ()


def _avoid_wires(side: str, links: Links, *others: InterfaceName) -> str:
    """Text that matches a container's interface: no wire, not loopback, none of the others."""
    if links.container_interfaces is not None:
        return f"{side}name {quote_set(links.container_interfaces)}"
    return f"{side}name != {quote_set(dict.fromkeys((*others, *links.wires)))} {side} != {LOOPBACK}"


def _refuse_wires(links: Links) -> list[Rule]:
    """Forward nothing that comes from a wire or goes to one."""
    sides = (
        ("iif", "this machine is no router for the wire's other hosts"),
        ("oif", "nothing is forwarded onto a wire"),
    )
    rules = []
    if links.wires:
        wires = quote_set(links.wires)
        rules += [Rule(text=f"{side}name {wires} counter drop", comment=comment) for side, comment in sides]
    if links.container_interfaces is not None:
        container_interfaces = quote_set((_TUN, *links.container_interfaces))
        rules += [
            Rule(
                text=f"{side}name != {container_interfaces} counter drop",
                comment="a wire may have a name that stands in no rule",
            )
            for side, _ in sides
        ]
    return rules


def build_forward(policy: Policy) -> Chain:
    """Containers and virtual machines: through the tunnel or nowhere. Hosts on a wire are not among them."""
    rules = _refuse_wires(policy.links)
    if _may_forward(policy) and policy.links.tun_index is not None:
        tun = f'"{names.TUN_NAME}"'
        index = name_by_index(policy.links.tun_index)
        context = RenderContext(identity=policy.identity)

        def let_in(permit: Permit) -> Rule:
            into = f"oifname {tun} oif {index}"
            return accept(permit, render_match(permit.match, context, interface=into, checked=TUNNEL_PROTOCOLS))

        answers = render_match(permits.CONTAINER_ANSWERS.match, context, interface=f"iifname {tun} iif {index}")
        rules += [
            accept(permits.CONTAINER_ANSWERS, answers),
            Rule(
                text=f"meta l4proto != {quote_set(TUNNEL_PROTOCOLS)} counter reject with icmpx type admin-prohibited",
                comment="the tunnel carries TCP and UDP",
            ),
            let_in(permits.CONTAINER_NAMES),
            Rule(
                text=f"ip daddr {quote_set(REFUSED_IPV4)} counter reject with icmpx type admin-prohibited",
                comment="no private or reserved address",
            ),
            Rule(
                text=f"ip6 daddr {quote_set(REFUSED_IPV6)} counter reject with icmpx type admin-prohibited",
                comment="no private or reserved address",
            ),
            let_in(permits.CONTAINERS),
            let_in(permits.CONTAINERS_IPV6),
        ]
    rules.append(
        Rule(text="counter reject with icmpx type admin-prohibited", comment="forwarded: only into the tunnel")
    )
    return Chain(
        name="forward", hook=Hook(kind="filter", hook="forward", priority=0, policy="drop"), rules=tuple(rules)
    )


def build_postrouting(policy: Policy) -> tuple[Chain, ...]:
    """The second check, after address translation, where the final interface is known.

    Another program's `type route` chain or DNAT can move a packet to another interface after `output` has seen it.
    """
    rules = [
        accept(permits.LOOPBACK, f"oif {LOOPBACK}"),
        Rule(text=f'oifname "{names.TUN_NAME}" goto into_tunnel', comment="into the tunnel"),
    ]
    rules += core_shortcuts(policy, find_core_match(policy), group=False)
    rules += tunnel_address_rules()
    if _may_forward(policy):
        rules.append(
            accept(
                permits.CONTAINER_ANSWERS,
                f"{_avoid_wires('oif', policy.links)} ct direction reply ct status snat",
                "answers out of the tunnel to containers",
            )
        )
    rules += guest_jump(policy.links)
    rules.append(Rule(text="jump to_wire", comment="everything else is a wire"))
    rules.append(Rule(text="counter drop"))
    hook = Hook(kind="filter", hook="postrouting", priority=300, policy="drop")
    return (
        Chain(name="into_tunnel", rules=_into_tunnel_rules(policy)),
        Chain(name="postrouting", hook=hook, rules=tuple(rules)),
    )


def _into_tunnel_rules(policy: Policy) -> tuple[Rule, ...]:
    rules = []
    if policy.links.tun_index is not None:
        into = f'oifname "{names.TUN_NAME}" oif {name_by_index(policy.links.tun_index)}'
        rules += [
            accept(permit, f"{into} {word} saddr {address}", "the source that the server has seen first")
            for permit, word, address in (
                (permits.APPLICATIONS, "ip", names.TUN_IPV4),
                (permits.APPLICATIONS_IPV6, "ip6", names.TUN_IPV6),
            )
        ]
    return (*rules, Rule(text="counter drop", comment="one stray source would spoil a session"))


def guest_jump(links: Links) -> tuple[Rule, ...]:
    """The jump to the rules about guests, if there are any."""
    if not links.bridges:
        return ()
    return (Rule(text=f"jump {names.GUESTS_CHAIN}", comment="guests on bridges that root allowed"),)


def build_wire_mark() -> Chain:
    """The mark that makes the reverse-path check use the main table (see `psiphon_vpn.policy.routing`).

    Only packets that *arrive* get it, and the routing rule that matches it does not apply to forwarded packets.
    """
    return Chain(
        name="mark_wire",
        hook=Hook(kind="filter", hook="prerouting", priority=-150, policy="accept"),
        rules=(
            Rule(
                text=f'iif != {LOOPBACK} iifname != "{names.TUN_NAME}" meta mark set {names.CORE_MARK}',
                comment="reverse-path check of what arrives on a wire: against the main table",
            ),
        ),
    )


def build_open_chains(policy: Policy) -> tuple[Chain, ...]:
    """Address translation. Needed only while open: only then do applications use the tunnel."""
    assert policy.links.tun_index is not None, "open without a TUN"
    tun, uid = names.TUN_NAME, policy.identity.uid
    resolver = f"th dport 53 dnat ip to {names.RESOLVER_IPV4}"
    protocols = f"meta l4proto {quote_set(TUNNEL_PROTOCOLS)}"
    into = f'oifname "{tun}" oif {name_by_index(policy.links.tun_index)}'
    chains = [
        Chain(
            name="dns_output",
            hook=Hook(kind="nat", hook="output", priority=-100, policy="accept"),
            rules=(
                Rule(
                    text=f"meta nfproto ipv4 oif != {LOOPBACK} meta skuid != {uid} {protocols} {resolver}",
                    comment="every name is asked of the resolver inside the tunnel, whatever resolv.conf says",
                ),
            ),
        ),
    ]
    if _may_forward(policy):
        elsewhere = _avoid_wires("iif", policy.links, _TUN)
        chains += [
            Chain(
                name="dns_prerouting",
                hook=Hook(kind="nat", hook="prerouting", priority=-100, policy="accept"),
                rules=(
                    Rule(
                        text=f"meta nfproto ipv4 {elsewhere} fib daddr type != local {protocols} {resolver}",
                        comment="names asked by containers",
                    ),
                ),
            ),
            Chain(
                name="source_nat",
                hook=Hook(kind="nat", hook="postrouting", priority=100, policy="accept"),
                rules=(
                    Rule(text=f"{into} ip saddr != {names.TUN_IPV4} snat ip to {names.TUN_IPV4}", comment="containers"),
                    Rule(
                        text=f"{into} ip6 saddr != {names.TUN_IPV6} snat ip6 to {names.TUN_IPV6}", comment="containers"
                    ),
                ),
            ),
        ]
    return tuple(chains)
