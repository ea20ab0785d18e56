# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The real kernel's settings of each interface, after an installation, a reboot and a removal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.integration.kernel import Kernel

from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.system.change import Change
from psiphon_vpn.system.configure import list_settings
from psiphon_vpn.system.journal import Ledger
from psiphon_vpn.system.linux_platform import LinuxKernel

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R3")]

INTERFACES = {"eth0": 1, "explicit0": 1, "off0": 0}


def add(kernel: Kernel, name: str) -> None:
    kernel.ip("link", "add", name, "type", "bridge")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reboot", [False, True])
def test_undone_to_the_bit_for_each_interface(kernel: Kernel, version: int, *, reboot: bool) -> None:
    key = f"ipv{version}/conf/{{}}/accept_redirects"
    kernel.host.set_sysctls({key.format(name): 1 for name in ("all", "default")})
    for name in INTERFACES:
        add(kernel, name)
    kernel.host.set_sysctls({key.format(name): INTERFACES[name] for name in ("explicit0", "off0")})
    platform: Any = SimpleNamespace(kernel=LinuxKernel(), manager=SimpleNamespace(is_running=lambda: True))

    def read(*names: str) -> dict[str, str]:
        return {name: kernel.host.get_sysctl(key.format(name)) for name in names}

    before = read("all", "default", *INTERFACES)

    def install() -> list[Change]:
        ledger = Ledger(platform, cast(Any, None), cast(Any, SimpleNamespace(changes=())))
        changes = [change.observe(platform) for change in list_settings(ledger)]
        for change in changes:
            change.apply(platform)
        return list(changes)

    changes = kernel.host.call(install)
    assert set(read("default", *INTERFACES).values()) == {"0"}, "nobody on a wire can redirect this machine any more"
    if reboot:
        # The boot sets `default` before the cards appear.
        kernel.ip("link", "del", "eth0")
        kernel.host.set_sysctls({name.removeprefix("net/"): value for name, value in GLOBAL_SYSCTLS.items()})
        add(kernel, "eth0")
        add(kernel, "usb0")
        assert read("eth0", "usb0") == {"eth0": "0", "usb0": "0"}

    def uninstall() -> None:
        for change in reversed(changes):
            change.undo(platform)

    kernel.host.call(uninstall)
    assert read("all", "default", *INTERFACES) == before
    if reboot:
        assert read("usb0") == {"usb0": "1"}
