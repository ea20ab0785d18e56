# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's lists are read completely, whatever their size, whoever disturbs the reading, and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from collections.abc import Awaitable, Callable

import pytest
from tests.integration.kernel import Kernel
from tests.integration.testbed import open_testbed
from tests.policies import IDENTITY

from psiphon_vpn.linux import rtnetlink
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.routes import apply_routes, apply_rules, check_routing
from psiphon_vpn.linux.rtbatch import encode_link, encode_link_removal
from psiphon_vpn.linux.rtlist import find_link, list_addresses, list_links, list_routes, list_rules
from psiphon_vpn.linux.rtnetlink import NLM_F_CREATE, NLM_F_EXCL, RouteSocket
from psiphon_vpn.linux.tun import check_tun, ensure_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.routing import build_routes, build_rules

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R6", "R9")]

MANY_ROUTES = 10_000


def add_many(kernel: Kernel, links: int, routes: int = 0) -> None:
    text = "".join(f"link add m{number} type bridge\n" for number in range(links))
    text += "link set m0 up\naddress add 192.0.2.10/24 dev m0\naddress add 2001:db8::10/64 dev m0 nodad\n"
    for number in range(routes):
        high, low = divmod(number, 256)
        text += f"route add 10.{high >> 8}.{high & 255}.{low}/32 dev m0\nroute add 2001:db8:1:{number:x}::/64 dev m0\n"
    text += "route add default via 192.0.2.1 dev m0\nroute add default via 2001:db8::1 dev m0\n"
    kernel.host.run(["ip", "-batch", "-"], input=text, timeout=120)


def read(kernel: Kernel, work: Callable[[], Awaitable[object]]) -> object:
    return kernel.with_routes(lambda _: work())


def tell(route: dict[str, object]) -> tuple[object, object, object]:
    target = str(route["dst"])
    return ("default" if target in {"0.0.0.0/0", "::/0"} else target, route.get("dev"), route.get("gateway"))


@pytest.mark.parametrize("links", [1, 100, 1000])
def test_everything_is_listed_as_ip_lists_it(kernel: Kernel, links: int) -> None:
    add_many(kernel, links, MANY_ROUTES if links == 1 else 100)
    kernel.ip("rule", "add", "priority", "77", "fwmark", "0x5", "iif", "m0", "lookup", "100")

    async def work() -> None:
        by_index = {}
        for link in await list_links():
            by_index[link.index] = link.name
            found = find_link(link.name)
            assert found is not None
            assert (found.index, found.kind, found.mtu) == (link.index, link.kind, link.mtu)
        reported = {entry["ifindex"]: entry["ifname"] for entry in json.loads(kernel.ip("-j", "link"))}
        assert by_index == reported
        assert len(reported) == links + 1
        addresses = {(found.index, found.text, found.prefix) for found in await list_addresses()}
        assert addresses == {
            (entry["ifindex"], address["local"], address["prefixlen"])
            for entry in json.loads(kernel.ip("-j", "address"))
            for address in entry["addr_info"]
        }
        (up,) = [index for index, name in by_index.items() if name == "m0"]
        assert {found.index for found in await list_addresses(up)} == {up}
        for version in (4, 6):
            listed = {
                (
                    "default"
                    if route.destination.endswith("/0")
                    else route.destination.removesuffix("/32" if version == 4 else "/128"),
                    by_index.get(route.hops[0].device or 0),
                    route.hops[0].gateway,
                )
                for route in await list_routes(version, table=254)
            }
            theirs = json.loads(kernel.ip("-j", f"-{version}", "route", "show", "table", "main"))
            assert listed == {tell(route) for route in theirs}
            assert len(listed) > 100
            assert {route.destination for route in await list_routes(version, table=254, defaults=True)} == {
                "0.0.0.0/0" if version == 4 else "::/0"
            }
            assert await list_routes(version, table=names.ROUTE_TABLE) == ()
        rules = [item.rule for item in await list_rules(4)]
        assert [rule.priority for rule in rules] == [0, 77, 32766, 32767]
        assert (rules[1].fwmark, rules[1].input_interface, rules[1].table) == (5, "m0", 100)

    read(kernel, work)


@pytest.mark.parametrize("links", [100, 1000])
def test_the_tun_is_made_found_and_checked_among_any_number_of_interfaces(kernel: Kernel, links: int) -> None:
    rules, routes = build_rules(IDENTITY), build_routes(tun=True, open_ipv4=True, open_ipv6=True)

    async def work(socket: RouteSocket) -> None:
        tun = await ensure_tun(socket, uid=IDENTITY.uid)
        await asyncio.to_thread(add_many, kernel, links, 100)
        # A half-read listing made every later one fail with EBUSY.
        for _ in range(3):
            assert await ensure_tun(socket, uid=IDENTITY.uid) == tun
            await apply_rules(socket, rules)
            await apply_routes(socket, routes, tun.index)
            assert await check_tun(tun, uid=IDENTITY.uid) is None
            assert await check_routing(rules, routes, tun.index) is None
            assert len((await read_snapshot()).interfaces) == links + 2

    kernel.with_routes(work)


