# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`verify` names each file that differs from what was installed, and no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.diagnose.scene import make_installation, write

from psiphon_vpn.cli.main import cli, run_cli
from psiphon_vpn.diagnose.system import RealSystem
from psiphon_vpn.diagnose.verify import ManifestError, verify
from psiphon_vpn.system.layout import UNIT_FILES, Layout

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R12", "R13", "R15")]

MODULE = "/usr/lib/psiphon-vpn/lib/psiphon_vpn/__init__.py"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_installation(tmp_path)


def test_an_installation_is_as_it_was_installed(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["verify", "--root", str(layout.root)]) == 0
    assert f"{len(UNIT_FILES) + 3} files" in capsys.readouterr().out


def _replace_by_link(path: Path) -> None:
    other = write(path.parent / "other", path.read_bytes())
    other.rename(path.parents[5] / "elsewhere")
    path.unlink()
    path.symlink_to(path.parents[5] / "elsewhere")


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("changed", lambda path: path.write_text("import os\n")),
        ("missing", lambda path: path.unlink()),
        ("mode", lambda path: path.chmod(0o666)),
        ("owner", lambda path: os.chown(path, 65534, 0)),
        ("owner", lambda path: os.chown(path, 0, 65534)),
        ("type", _replace_by_link),
    ],
)
def test_a_file_that_differs_is_named_with_the_kind_of_difference(
    kind: str, act: Callable[[Path], object], layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    act(layout.root / MODULE.lstrip("/"))
    assert run_cli(["verify", "--json", "--root", str(layout.root)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(item["path"], item["kind"]) for item in document["troubles"]] == [(MODULE, kind)]


@pytest.mark.parametrize("name", ["lib/extra.py", "lib/psiphon_vpn/__pycache__/x.pyc", "rules/other.nft", ".hidden"])
def test_a_file_that_nobody_installed_is_named(name: str, layout: Layout) -> None:
    write(layout.program_dir / name, "")
    kinds = {trouble.kind for trouble in verify(RealSystem(), layout).troubles}
    assert kinds == {"unexpected"}


def test_a_link_in_the_program_is_not_followed(layout: Layout) -> None:
    (layout.program_dir / "loop").symlink_to(layout.program_dir)
    paths = [trouble.path for trouble in verify(RealSystem(), layout).troubles]
    assert paths == ["/usr/lib/psiphon-vpn/loop"]


def test_a_fifo_in_the_place_of_a_file_makes_nobody_wait(layout: Layout) -> None:
    path = layout.root / MODULE.lstrip("/")
    path.unlink()
    os.mkfifo(path)
    assert [trouble.kind for trouble in verify(RealSystem(), layout).troubles] == ["type"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": [1]}', '{"files": []}', '{"files": [{"path": "x"}]}'])
def test_a_manifest_that_is_none_verifies_nothing(text: str, layout: Layout) -> None:
    layout.program_manifest.write_text(text)
    with pytest.raises(ManifestError):
        verify(RealSystem(), layout)


def test_where_nothing_is_installed_verify_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["verify", "--root", str(tmp_path)]) == 1
    assert "nothing is installed" in capsys.readouterr().err


@pytest.mark.requirement("R21")
@pytest.mark.parametrize("command", ["verify", "diagnose"])
def test_without_root_the_commands_say_so_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run_cli([command]) == 77
    reported = capsys.readouterr().err
    assert len(reported.splitlines()) == 1
    assert "sudo" in reported


def test_the_real_payload_of_an_installation_verifies(tmp_path: Path) -> None:
    from psiphon_vpn.system.payload import collect_payload

    for file in collect_payload(cli):
        write(tmp_path / file.path.lstrip("/"), file.content, mode=file.mode)
    report = verify(RealSystem(), Layout(root=tmp_path))
    assert report.troubles == ()
    assert report.count > 100
    assert report.version
