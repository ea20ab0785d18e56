# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of guests: which modules they load on request, and which kernels can be chosen."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from psiphon_lab.guest.image import render_modprobe
from psiphon_lab.guest.kernels import NAMED, Kernel, take_kernel
from psiphon_lab.leaktest.machines import choose_machines, list_names
from psiphon_vpn.errors import UserError


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A user's own kernel, with three modules that need each other."""
    modules = tmp_path / "modules"
    place = modules / "kernel" / "net"
    place.mkdir(parents=True)
    (place / "base.ko").write_bytes(b"ELF\0license=GPL\0depends=\0name=base\0")
    (place / "nft-middle.ko").write_bytes(b"ELF\0alias=nft-expr-middle\0alias=net-pf-16-proto-12\0depends=base\0")
    packed = lzma.compress(b"ELF\0alias=rtnl-link-top\0alias=pci:v*d*\0depends=nft-middle,base\0")
    (place / "top.ko.xz").write_bytes(packed)
    (place / "lost.ko").write_bytes(b"ELF\0alias=lost-thing\0depends=not_kept\0")
    image = tmp_path / "vmlinuz-5.4.3-own"
    image.touch()
    return take_kernel(image, modules=modules, directory=tmp_path)


def test_a_kernel_of_a_user_is_taken_with_its_modules(kernel: Kernel) -> None:
    assert kernel.version == "5.4.3-own"
    assert (kernel.loader / "top.ko").read_bytes().startswith(b"ELF")


@pytest.mark.parametrize(
    ("asked", "loaded"),
    [
        ("rtnl-link-top", "base nft_middle top"),
        ("nft-expr-middle", "base nft_middle"),
        ("net-pf-16-proto-12", "base nft_middle"),
        ("base", "base"),
        ("nft_middle", "base nft_middle"),
        ("nft-expr", ""),
        ("lost-thing", ""),
        ("nothing", ""),
    ],
)
def test_what_a_kernel_asks_for_is_loaded_with_what_it_needs(
    kernel: Kernel, tmp_path: Path, asked: str, loaded: str
) -> None:
    log = tmp_path / "loaded"
    tools = f'insmod() {{ basename "$1" .ko >>{log}; }}\n'
    script = render_modprobe(kernel.loader, insmod="insmod", prefix="")
    subprocess.run(["sh", "-c", tools + script, "modprobe", "-q", "--", asked], check=True, stdin=subprocess.DEVNULL)
    found = log.read_text().split() if log.exists() else []
    assert found == loaded.split()


def test_every_kernel_has_a_name_for_users_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    assert set(list_names()) == {f"vm:{name}" for name in NAMED} | {"vm:all"}
    with pytest.raises(UserError, match="vm:debian-7"):
        choose_machines("vm:debian-7", image=None, modules=None, results=None, directory=tmp_path)
