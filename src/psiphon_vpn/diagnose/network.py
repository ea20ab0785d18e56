"""What netlink says about links, addresses, rules and routes, as values; and a kernel of the same kind to compare with.

The comparison rests on a *scratch network namespace*: what the policy would be in the kernel's and nft's own words is
found by loading it there, and the machine's own rules are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.linux.reading import Reading, parse_listing
from psiphon_vpn.policy.routing import RoutingRule
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.run import CommandError, run_async
from psiphon_vpn.service.uplink import Snapshot

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that has the TUN's name.

    Attributes:
        kind: IFLA_INFO_KIND.
        attributes: its IFLA_TUN_* by name; what the kernel does not say is not there.
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
    """A route of any table but `local`. version: 4 or 6. device: index, None for unreachable and the like."""

    version: int
    table: int
    destination: str
    device: int | None
    gateway: bool
    type: int
    metric: int


@dataclass(frozen=True, kw_only=True)
class Network:
    """Everything that one look at netlink gives."""

    snapshot: Snapshot
    rules: tuple[RoutingRule, ...]
    routes: tuple[KernelRoute, ...]
    tun: Device | None


def read_network() -> Network:
    """Read links, addresses, rules and routes of the network namespace of this thread.

    Raises:
        OSError: the kernel does not answer.
    """
    return asyncio.run(_read_network())


async def _read_network() -> Network:
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    from psiphon_vpn.linux.links import read_snapshot
    from psiphon_vpn.linux.routes import FAMILY, read_rule
    from psiphon_vpn.policy import names

    try:
        async with AsyncIPRoute() as ipr:
            snapshot = await read_snapshot(ipr)
            tun = None
            async for link in await ipr.get_links():
                if link.get("ifname") == names.TUN_NAME:
                    tun = await _read_device(ipr, link)
            rules: list[RoutingRule] = []
            routes: list[KernelRoute] = []
            for version, family in ((4, FAMILY[4]), (6, FAMILY[6])):
                rules += [read_rule(message) async for message in await ipr.get_rules(family=family)]
                async for message in await ipr.get_routes(family=family):
                    routes += _read_route(message, version)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    return Network(snapshot=snapshot, rules=tuple(rules), routes=tuple(routes), tun=tun)


async def _read_device(ipr: Any, link: Any) -> Device:
    data = link.get(("linkinfo", "data"))
    attributes = {}
    for name in ("TYPE", "OWNER", "GROUP", "PI", "VNET_HDR", "MULTI_QUEUE", "PERSIST"):
        value = data.get(f"IFLA_TUN_{name}") if data is not None and hasattr(data, "get") else None
        if value is not None:
            attributes[name] = int(value)
    addresses = [
        f"{address.get('local') or address.get('address')}/{address['prefixlen']}"
        async for address in await ipr.get_addr(index=link["index"])
    ]
    return Device(
        index=link["index"],
        kind=link.get(("linkinfo", "kind")),
        up=bool(link["flags"] & 1),
        mtu=link.get("mtu") or 0,
        attributes=attributes,
        addresses=tuple(sorted(addresses)),
    )


def _read_route(message: Any, version: int) -> list[KernelRoute]:
    table = message.get("RTA_TABLE", message["table"])
    if table == 255:
        return []
    hops = message.get("RTA_MULTIPATH") or ()
    devices = [hop["oif"] for hop in hops] or [message.get("RTA_OIF")]
    destination = message.get("RTA_DST") or ("0.0.0.0" if version == 4 else "::")  # noqa: S104  a destination
    return [
        KernelRoute(
            version=version,
            table=table,
            destination=f"{destination}/{message['dst_len']}",
            device=device,
            gateway=bool(hops) or message.get("RTA_GATEWAY") is not None,
            type=message["type"],
            metric=message.get("RTA_PRIORITY") or 0,
        )
        for device in devices
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
    """What this kernel and nft can do, tried in a scratch namespace: the machine's own rules see nothing of it."""
    return in_scratch_namespace(lambda: asyncio.run(probe_features()))


def read_references(tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
    """How nft prints these tables here, found by loading them in a scratch namespace.

    Args:
        tables: of any family.
        links: name and index of the interfaces that their rules name.

    Returns:
        A reading for each table, None for one that this kernel or nft does not load.
    """
    return in_scratch_namespace(lambda: asyncio.run(_read_references(tables, links)))


async def _read_references(tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
    await _make_links(links)
    # All in one run, which is fast; when one does not load, each in a run of its own.
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


async def _make_links(links: Sequence[tuple[str, int]]) -> None:
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    async with AsyncIPRoute() as ipr:
        for name, index in links:
            for kind in ("dummy", "bridge"):
                try:
                    await ipr.link("add", ifname=name, index=index, kind=kind)
                except (NetlinkError, OSError):
                    continue
                break


def split_listing(text: str) -> dict[tuple[str, str], Reading]:
    """The tables of `nft -s list ruleset` by family and name. One that is not understood is left out."""
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
