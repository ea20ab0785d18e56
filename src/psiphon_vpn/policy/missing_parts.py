"""The rules for a kernel or an nft that lacks a part: the same, without the words that it does not know. Pure.

Small kernels, those of vendors and of WSL leave parts of nf_tables out, and one unknown word costs a whole transaction.
What is left lets out no more, but for one case that is named at `Part.RT`.
"""

import enum
import re
from collections.abc import Set
from dataclasses import replace

from psiphon_vpn.policy.ruleset import Chain, Rule, Table


class Part(enum.StrEnum):
    """A part of nf_tables that may be missing. Its value is the name in `status`."""

    REJECT = "reject"
    """Packets are refused at once; without it they are dropped, and programs wait."""
    NAT = "nat"
    """Names and containers are translated; without it there are no containers, and names resolve only where
    resolv.conf says 10.200.3.2 or a resolver on the internet."""
    FIB = "fib"
    """Tells a container's question to this machine from others; without it containers' names are not translated."""
    RT = "rt"
    """Tells whether the core's packet goes by a gateway; without it a core that has lost its route asks the link for
    its server by ARP, until the lost route is heard of. nft has no other word for it."""
    MAXSEG = "maxseg"
    """Makes the segments of TCP smaller on the way into the tunnel; without it large packets may be lost there."""


_REJECT = re.compile(r" reject with (?:tcp reset|icmpx type [a-z-]+)$")


def do_without(table: Table, lacking: Set[Part]) -> Table:
    """A table without the words of the parts that are missing; the same table where none is."""
    if not lacking:
        return table
    return replace(table, chains=tuple(kept for chain in table.chains if (kept := _keep_chain(chain, lacking))))


def _keep_chain(chain: Chain, lacking: Set[Part]) -> Chain | None:
    if Part.NAT in lacking and chain.hook is not None and chain.hook.kind == "nat":
        return None
    rules = tuple(kept for rule in chain.rules if (kept := _keep_rule(rule, lacking)) is not None)
    # A chain that only translates is of no use without its rule; one that filters is kept, with its policy.
    return replace(chain, rules=rules) if rules or not chain.rules else None


def _keep_rule(rule: Rule, lacking: Set[Part]) -> Rule | None:
    if (
        (Part.RT in lacking and " rt " in rule.text)
        or (Part.FIB in lacking and "fib " in rule.text)
        or (Part.MAXSEG in lacking and "tcp option maxseg" in rule.text)
    ):
        return None
    return replace(rule, text=_REJECT.sub(" drop", rule.text)) if Part.REJECT in lacking else rule
