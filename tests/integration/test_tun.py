# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The TUN device: made as the core needs it, repaired, and distinguished from other devices of that name."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.kernel import Kernel

from psiphon_lab.tun_device import attach_tun
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux import tun as product
from psiphon_vpn.linux.ipv6 import Ipv6, read_ipv6
from psiphon_vpn.linux.netlink import HEADER
from psiphon_vpn.linux.queueing import parse_queued, read_queued
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.tcvalues import RTM_NEWQDISC
from psiphon_vpn.linux.tun import Tun, TunError, TunTrouble, check_tun, ensure_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS

pytestmark = pytest.mark.lab

UID = 64190
NAME = names.TUN_NAME


def make(kernel: Kernel) -> Tun:
    return kernel.with_routes(lambda socket: ensure_tun(socket, uid=UID))


def check(kernel: Kernel, tun: Tun) -> TunTrouble | None:
    return kernel.with_routes(lambda _: check_tun(tun, uid=UID))


def show(kernel: Kernel) -> dict[str, Any]:
    (link,) = json.loads(kernel.ip("-j", "-d", "addr", "show", "dev", NAME))
    return dict(link)


def addresses(kernel: Kernel) -> set[str]:
    return {f"{entry['local']}/{entry['prefixlen']}" for entry in show(kernel)["addr_info"]}


@pytest.mark.requirement("R8", "R9", "R10")
def test_it_is_persistent_of_one_queue_owned_by_psiphon_user_and_has_the_tunnels_addresses(kernel: Kernel) -> None:
    tun = make(kernel)
    link = show(kernel)
    data = link["linkinfo"]["info_data"]
    assert link["ifindex"] == tun.index
    assert link["linkinfo"]["info_kind"] == "tun"
    assert (data["type"], data["persist"], data["multi_queue"], data["vnet_hdr"]) == ("tun", True, False, False)
    assert str(data["user"]) == str(UID)
    assert "group" not in data
    assert link["mtu"] == 1500
    assert "UP" in link["flags"]
    assert addresses(kernel) == {"10.200.3.1/24", "fd42:42:42::1/64"}
    assert check(kernel, tun) is None


@pytest.mark.defect(8)
@pytest.mark.requirement("R10")
def test_it_sends_nothing_by_itself_and_has_no_address_that_would_be_seen_first(kernel: Kernel) -> None:
    """The Psiphon server answers the first source address that it sees in a session."""
    make(kernel)
    for path, value in TUN_SYSCTLS.items():
        assert kernel.host.get_sysctl(path.removeprefix("net/")) == value, path
    assert not any(address.startswith("fe80:") for address in addresses(kernel))


def test_making_it_again_changes_nothing(kernel: Kernel) -> None:
    first = make(kernel)
    before = show(kernel)
    assert make(kernel) == first
    assert show(kernel) == before


def test_what_was_done_to_it_is_put_right(kernel: Kernel) -> None:
    first = make(kernel)
    kernel.ip("link", "set", NAME, "down")
    kernel.ip("addr", "flush", "dev", NAME)
    kernel.ip("addr", "add", "192.0.2.77/24", "dev", NAME)
    kernel.ip("link", "set", NAME, "mtu", "1280")
    assert make(kernel) == first
    assert addresses(kernel) == {"10.200.3.1/24", "fd42:42:42::1/64"}
    assert show(kernel)["mtu"] == 1500
    assert check(kernel, first) is None


DAMAGES = {
    "the kernel's entry for its address is deleted": (
        "route",
        "del",
        "local",
        names.TUN_IPV4,
        "dev",
        NAME,
        "table",
        "local",
    ),
    "all its entries in the table local are flushed": ("route", "flush", "dev", NAME, "table", "local"),
    "its IPv6 entry is deleted": ("-6", "route", "del", "local", names.TUN_IPV6, "dev", NAME, "table", "local"),
    "all its IPv6 entries are flushed": ("-6", "route", "flush", "dev", NAME, "table", "local"),
    "its IPv4 address is gone": ("-4", "addr", "flush", "dev", NAME),
    "its IPv6 address is gone": ("-6", "addr", "flush", "dev", NAME),
    "all tables are flushed": ("route", "flush", "table", "all"),
    "all IPv6 tables are flushed": ("-6", "route", "flush", "table", "all"),
    "the loopback network is gone": ("route", "flush", "dev", "lo", "table", "local"),
    "its MTU has no room for IPv6": ("link", "set", NAME, "mtu", "1000"),
    "its packets are larger than the core reads": ("link", "set", NAME, "mtu", "9000"),
    "no packet may wait in it": ("link", "set", NAME, "txqueuelen", "0"),
}


