# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The boot lock's file cut short after each line, as by a power cut: what the unit runs fails, or the lock is whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from psiphon_lab.namespace import open_host
from psiphon_vpn.system.layout import KILLSWITCH_UNIT, Layout
from psiphon_vpn.system.units import render_units

GOLDEN = Path(__file__).parents[1] / "golden" / "boot.nft"
COMMANDS = re.findall(r"^ExecStart=(.*)$", render_units()[KILLSWITCH_UNIT], re.MULTILINE)


@pytest.mark.requirement("R1", "R2")
def test_a_boot_lock_that_is_cut_short_never_counts_as_loaded(tmp_path: Path) -> None:
    lines = GOLDEN.read_text().splitlines(keepends=True)
    file = tmp_path / "boot.nft"
    silent = 0
    with open_host("client", directory=tmp_path / "host") as host:

        def load(text: str) -> list[int]:
            """The exit codes of what the unit runs, up to the first failure, as systemd does."""
            file.write_text(text)
            codes: list[int] = []
            for command in COMMANDS:
                if not any(codes):
                    argv = [word.replace(str(Layout().boot_rules), str(file)) for word in shlex.split(command)]
                    codes.append(host.run(argv, check=False).returncode)
            return codes

        for number in range(len(lines)):
            host.run(["nft", "flush", "ruleset"])
            codes = load("".join(lines[:number]))
            assert codes[-1] != 0, f"{number} lines count as a lock"
            silent += codes[0] == 0
        assert silent, "the control: nft itself takes some of them, without a word"
        assert load("".join(lines)) == [0, 0]
        assert "policy drop" in host.run(["nft", "list", "chain", "inet", "psiphon_filter", "output"]).stdout
