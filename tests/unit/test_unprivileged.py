# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that reads what others have written can do nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import psiphon_vpn.unprivileged as product
from psiphon_vpn.unprivileged import Limits, Trouble, UnprivilegedError, run_unprivileged

WORKER = "unprivileged_worker"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker beside the package, in a directory that only root can enter, as below a home directory."""
    (tmp_path / "psiphon_vpn").symlink_to(Path(product.__file__).parent)
    (tmp_path / f"{WORKER}.py").symlink_to(Path(__file__).with_name(f"{WORKER}.py"))
    tmp_path.chmod(0o700)
    monkeypatch.setattr(product, "__file__", str(tmp_path / "psiphon_vpn" / "unprivileged.py"))
    monkeypatch.setattr(Path, "resolve", lambda path: path)


def run(deed: str, content: bytes = b"", limits: Limits | None = None) -> bytes:
    return run_unprivileged(WORKER, [deed], content, limits)


def test_it_can_open_nothing_start_nothing_and_become_nobody_else() -> None:
    found = json.loads(run("deeds"))
    deeds = {name: outcome for name, outcome in found.items() if name not in {"uid", "gid", "groups"}}
    assert all(outcome.startswith("refused") for outcome in deeds.values()), deeds
    if os.geteuid() == 0:
        assert 0 not in (*found["uid"], *found["gid"])
        assert found["groups"] == []


@settings(max_examples=5)
@given(st.binary(max_size=100_000))
def test_bytes_go_in_and_out_as_they_are(content: bytes) -> None:
    assert run("echo", content) == content


@pytest.mark.parametrize(
    ("deed", "limits", "trouble"),
    [
        ("memory", Limits(), Trouble.ENDED),
        ("output", Limits(output=1 << 20), Trouble.ENDED),
        ("spin", Limits(cpu=1), Trouble.ENDED),
        ("spin", Limits(wait=0.5), Trouble.TOO_SLOW),
        ("nonsense", Limits(), Trouble.ENDED),
    ],
)
def test_whatever_it_does_its_end_is_a_typed_error(deed: str, limits: Limits, trouble: Trouble) -> None:
    with pytest.raises(UnprivilegedError) as caught:
        run(deed, b"", limits)
    assert caught.value.trouble is trouble
