# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How a computer without a lock behaves: before an installation, after its removal, and with only the package."""

from __future__ import annotations

import time

from psiphon_lab.addresses import LAN_A
from psiphon_lab.booted.kernel_state import KernelState, read_kernel_state
from psiphon_lab.booted.session import Session


def read_kernel(session: Session) -> KernelState:
    return read_kernel_state(session.world.client)


def assert_open_as_before(session: Session) -> None:
    """Require that everything gets out and is answered, at the latest when the network manager is done."""

    def find_wrong() -> list[str]:
        found = session.probe()
        wanted = {4: LAN_A.client4, 6: LAN_A.network6.partition("::")[0]}
        pages = {
            f"{label}-tcp-ipv{family}-internet-plain": address
            for label in ("root", "user")
            for family, address in wanted.items()
        }
        return [
            f"{name}: {found[name]}" for name, address in pages.items() if not found[name].answer.startswith(address)
        ]

    deadline = time.monotonic() + 20
    while (wrong := find_wrong()) and time.monotonic() < deadline:
        pass
    assert not wrong, wrong
    assert not session.control()
