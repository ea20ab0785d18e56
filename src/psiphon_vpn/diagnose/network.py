# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Links, addresses, rules and routes from netlink, as values; and a scratch network namespace for comparison.

Loading the policy in the *scratch network namespace* shows how this kernel and nft print it; the machine's own rules
are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from psiphon_vpn.linux import rtvalues
from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.lockstate import find_cut_off
from psiphon_vpn.linux.reading import Reading, parse_listing
from psiphon_vpn.linux.rtbatch import encode_link, encode_renaming
from psiphon_vpn.linux.rtlist import find_link, list_addresses, list_routes, list_rules
from psiphon_vpn.linux.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, RouteSocket
from psiphon_vpn.linux.rtvalues import IFF_UP, Link
from psiphon_vpn.linux.tcx import count_programs
from psiphon_vpn.linux.traffic import Standing, read_standings
from psiphon_vpn.linux.tun import read_attributes
from psiphon_vpn.network.uplink import Snapshot
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import IPV4, IPV6, LOCAL_TABLE, RoutingRule
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.run import CommandError, run_async

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device with the TUN's name.

    Attributes:
        kind: IFLA_INFO_KIND.
        attributes: its IFLA_TUN_* by name, as far as the kernel reports them.
        addresses: with their prefix lengths, "10.200.3.1/24".
    """

    index: int
    kind: str | None
    up: bool
    mtu: int
    attributes: dict[str, int]
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KernelRoute:
    """A route of any table except `local`. version: 4 or 6. device: index; None for unreachable and the like."""

    version: int
    table: int
    destination: str
    device: int | None
    gateway: bool
    type: int
    metric: int


@dataclass(frozen=True, kw_only=True)
class Network:
    """Everything that one reading of netlink gives."""

    snapshot: Snapshot
    rules: tuple[RoutingRule, ...]
    routes: tuple[KernelRoute, ...]
    tun: Device | None
    filters: Mapping[str, Standing] = field(default_factory=dict)
    """The traffic control of interfaces that use it, by name."""
    cut_off: tuple[str, ...] = ()
    """Interfaces by which nothing leaves, since their filter requires a mark that no guard sets there."""
    overtaken: tuple[str, ...] | None = ()
    """Interfaces with a tcx program, which decides before every filter (Linux 6.6); None if unknown."""

    @property
    def loopback(self) -> str:
        """The name of the loopback interface, which is recognised by its index."""
        found = (link.name for link in self.snapshot.interfaces if link.index == names.LOOPBACK_INDEX)
        return next(found, "lo")


def read_network() -> Network:
    """Read links, addresses, rules and routes of the network namespace of this thread.

    Raises:
        OSError: the kernel does not answer.
    """
    return asyncio.run(_read_network())


async def _read_network() -> Network:
    snapshot = await read_snapshot()
    link = find_link(names.TUN_NAME)
    tun = await _read_device(link) if link is not None else None
    rules: list[RoutingRule] = []
    routes: list[KernelRoute] = []
    for version in (IPV4, IPV6):
        rules += [found.rule for found in await list_rules(version)]
        for route in await list_routes(version):
            routes += _read_route(route)
    named = {link.index: link.name for link in snapshot.interfaces}
    filters = {named[index]: found for index, found in (await _read_filters()).items() if index in named}
    try:
        cut_off = await find_cut_off()
    except (OSError, CommandError):
        cut_off = ()  # an interface went meanwhile, or nft is missing, which other checks report
    return Network(
        snapshot=snapshot,
        rules=tuple(rules),
        routes=tuple(routes),
        tun=tun,
        filters=filters,
        cut_off=cut_off,
        overtaken=_find_overtaken(snapshot),
    )


async def _read_filters() -> dict[int, Standing]:
    try:
        return await read_standings()
    except OSError:
        return {}


def _find_overtaken(snapshot: Snapshot) -> tuple[str, ...] | None:
    found = []
    for link in snapshot.interfaces:
        try:
            if count_programs(link.index):
                found.append(link.name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                return None
    return tuple(found)


async def _read_device(link: Link) -> Device:
    return Device(
        index=link.index,
        kind=link.kind,
        up=bool(link.flags & IFF_UP),
        mtu=link.mtu,
        attributes=read_attributes(link),
        addresses=tuple(sorted(f"{found.text}/{found.prefix}" for found in await list_addresses(link.index))),
    )


def _read_route(route: rtvalues.KernelRoute) -> list[KernelRoute]:
    if route.table == LOCAL_TABLE:
        return []
    return [
        KernelRoute(
            version=route.version,
            table=route.table,
            destination=route.destination,
            device=hop.device,
            gateway=len(route.hops) > 1 or hop.gateway is not None,
            type=route.type,
            metric=route.metric,
        )
        for hop in route.hops
    ]


def in_scratch_namespace(function: Callable[[], T]) -> T:
    """Run a function in a thread with a new, empty network namespace, which ends with it.

    Raises:
        OSError: this process may not make one.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "no scratch network namespace can be made")
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001  carried over to the caller
            failure.append(error)

    thread = threading.Thread(target=inside, name="scratch", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def read_features() -> Features:
    """The features of this kernel and nft, tried in a scratch namespace, away from the machine's own rules."""
    return in_scratch_namespace(lambda: asyncio.run(probe_features()))


def read_references(tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
    """How nft prints these tables on this machine, found by loading them in a scratch namespace.

    Args:
        tables: of any family.
        links: name and index of the interfaces that their rules name.

    Returns:
        A reading for each table; None for one that this kernel or nft does not load.
    """
    return in_scratch_namespace(lambda: asyncio.run(_read_references(tables, links)))


async def _read_references(tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
    _make_links(links)
    # All in one run, which is fast; if one does not load, each in its own run.
    named = [(table, f"reference{number}") for number, table in enumerate(tables)]
    if not await _load("".join(table.render(name=name, flags="") for table, name in named)):
        for table, name in named:
            await _load(table.render(name=name, flags=""))
    try:
        listing = (await run_async(["nft", "-s", "list", "ruleset"])).stdout
    except CommandError:
        return tuple(None for _ in tables)
    found = split_listing(listing)
    return tuple(found.get((table.family, name)) for table, name in named)


async def _load(text: str) -> bool:
    try:
        await run_async(["nft", "-f", "-"], input=text)
    except CommandError:
        return False
    return True


def _make_links(links: Sequence[tuple[str, int]]) -> None:
    with contextlib.closing(RouteSocket()) as socket:
        # Loopback exists already, and a card of the machine may have the same name.
        for name, index in sorted(links, key=lambda link: link[1] != names.LOOPBACK_INDEX):
            if index == names.LOOPBACK_INDEX:
                socket.change(*encode_renaming(index, name))
                continue
            for kind in ("dummy", "bridge"):
                with contextlib.suppress(OSError):
                    socket.change(*encode_link(name, index, kind), flags=NLM_F_CREATE | NLM_F_EXCL)
                    break


def split_listing(text: str) -> dict[tuple[str, str], Reading]:
    """The tables of `nft -s list ruleset` by family and name, except those that cannot be parsed."""
    found: dict[tuple[str, str], Reading] = {}
    block: list[str] = []
    for line in text.splitlines():
        block.append(line)
        if line == "}":
            words = block[0].split()
            if len(words) > 3 and words[0] == "table":
                with contextlib.suppress(ValueError):
                    found[words[1], words[2]] = parse_listing("\n".join(block))
            block = []
    return found
