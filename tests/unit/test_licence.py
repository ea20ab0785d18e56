# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The licence: its text is there, and each source file names it in the two lines of the SPDX specification."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = [
    "SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors",
    "SPDX-License-Identifier: GPL-2.0-or-later",
]
SUFFIXES = {".py", ".sh", ".toml", ".conf", ".service", ".timer", ".network", ".in"}
# Copied to a machine whose user edits it, so it has no header.
LEFT_OUT = {"src/psiphon_vpn/resources/config.toml"}


def _list_sources() -> list[str]:
    found = [path for place in ("src", "tests", "packaging") for path in (ROOT / place).rglob("*")]
    names = [str(path.relative_to(ROOT)) for path in (*found, *ROOT.iterdir()) if path.suffix in SUFFIXES]
    return sorted(name for name in names if name not in LEFT_OUT)


SOURCES = _list_sources()


def test_there_are_sources() -> None:
    assert len(SOURCES) > 500


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_file_names_its_licence(name: str) -> None:
    # After a line that must come first: "#!", or a directive for shellcheck.
    first = [line.removeprefix("# ") for line in (ROOT / name).read_text().splitlines()[:3]]
    assert HEADER in (first[:2], first[1:])


def test_the_licence_text_is_complete() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 2, June 1991" in text
    assert "either version 2 of the License, or (at your option) any later version" in " ".join(text.split())
