# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core's data store, set aside."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from psiphon_vpn.core.datastore import ASIDE, STORE, STORE_PARENT, set_data_aside


def make_store(root: Path, content: str) -> Path:
    store = root / STORE_PARENT / STORE
    store.mkdir(parents=True)
    (store / "psiphon.boltdb").write_text(content)
    return store


def test_a_store_is_set_aside_in_the_place_of_the_one_before(tmp_path: Path) -> None:
    for content in ("one", "two"):
        store = make_store(tmp_path, content)
        assert set_data_aside(tmp_path)
        assert not store.exists()
    assert [path.name for path in (tmp_path / STORE_PARENT).iterdir()] == [ASIDE]
    assert (tmp_path / STORE_PARENT / ASIDE / "psiphon.boltdb").read_text() == "two"


def test_a_store_that_is_no_directory_is_set_aside_too(tmp_path: Path) -> None:
    store = make_store(tmp_path, "")
    set_data_aside(tmp_path)
    for _ in range(2):
        store.write_text("a file in its place")
        assert set_data_aside(tmp_path)
        assert not store.exists()


def test_nothing_to_set_aside_is_reported_without_a_path_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not set_data_aside(tmp_path)
    assert "could not be set aside" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_a_link_in_the_place_of_what_was_set_aside_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    make_store(tmp_path, "")
    (tmp_path / STORE_PARENT / ASIDE).symlink_to(outside)
    assert set_data_aside(tmp_path)
    assert (outside / "kept").exists()
