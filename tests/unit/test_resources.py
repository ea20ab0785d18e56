# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of `resources/`: all are installed, every placeholder is filled in, and every name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from psiphon_vpn.cli.main import cli
from psiphon_vpn.system import resources
from psiphon_vpn.system.acting import collect_acting_files
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON
from psiphon_vpn.system.layout import GROUP, UNITS, USER, Layout
from psiphon_vpn.system.payload import collect_payload
from psiphon_vpn.system.resources import DIRECTORY, TOKEN, VALUES, render_resource
from psiphon_vpn.system.units import NOTIFY_UNIT

FILES = sorted(path.name for path in DIRECTORY.iterdir())
SOURCES = {name: (DIRECTORY / name).read_text(encoding="utf-8") for name in FILES}
PATH = re.compile(r"/(?:etc|run|usr|var)/[\w./-]*psiphon[\w./-]*")
NOT_INSTALLED = {"NetworkManager-released.conf"}
"""Written by `release`, below /run."""


def find_strays(text: str) -> set[str]:
    """The service's paths in a text that no installation has."""
    known = {str(getattr(Layout(), name)) for name, kind in vars(Layout).items() if isinstance(kind, property)}
    return set(PATH.findall(text)) - known


def test_every_file_is_installed_as_it_is_rendered() -> None:
    contents = {file.content for file in (*collect_payload(cli, python=SYSTEM_PYTHON), *collect_acting_files())}
    assert {name for name in FILES if render_resource(name).encode() not in contents} == NOT_INSTALLED


def test_an_installed_copy_can_render_them() -> None:
    package = f"{Layout().python_dir}/psiphon_vpn/resources/"
    held = {file.path.removeprefix(package): file.content for file in collect_payload(cli, python=SYSTEM_PYTHON)}
    assert {name: held.get(name) for name in FILES} == {name: text.encode() for name, text in SOURCES.items()}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_left_to_fill_in(name: str) -> None:
    assert not TOKEN.search(render_resource(name))


def test_every_value_is_asked_for_and_only_those_can_be() -> None:
    assert {name for text in SOURCES.values() for name in TOKEN.findall(text)} == set(VALUES)


def test_a_value_that_there_is_not_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.conf").write_text("a=@TUN@\nb=@NOBODY@\n")
    monkeypatch.setattr(resources, "DIRECTORY", tmp_path)
    with pytest.raises(KeyError, match="NOBODY"):
        render_resource("odd.conf")


@pytest.mark.parametrize("name", FILES)
def test_every_path_of_ours_is_one_that_the_layout_has(name: str) -> None:
    assert not find_strays(SOURCES[name])


def test_a_path_that_the_layout_has_not_would_be_found() -> None:
    assert find_strays("ExecStart=/usr/sbin/nft -f /usr/lib/psiphon-vpn/rules/boots.nft") == {
        "/usr/lib/psiphon-vpn/rules/boots.nft"
    }
    assert not find_strays(f"ExecStart=/usr/sbin/nft -f {Layout().boot_rules}")


@pytest.mark.parametrize("name", FILES)
def test_every_unit_and_account_of_ours_is_one_that_there_is(name: str) -> None:
    assert set(re.findall(r"\bpsiphon[\w-]*\.service\b", SOURCES[name])) <= {*UNITS, NOTIFY_UNIT}
    assert set(re.findall(r"^User=(.*)$", SOURCES[name], re.MULTILINE)) <= {USER}
    assert set(re.findall(r"^Group=(.*)$", SOURCES[name], re.MULTILINE)) <= {GROUP}
    assert set(re.findall(r"\bpsiphon-(?:user|group)\b", SOURCES[name])) <= {USER, GROUP}
