# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A device is left out of a guard only if the kernel refuses it, and not because nft was disturbed."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from tests.policies import IDENTITY

from psiphon_vpn.linux import disturbance, nft
from psiphon_vpn.linux.disturbance import ATTEMPTS
from psiphon_vpn.linux.nft import Nft, RulesetError
from psiphon_vpn.policy.guards import build_frame_guard
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.run import CommandError

WIRES = ("eth0", "eth1", "odd0")
SLOW = CommandError(["nft"], "it took too long")
REFUSED = CommandError(["nft"], "it is refused", returncode=1, stderr="Error: Could not process rule: Not supported")


def leave_out(monkeypatch: pytest.MonkeyPatch, say: Callable[[str], CommandError | None]) -> tuple[str, ...]:
    async def run_nft(argv: Sequence[str], *, input: str) -> subprocess.CompletedProcess[str]:
        if (error := say(input)) is not None:
            raise error
        return subprocess.CompletedProcess(list(argv), 0, "", "")

    monkeypatch.setattr(nft, "run_async", run_nft)
    monkeypatch.setattr(disturbance, "PAUSE_SECONDS", 0)
    guard = build_frame_guard(IDENTITY, parse_names(*WIRES))
    left = asyncio.run(Nft(cast("Any", None)).leave_out_refused(guard))
    return tuple(left.devices)


@pytest.mark.requirement("R5")
def test_only_what_the_kernel_refuses_is_left_out_of_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbances = iter([SLOW] * (ATTEMPTS - 1))

    def say(text: str) -> CommandError | None:
        return next(disturbances, None) or (REFUSED if "odd0" in text else None)

    assert leave_out(monkeypatch, say) == ("eth0", "eth1")
    with pytest.raises(RulesetError, match="it took too long"):
        leave_out(monkeypatch, lambda _text: SLOW)
