# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules for a kernel or an nft that lacks a part of nf_tables: the same, without the expressions it lacks. Pure.

Small kernels, vendor kernels and WSL leave parts out, and one unknown expression makes a whole transaction fail. The
reduced rules let nothing more out, except in the case described at `Part.RT`.
"""

import enum
import re
from collections.abc import Set
from dataclasses import replace

from psiphon_vpn.policy.ruleset import Chain, Rule, Table


class Part(enum.StrEnum):
    """A part of nf_tables that may be missing. Its value is the name in `status`."""

    REJECT = "reject"
    """Refuses packets at once; without it they are dropped, and programs wait."""
    NAT = "nat"
    """Translates DNS queries and containers' addresses; without it containers get nothing, and names resolve only if
    resolv.conf has 10.200.3.2 or a resolver on the internet."""
    FIB = "fib"
    """Tells a container's DNS query to this machine from others; without it containers' queries are not translated."""
    RT = "rt"
    """Tells whether the core's packet goes through a gateway; without it a core that has lost its route looks for its
    server on the link with ARP, until the daemon sees the change. nft has no other expression for this."""


_REJECT = re.compile(r" reject with (?:tcp reset|icmpx type [a-z-]+)$")


def do_without(table: Table, lacking: Set[Part]) -> Table:
    """A table without the expressions of the missing parts; the same table if none is missing."""
    if not lacking:
        return table
    return replace(table, chains=tuple(kept for chain in table.chains if (kept := _keep_chain(chain, lacking))))


def _keep_chain(chain: Chain, lacking: Set[Part]) -> Chain | None:
    if Part.NAT in lacking and chain.hook is not None and chain.hook.kind == "nat":
        return None
    rules = tuple(kept for rule in chain.rules if (kept := _keep_rule(rule, lacking)) is not None)
    # A chain that only translates is useless without its rule; one that filters is kept, with its policy.
    return replace(chain, rules=rules) if rules or not chain.rules else None


def _keep_rule(rule: Rule, lacking: Set[Part]) -> Rule | None:
    if (Part.RT in lacking and " rt " in rule.text) or (Part.FIB in lacking and "fib " in rule.text):
        return None
    return replace(rule, text=_REJECT.sub(" drop", rule.text)) if Part.REJECT in lacking else rule
