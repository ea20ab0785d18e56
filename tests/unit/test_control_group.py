# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The service's control group: read from the kernel, and named only in the rules of the output hook."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies import IDENTITY, make_policy

from psiphon_vpn.linux import controlgroup, disturbance, scratch
from psiphon_vpn.linux.controlgroup import find_control_group, parse_control_group
from psiphon_vpn.linux.disturbance import ATTEMPTS
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.values import ControlGroup
from psiphon_vpn.policy.wire import may_connect
from psiphon_vpn.run import CommandError

GROUP = ControlGroup("system.slice/psiphon-vpn.service")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/system.slice/psiphon-vpn.service\n", GROUP),
        ("9:name=systemd:/x\n1:cpu:/\n0::/system.slice/psiphon-vpn.service\n", GROUP),
        ("1:name=systemd:/system.slice/psiphon-vpn.service\n", None),
        ("0::/\n", None),
        ("0::/user.slice/session-1.scope\n", None),
        ("0::/system.slice/not-psiphon-vpn.service\n", None),
        ('0::/a" accept comment "/psiphon-vpn.service\n', None),
        ("0::/../psiphon-vpn.service\n", None),
        ("0::/system.slice/psiphon-vpn.service (deleted)\n", None),
        ("", None),
    ],
)
def test_only_the_group_of_our_unit_counts_and_only_in_the_usual_form(text: str, group: ControlGroup | None) -> None:
    assert parse_control_group(text) == group


@given(st.text())
def test_no_text_of_the_kernels_is_read_as_more_than_a_path(text: str) -> None:
    found = parse_control_group(f"0::/{text}/psiphon-vpn.service")
    assert found is None or not set(found) - set(ControlGroup.ALPHABET)


@pytest.mark.requirement("R5")
@pytest.mark.parametrize("state", State)
def test_the_group_is_asked_for_in_output_only_while_psiphon_user_may_connect(state: State) -> None:
    policy = make_policy(state, control_group=GROUP)
    table = build_base_table(policy)
    asking = [(chain.name, rule) for chain in table.chains for rule in chain.rules if "cgroupv2" in rule.text]
    if not may_connect(policy):
        assert not asking
        return
    # A shortcut comes before the refusal of strangers, so it matches the group itself.
    (output,) = (chain for chain in table.chains if chain.name == "output")
    shortcuts = [("output", rule) for rule in output.rules if rule.shortcut]
    assert shortcuts
    assert asking[: len(shortcuts)] == shortcuts
    named = [(name, rule.text) for name, rule in asking[len(shortcuts) :]]
    assert named == [("output", f"{IDENTITY.owner} {GROUP.match} jump to_wire")]
    texts = [rule.text for chain in table.chains if chain.name == "output" for rule in chain.rules]
    at = texts.index(named[0][1])
    assert texts[at + 1 : at + 3] == [f"{IDENTITY.owner} counter goto refused", "jump to_wire"]


Answer = CommandError | subprocess.CompletedProcess[str]


def _ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: Iterator[Answer]) -> ControlGroup | None:
    async def nft(argv: Sequence[str], *, input: str | None = None) -> subprocess.CompletedProcess[str]:
        answer = next(answers)
        if isinstance(answer, CommandError):
            raise answer
        return answer

    (tmp_path / "cgroup").write_text("0::/system.slice/psiphon-vpn.service\n")
    monkeypatch.setattr(controlgroup, "OWN", tmp_path / "cgroup")
    monkeypatch.setattr(scratch, "run_async", nft)
    monkeypatch.setattr(scratch, "token_hex", lambda size: "0")
    monkeypatch.setattr(disturbance, "PAUSE_SECONDS", 0)
    return asyncio.run(find_control_group())


MATCHED = subprocess.CompletedProcess(["nft"], 0, "chain of_0 {\n}\ncounter packets 1 bytes 28", "")
REPLACED = subprocess.CompletedProcess(["nft"], 0, "chain of_1 {\n}\ncounter packets 0 bytes 0", "")
SLOW = CommandError(["nft"], "it took too long")
REFUSED = CommandError(["nft"], "no such expression", returncode=1, stderr="Error: syntax error")


@pytest.mark.requirement("R5")
def test_a_try_that_was_disturbed_does_not_leave_the_group_out_of_the_rules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [SLOW] * (ATTEMPTS - 1) + [MATCHED] * 3
    assert _ask(monkeypatch, tmp_path, iter(answers)) == GROUP
    assert _ask(monkeypatch, tmp_path, iter([MATCHED, REPLACED, MATCHED] * (ATTEMPTS - 1) + [MATCHED] * 3)) == GROUP
    assert _ask(monkeypatch, tmp_path, iter([REFUSED])) is None
    with pytest.raises(CommandError):
        _ask(monkeypatch, tmp_path, itertools.repeat(SLOW))