def count_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def test_whoever_is_cancelled_at_whichever_moment_leaves_nothing_behind(kernel: Kernel) -> None:
    add_many(kernel, 300, 300)

    async def work(socket: RouteSocket) -> int:
        await read_snapshot()
        before = count_sockets()
        cancelled, turns = 0, 0
        while True:
            task = asyncio.create_task(read_snapshot())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                whole = await task
            except asyncio.CancelledError:
                cancelled, turns = cancelled + 1, turns + 1
                assert count_sockets() == before
                assert (await ensure_tun(socket, uid=IDENTITY.uid)).index
                continue
            assert len(whole.interfaces) == 302
            return cancelled

    assert kernel.with_routes(work) > 10


def test_what_changes_while_it_is_listed_is_listed_again_until_it_is_whole(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_many(kernel, 300)
    attempts = []
    real = rtnetlink.list_once

    async def disturbed(*arguments: object) -> object:
        attempts.append(arguments)
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rtnetlink, "list_once", disturbed)

    async def work(socket: RouteSocket) -> None:
        """Another program creates and deletes an interface meanwhile, for a while."""
        left = 40

        async def disturb() -> None:
            nonlocal left
            while left:
                socket.change(*encode_link("zz", 5000, "bridge"), flags=NLM_F_CREATE | NLM_F_EXCL)
                await asyncio.sleep(0)
                socket.change(*encode_link_removal(5000))
                left -= 1
                await asyncio.sleep(0)

        task = asyncio.create_task(disturb())
        listed = {link.name for link in await list_links()}
        await task
        assert {f"m{number}" for number in range(300)} <= listed

    kernel.with_routes(work)
    assert len(attempts) > 1


def test_what_never_stops_changing_is_an_error_and_no_half_of_it(kernel: Kernel) -> None:
    add_many(kernel, 300)

    async def work(socket: RouteSocket) -> None:
        ended = False

        async def disturb() -> None:
            while not ended:
                socket.change(*encode_link("zz", 5000, "bridge"), flags=NLM_F_CREATE | NLM_F_EXCL)
                await asyncio.sleep(0)
                socket.change(*encode_link_removal(5000))
                await asyncio.sleep(0)

        task = asyncio.create_task(disturb())
        with pytest.raises(rtnetlink.Interrupted):
            await list_links()
        ended = True
        await task

    kernel.with_routes(work)


@pytest.mark.parametrize("name", [b"\xff\xfe", b'a"b', b"*", b'c*"}accept#', b"\xc3\xa4\xe2\x82", b"{", b"\x01"])
def test_an_interface_may_have_any_name(kernel: Kernel, name: bytes) -> None:
    text = os.fsdecode(name)

    async def work(socket: RouteSocket) -> None:
        socket.change(*encode_link(text, 77, "bridge"), flags=NLM_F_CREATE | NLM_F_EXCL)
        (listed,) = [link for link in await list_links() if link.index == 77]
        assert listed.name == text
        found = find_link(text)
        assert found is not None
        assert found.index == 77
        assert text in {interface.name for interface in (await read_snapshot()).interfaces}

    kernel.with_routes(work)


def test_what_is_not_there_is_none_and_what_is_refused_says_why(kernel: Kernel) -> None:
    async def work(socket: RouteSocket) -> None:
        assert find_link("nowhere") is None
        assert await list_addresses(4711) == ()
        assert await list_routes(4, table=4711) == ()
        assert await list_routes(6, table=4711) == ()
        assert await list_routes(4, device=4711) == ()
        with pytest.raises(OSError, match="No such device") as caught:
            socket.change(*encode_link_removal(4711))
        assert caught.value.errno == errno.ENODEV

    kernel.with_routes(work)


def test_a_listing_blocks_nobody_for_long(kernel: Kernel) -> None:
    """Other tasks run between the pieces of a long listing."""
    add_many(kernel, 1, MANY_ROUTES)

    async def work() -> None:
        turns = 0
        ended = threading.Event()

        async def other() -> None:
            nonlocal turns
            while not ended.is_set():
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await list_routes(4)
        ended.set()
        await task
        assert turns > 10

    read(kernel, work)


@pytest.mark.requirement("R1")
def test_it_opens_again_after_restarts_and_with_a_new_daemon_beside_forty_containers() -> None:
    with open_testbed() as testbed:
        machine = testbed.machine
        machine.wait_state("OPEN")
        text = "".join(f"link add m{number} type veth peer name p{number}\n" for number in range(40))
        testbed.world.client.run(["ip", "-batch", "-"], input=text)
        for _ in range(2):
            seen = {machine.wait_state("OPEN")["core_pid"]}
            machine.command("restart")
            machine.wait_for(lambda: machine.wait_state("OPEN")["core_pid"] not in seen, "another core")  # noqa: B023
        machine.stop_daemon()
        machine.start_daemon()
        machine.wait_state("OPEN")
        assert "EBUSY" not in machine.read_log()
        assert os.strerror(errno.EBUSY) not in machine.read_log()
