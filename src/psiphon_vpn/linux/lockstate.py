# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Is this machine locked? Read from the kernel, without a daemon: `status` uses nothing else."""

import asyncio
import contextlib
import json
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.frame_guard import describe_frame_guard, read_guarded_cards
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nftimage import find_owner, read_dormant
from psiphon_vpn.linux.rtlist import list_links
from psiphon_vpn.linux.traffic import explain_cut_off, read_standings
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import BRIDGES
from psiphon_vpn.policy.simulate import application_packets, lets_out
from psiphon_vpn.policy.traffic_control import Filter
from psiphon_vpn.run import CommandError, require_result, run_async


@dataclass(frozen=True, kw_only=True)
class LockState:
    """What the kernel's rules say.

    Attributes:
        locked: whether no packet of an application can leave on a wire; None if the kernel may not be read.
        sentence: the same, for people.
        layers: state ("ok", "missing", "incomplete", "broken") and detail of base, wire_guard, egress_guard,
            frame_guard, traffic_control and lease; frame_guard is left out if there is no card.
        lease_seconds: how long the lease still lasts, None without a lease.
    """

    locked: bool | None
    sentence: str
    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    lease_seconds: float | None = None


def _layer(state: str, detail: str) -> dict[str, str]:
    return {"state": state, "detail": detail}


async def _list(what: str, *address: str) -> list[Any] | None:
    """Nft's listing of a table, chain or set in JSON; None if it does not exist.

    Raises:
        CommandError: no permission, or nft is not installed.
        ValueError: the output is not JSON.
    """
    try:
        objects: list[Any] = json.loads((await run_async(["nft", "-j", "list", what, *address])).stdout)["nftables"]
    except CommandError as error:
        if "No such file" in error.stderr:
            return None
        raise
    return objects


async def _read_guard() -> list[Any] | None:
    """The wire guard chain by chain: nft 1.0.6 prints uninitialised memory for the flags of a table in JSON."""
    chain = await _list("chain", "inet", names.GUARD_TABLE, "output")
    if chain is None:
        return None
    return [entry for entry in chain if "table" not in entry]


def _read_dormant() -> frozenset[tuple[str, str]]:
    """By netlink: nft's JSON is not reliable about a table's flags."""
    with contextlib.closing(NftSocket()) as netlink:
        return read_dormant(netlink)


def _is_bridge_guarded() -> bool:
    with contextlib.closing(NftSocket()) as netlink:
        return find_owner(netlink, *BRIDGES.address) is not None


def _holds(objects: list[Any] | None, bridges: frozenset[str] | None) -> bool:
    """Whether a table alone stops every sample of an application."""
    if objects is None:
        return False
    return not any(lets_out(objects, packet) for packet in application_packets(name_loopback(), bridges))


async def _read_lease() -> float | None:
    """Seconds that remain of the lease."""
    remaining = [
        element["elem"].get("expires", 0)
        for entry in await _list("set", "inet", names.BASE_TABLE, names.LEASE_SET) or ()
        for element in entry.get("set", {}).get("elem", ())
        if isinstance(element, dict)
    ]
    return float(max(remaining)) if remaining else None


async def find_cut_off() -> tuple[str, ...]:
    """Names of the interfaces whose filter requires a mark that no guard sets there: nothing leaves by them.

    Raises:
        OSError: the kernel does not list the filters.
        CommandError: nft does not list the guards.
    """
    standings = await read_standings()
    asking = [index for index, standing in standings.items() if standing.filter is Filter.MARKED]
    if not asking:
        return ()
    marking = list_marking((await run_async(["nft", "list", "ruleset", "netdev"])).stdout)
    named = (socket.if_indextoname(index) for index in asking)
    return tuple(name for name in named if name not in marking)


def list_marking(listing: str) -> frozenset[str]:
    """The devices with one of our guards that marks what it accepts, from nft's listing of family netdev.

    Each has its own chain. A guard of another version may mark nothing, and a dormant one meets no frame.
    """
    found: set[str] = set()
    for table in re.split(r"^(?=table )", listing, flags=re.MULTILINE):
        named = re.match(r"table netdev (\S+) ", table)
        ours = named is not None and named[1] in {names.EGRESS_TABLE, names.FRAME_TABLE}
        if ours and "mark set" in table and not re.search(r"^\s*flags .*dormant", table, flags=re.MULTILINE):
            found.update(re.findall(rf"^\s*chain {names.DEVICE_CHAIN_PREFIX}(\S+) ", table, flags=re.MULTILINE))
    return frozenset(found)


