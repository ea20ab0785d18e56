"""Machines booted with `ipv6.disable=1`: every table loads there, or such a machine would be locked for good.

The kernel has the family's code and refuses everything about it (Documentation/networking/ipv6.rst).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_vpn.lab.guest.guest import Card, Guest
from psiphon_vpn.lab.guest.image import NFT_MODULES
from psiphon_vpn.lab.guest.kernels import Kernel
from psiphon_vpn.lab.namespace import open_host

pytestmark = [pytest.mark.requirement("R7")]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="module")
def guest(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("guest")
    card = Card(tap="wire", mac="02:50:53:00:0a:10")
    with (
        open_host("outside", directory=directory / "outside") as outside,
        Guest(
            outside, kernel, cards=[card], modules=NFT_MODULES, directory=directory, parameters=["ipv6.disable=1"]
        ) as made,
    ):
        yield made


def test_every_reviewed_ruleset_loads_on_a_kernel_without_ipv6(guest: Guest) -> None:
    assert "ipv6" not in guest.run("ls /proc/sys/net").output.split()
    assert guest.run("ip -6 rule", check=False).code != 0
    paths = sorted(GOLDEN.glob("*.nft"))
    assert len(paths) == 11
    for path in paths:
        shutil.copy(path, guest.exchange / path.name)
        guest.run(f"nft -f /exchange/{path.name}")
