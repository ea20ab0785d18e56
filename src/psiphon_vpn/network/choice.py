# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The choice of the uplink: which one, when to try another, and what counts as a network transition (R6). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_vpn.network.uplink import Uplink
from psiphon_vpn.policy.routing import IPV4, IPV6

FIRST_PATIENCE_SECONDS, LAST_PATIENCE_SECONDS = 30.0, 480.0


@dataclass(frozen=True)
class SocketUse:
    """What one socket of the core uses of its uplink.

    Attributes:
        version: of IP.
        place: place of its source address (see `Interface.addresses`); None if the kernel chooses it for each packet.
    """

    version: int
    place: str | None


def still_serves(before: Uplink, now: Uplink, uses: Iterable[SocketUse] | None = None) -> bool:
    """Whether everything in use of an uplink is still there. Additions do not matter.

    Args:
        before: the uplink when the core was started.
        now: the uplink now.
        uses: what the core's sockets use; if there are none, or it is unknown, everything in `before` counts as in use.
    """
    if (before.index, before.name) != (now.index, now.name):
        return False
    known = frozenset(uses or ())
    used = {use.version for use in known} or {IPV4, IPV6}
    ways = {path.version: path for path in now.paths}
    for path in before.paths:
        if path.version not in used:
            continue
        way = ways.get(path.version)
        # The kernel chooses among several gateways, so each of them was in use.
        if way is None or not set(path.gateways) <= set(way.gateways) or bool(path.gateways) != bool(way.gateways):
            return False
        if (not known or SocketUse(path.version, None) in known) and not set(path.places) <= set(way.places):
            return False
    # Check also versions and addresses that were added, and that a socket uses since.
    return all(use.version in ways and (use.place is None or use.place in ways[use.version].places) for use in known)


def pick_uplink(choices: Iterable[Uplink], *, named: str, unsuccessful: frozenset[int]) -> Uplink | None:
    """The uplink to use.

    Args:
        choices: the best first.
        named: the one that the configuration names; then no other is used.
        unsuccessful: indexes of those that brought no tunnel. If all are, the best is tried again.
    """
    fit = [uplink for uplink in choices if uplink.name == (named or uplink.name)]
    return next((uplink for uplink in fit if uplink.index not in unsuccessful), fit[0] if fit else None)


def find_patience(rounds: int) -> float:
    """Seconds that an uplink gets to bring a tunnel while there are others, after so many rounds through all."""
    return min(LAST_PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS * 2.0 ** min(rounds, 10))


def explain_choice(uplink: Uplink, choices: Iterable[Uplink], *, named: str, unsuccessful: frozenset[int]) -> str:
    """Why this uplink was chosen: a code for programs.

    Returns:
        "named": the configuration names it; "only": there is no other; "gave_way": others brought no tunnel; "best".
    """
    if named:
        return "named"
    others = [other for other in choices if other.index != uplink.index]
    if not others:
        return "only"
    return "gave_way" if any(other.index in unsuccessful for other in others) else "best"


def find_next(
    current: Uplink, choices: Iterable[Uplink], *, named: str, unsuccessful: frozenset[int]
) -> tuple[Uplink, frozenset[int]] | None:
    """The uplink to try after one that brought no tunnel.

    Returns:
        That uplink, and the indexes to skip from now on (empty once all were tried). None if there is no other.
    """
    fit = [uplink for uplink in choices if uplink.name == (named or uplink.name)]
    if all(uplink.index == current.index for uplink in fit):
        return None
    tried = unsuccessful | {current.index}
    if all(uplink.index in tried for uplink in fit):
        tried = frozenset()
    # After a whole round the best comes first again; it differs from `current` unless the order changed meanwhile.
    following = pick_uplink(fit, named=named, unsuccessful=tried or frozenset({current.index}))
    return (following, tried) if following is not None else None