async def _read_cards() -> dict[str, dict[str, str]]:
    frames = await _read_frames()
    return {**({"frame_guard": frames} if frames is not None else {}), "traffic_control": await _read_filters()}


async def _read_frames() -> dict[str, str] | None:
    try:
        with contextlib.closing(NftSocket()) as netlink:
            guarded = read_guarded_cards(netlink)
        described = describe_frame_guard(guarded, [link.name for link in await list_links() if link.card])
    except OSError:
        return _layer("missing", "")  # nothing of the lock rests on it
    return None if described is None else _layer(*described)


async def _read_filters() -> dict[str, str]:
    """The layer at the cards' traffic control. Which interfaces are cards, only the daemon knows."""
    try:
        standings = await read_standings()
        cut_off = await find_cut_off()
    except (OSError, CommandError):
        return _layer("missing", "")  # or an interface went meanwhile; nothing of the lock rests on it
    if not any(standing.filter for standing in standings.values()):
        return _layer("missing", "")
    if cut_off:
        return _layer("broken", explain_cut_off(cut_off))
    return _layer("ok", "")


def read_lock_state() -> LockState:
    """Do what `fetch_lock_state` does where there is no event loop."""
    return asyncio.run(fetch_lock_state())


async def fetch_lock_state(*, cards: bool = True) -> LockState:
    """Read the lock from the kernel. Takes some tens of milliseconds; needs CAP_NET_ADMIN to look.

    Args:
        cards: look as well at what stands at the cards, frame guard and traffic control. The daemon knows it by itself.

    Returns:
        The lock's state; `locked` is None when it could not be read. Never raises.
    """
    try:
        # Wait for all: if one fails, the others would still run when the loop is closed.
        found = await asyncio.gather(
            _list("table", "inet", names.BASE_TABLE),
            _read_guard(),
            _list("table", "netdev", names.EGRESS_TABLE),
            _read_lease(),
            return_exceptions=True,
        )
        base, guard, egress, lease = (
            require_result(found[0]),
            require_result(found[1]),
            require_result(found[2]),
            require_result(found[3]),
        )
        dormant = _read_dormant()
        links = await list_links()
        # Of all bridges while the bridge guard stands.
        bridges = frozenset(link.name for link in links if link.kind == "bridge") if _is_bridge_guarded() else None
        base_holds = _holds(base, bridges) and ("inet", names.BASE_TABLE) not in dormant
        guard_holds = _holds(guard, bridges) and ("inet", names.GUARD_TABLE) not in dormant
    except (CommandError, OSError, ValueError, KeyError, TypeError, struct.error) as error:
        return LockState(
            locked=None,
            sentence=_("the lock cannot be read ({reason}); only root may look").format(
                reason=error.why if isinstance(error, CommandError) else type(error).__name__
            ),
        )
    layers = {
        "base": _describe(base, base_holds),
        "wire_guard": _describe(guard, guard_holds),
        "egress_guard": _describe(egress, ("netdev", names.EGRESS_TABLE) not in dormant),
        **(await _read_cards() if cards else {}),
        "lease": _layer("missing", "") if lease is None else _layer("ok", f"{lease:g} s"),
    }
    locked = base_holds or guard_holds
    if not locked:
        sentence = _("OPEN: no rule of the lock stands; traffic leaves this machine unprotected")
    elif lease is not None:
        sentence = _("locked: applications reach the internet through the tunnel only, while the lease runs")
    elif base_holds:
        sentence = _("locked: the base rules stand, nothing leaves this machine")
    else:
        sentence = _("locked: the base rules are gone, the wire guard alone stops everything")
    return LockState(locked=locked, sentence=sentence, layers=layers, lease_seconds=lease)


def _describe(listing: list[Any] | None, holds: bool) -> dict[str, str]:
    if listing is None:
        return _layer("missing", "")
    return _layer("ok", "") if holds else _layer("broken", _("it lets packets out"))
