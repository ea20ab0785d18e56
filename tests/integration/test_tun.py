"""The TUN device: made as the core needs it, put right, and told from whatever else bears its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute
from tests.integration.kernel import Kernel

from psiphon_vpn.linux import tun as product
from psiphon_vpn.linux.tun import Tun, TunError, TunTrouble, check_tun, ensure_tun
from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS

pytestmark = pytest.mark.lab

UID = 64190
NAME = names.TUN_NAME


def make(kernel: Kernel) -> Tun:
    return kernel.with_routes(lambda ipr: ensure_tun(ipr, uid=UID))


def check(kernel: Kernel, tun: Tun) -> TunTrouble | None:
    return kernel.with_routes(lambda ipr: check_tun(ipr, tun, uid=UID))


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
    """The Psiphon server answers to the first source address that it sees in a session."""
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
def test_an_impostor_is_found_out_and_replaced(kernel: Kernel, what: str) -> None:
    kernel.ip(*IMPOSTORS[what])
    index = int(show(kernel)["ifindex"])
    kernel.ip("link", "set", NAME, "up")
    trouble = check(kernel, Tun(index))
    assert trouble is not None
    assert trouble.gone
    tun = make(kernel)
    assert tun.index != index
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

    async def work(ipr: AsyncIPRoute) -> None:
        with pytest.raises(TunError, match="No such file"):
            await ensure_tun(ipr, uid=UID)

    kernel.with_routes(work)