@pytest.mark.requirement("B3", "R9")
@pytest.mark.parametrize("what", DAMAGES)
def test_whatever_it_needs_is_missed_and_put_back(kernel: Kernel, what: str) -> None:
    kernel.ip("link", "set", "lo", "up")
    first = make(kernel)
    assert check(kernel, first) is None
    before = show(kernel)
    kernel.ip(*DAMAGES[what])
    trouble = check(kernel, first)
    assert trouble is not None or "MTU" in what
    assert make(kernel) == first
    assert check(kernel, first) is None
    assert {**show(kernel), "addr_info": []} == {**before, "addr_info": []}
    assert addresses(kernel) == {"10.200.3.1/24", "fd42:42:42::1/64"}
    for family, target in (("-4", names.TUN_IPV4), ("-6", names.TUN_IPV6)):
        # For the kernel: an address of this machine, and a source that routes may name.
        assert "local" in kernel.ip(family, "route", "get", target)
        kernel.ip(family, "route", "replace", "default", "dev", NAME, "src", target, "table", "77")
    assert "local" in kernel.ip("route", "get", "127.0.0.1")


def test_what_cannot_be_put_right_is_made_again(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected case: the kernel refuses this device's addresses as long as it exists."""
    first = make(kernel)
    real = product.check_tun

    async def find_fault(tun: Tun, *, uid: int) -> TunTrouble | None:
        return TunTrouble("odd", gone=False) if tun == first else await real(tun, uid=uid)

    monkeypatch.setattr(product, "check_tun", find_fault)
    second = make(kernel)
    assert second != first
    assert check(kernel, second) is None
    assert addresses(kernel) == {"10.200.3.1/24", "fd42:42:42::1/64"}


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("names_of", [("all",), ("default", NAME), (NAME,)])
def test_ipv6_that_is_turned_off_costs_ipv6_alone(kernel: Kernel, names_of: tuple[str, ...]) -> None:
    def turn(value: int) -> None:
        kernel.host.set_sysctls({f"ipv6/conf/{name}/disable_ipv6": value for name in names_of})

    first = make(kernel)
    turn(1)
    off = kernel.host.call(lambda: read_ipv6(NAME))
    assert off is Ipv6.OFF
    assert make(kernel) == first
    assert check(kernel, first) is None
    assert addresses(kernel) == {"10.200.3.1/24"}
    kernel.ip("link", "del", NAME)
    if NAME not in names_of:
        assert check(kernel, make(kernel)) is None, "made while it is off"
        assert addresses(kernel) == {"10.200.3.1/24"}
        turn(0)
    second = make(kernel)
    assert kernel.host.call(lambda: read_ipv6(NAME)) is (Ipv6.ON if "default" not in names_of else Ipv6.OFF)
    if "default" not in names_of:
        assert addresses(kernel) == {"10.200.3.1/24", "fd42:42:42::1/64"}
    assert check(kernel, second) is None


IMPOSTORS = {
    "a veth": ("link", "add", NAME, "type", "veth", "peer", "name", "peer0"),
    "a bridge": ("link", "add", NAME, "type", "bridge"),
    "a TUN of another owner": ("tuntap", "add", NAME, "mode", "tun", "user", "65534"),
    "a TUN of nobody in particular": ("tuntap", "add", NAME, "mode", "tun"),
    "a TUN that a group may use": ("tuntap", "add", NAME, "mode", "tun", "user", str(UID), "group", "65534"),
    "a TAP": ("tuntap", "add", NAME, "mode", "tap", "user", str(UID)),
    "a TUN of many queues": ("tuntap", "add", NAME, "mode", "tun", "user", str(UID), "multi_queue"),
}


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("what", IMPOSTORS)
def test_an_impostor_is_found_out_reported_and_replaced(
    kernel: Kernel, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.ip(*IMPOSTORS[what])
    index = int(show(kernel)["ifindex"])
    kernel.ip("link", "set", NAME, "up")
    trouble = check(kernel, Tun(index))
    assert trouble is not None
    assert trouble.gone
    tun = make(kernel)
    assert tun.index != index
    assert "another device has the name PsiphonTUN, which the rules let pass: it is removed" in caplog.text
    assert show(kernel)["linkinfo"]["info_kind"] == "tun"
    assert check(kernel, tun) is None


@pytest.mark.requirement("R6", "R9")
def test_it_is_noticed_when_it_is_deleted_renamed_replaced_or_down(kernel: Kernel) -> None:
    tun = make(kernel)
    kernel.ip("link", "set", NAME, "down")
    assert check(kernel, tun) == TunTrouble("the TUN is down", gone=False)
    kernel.ip("link", "set", NAME, "name", "other0")
    renamed = check(kernel, tun)
    kernel.ip("link", "add", NAME, "type", "veth", "peer", "name", "peer0")
    replaced = check(kernel, tun)
    kernel.ip("link", "del", NAME)
    kernel.ip("link", "del", "other0")
    deleted = check(kernel, tun)
    for trouble in (renamed, replaced, deleted):
        assert trouble is not None
        assert trouble.gone
    made = make(kernel)
    assert check(kernel, made) is None


def test_another_tun_of_ours_under_the_same_name_is_not_the_one_that_was_made(kernel: Kernel) -> None:
    tun = make(kernel)
    kernel.ip("link", "del", NAME)
    kernel.ip("link", "add", "gap0", "type", "veth", "peer", "name", "gap1")
    assert make(kernel).index != tun.index
    trouble = check(kernel, tun)
    assert trouble is not None
    assert trouble.gone


@pytest.mark.requirement("R1")
def test_without_dev_net_tun_it_says_so(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "TUN_DEVICE", Path("/dev/net/no-such-tun"))

    async def work(routes: RouteSocket) -> None:
        with pytest.raises(TunError, match="No such file"):
            await ensure_tun(routes, uid=UID)

    kernel.with_routes(work)


def test_what_was_sent_into_a_tunnel_that_nobody_reads_is_counted_before_it(kernel: Kernel) -> None:
    make(kernel)
    peer = (names.RESOLVER_IPV4, 9)

    def count(field: int) -> int:
        line = next(line for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if NAME in line)
        return int(line.split()[field])

    def work() -> tuple[int, int, int, int]:
        reader = attach_tun(NAME)
        try:
            # Until the kernel has noticed the carrier, it drops what is sent.
            wait_until(lambda: "lower_up" in kernel.ip("link", "show", NAME).lower(), "a carrier")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((names.TUN_IPV4, 0))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, NAME.encode())

                def is_queued() -> bool:
                    sender.sendto(b"a carrier?", peer)
                    return read_queued(NAME) > 0

                wait_until(is_queued, "a queue")  # the kernel does not announce a new queue
                before = read_queued(NAME)
                for _ in range(7):
                    sender.sendto(b"lost?", peer)
                few = read_queued(NAME) - before
                for _ in range(1000):  # more than it holds
                    with contextlib.suppress(BlockingIOError):
                        sender.sendto(b"lost?", socket.MSG_DONTWAIT, peer)
                many = read_queued(NAME) - before
            unread = count(10)
            while True:
                try:
                    os.read(reader, 2048)
                except BlockingIOError:
                    return few, many, unread, count(10)
        finally:
            os.close(reader)

    few, many, unread, read = kernel.host.call(work)
    assert few == 7
    assert many > 400
    assert unread == 0
    assert read > 400, "the device itself counts what is read from it"


def test_a_device_without_a_queue_or_without_a_name_counts_nothing(kernel: Kernel) -> None:
    assert kernel.host.call(lambda: read_queued("lo")) == 0
    assert kernel.host.call(lambda: read_queued("nowhere")) == 0


@given(st.binary(max_size=200))
def test_no_bytes_of_any_kind_make_the_reading_of_a_queue_fail(data: bytes) -> None:
    for noise in (data, HEADER.pack(HEADER.size + len(data), RTM_NEWQDISC, 0, 1, 0) + data):
        assert parse_queued(noise) >= 0
