# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What carries an uplink; the core stores its results under it (its NetworkID)."""

from __future__ import annotations

from pathlib import Path

import pytest

from psiphon_vpn.linux.device_types import read_device_types
from psiphon_vpn.network.medium import Medium, find_medium
from psiphon_vpn.network.uplink import DefaultRoute, Interface, Snapshot, choose_uplink

CARD = Interface(index=2, name="net0", up=True, addresses=((4, "192.0.2.10"),))


def find(*links: Interface, types: tuple[str, ...] = ()) -> Medium:
    """The medium of the first of these links, which has the default route."""
    route = DefaultRoute(version=4, index=links[0].index, gateway="192.0.2.1", metric=100)
    uplink = choose_uplink(Snapshot(interfaces=links, defaults=(route,)))
    assert uplink is not None
    return find_medium(uplink, types)


@pytest.mark.parametrize(("types", "medium"), [((), "WIRED"), (("wlan",), "WIFI"), (("wwan",), "MOBILE")])
def test_a_card_is_what_the_kernel_calls_it(types: tuple[str, ...], medium: str) -> None:
    assert find(CARD, types=types) == medium


def test_a_vlan_is_what_the_card_below_it_is() -> None:
    above = Interface(index=5, name="net0.7", up=True, kind="vlan", lower=2, addresses=((4, "192.0.2.77"),))
    assert find(above, CARD, types=("vlan", "wlan")) is Medium.WIFI
    assert find(above, CARD, types=("vlan",)) is Medium.WIRED


@pytest.mark.parametrize("kind", ["wwan", "rmnet", "mhi_net"])
def test_a_mobile_card_without_a_device_type_is_known_by_its_kind(kind: str) -> None:
    card = Interface(index=4, name="m0", up=True, kind=kind, headerless=True, addresses=((4, "10.64.64.64"),))
    assert find(card) is Medium.MOBILE


def test_another_vpn_is_one_and_a_ppp_line_is_none() -> None:
    there = ((4, "192.0.2.50"),)
    assert find(Interface(index=6, name="wg0", up=True, kind="wireguard", addresses=there)) is Medium.VPN
    assert find(Interface(index=7, name="ppp0", up=True, kind="ppp", headerless=True, addresses=there)) is Medium.WIRED


def test_device_types_are_read_from_sysfs_and_what_is_missing_counts_as_none(tmp_path: Path) -> None:
    for name, text in {"wlan0": "DEVTYPE=wlan\nINTERFACE=wlan0\n", "eth0": "INTERFACE=eth0\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "uevent").write_text(text)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "uevent").write_bytes(b"\xff\xfe\n" + b"x" * 9000 + b"\nDEVTYPE=wwan\n")
    assert read_device_types(("wlan0", "eth0", "gone", "odd"), sysfs=tmp_path) == {"wlan"}
    assert "wlan" not in read_device_types(("lo",))
