# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed program is compiled, its byte code is used, and never for another source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.scratch_machine import ACTING, ScratchFile, make_machine

from psiphon_vpn.cli.main import cli
from psiphon_vpn.diagnose.system import RealSystem
from psiphon_vpn.diagnose.verify import ManifestError, verify
from psiphon_vpn.system.byte_code import compile_program
from psiphon_vpn.system.compiling import compile_installed, find_launching_interpreter
from psiphon_vpn.system.install import install_clone, uninstall
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON, find_interpreter
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.payload import collect_payload, render_manifest
from psiphon_vpn.system.payload_file import PayloadFile, make_file

pytestmark = pytest.mark.skipif(
    not find_interpreter(Layout()).path.startswith(SYSTEM_PYTHON), reason="the system's Python is too old"
)

ERRORS = "usr/lib/psiphon-vpn/lib/psiphon_vpn/errors.py"


@pytest.fixture(scope="module")
def payload() -> tuple[PayloadFile, ...]:
    return collect_payload(cli, python=SYSTEM_PYTHON)


def install_files(files: Iterable[PayloadFile], root: Path) -> Path:
    """Put files below a scratch root, and compile them."""
    for file in files:
        path = root / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    umask = os.umask(0o077)
    try:
        assert compile_installed(Layout(root=root))
    finally:
        os.umask(umask)
    return root


@pytest.fixture(scope="module")
def compiled(payload: tuple[PayloadFile, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole program; tests must not change it."""
    return install_files(payload, tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def root(payload: tuple[PayloadFile, ...], tmp_path: Path) -> Path:
    """A few modules of the program, with their own manifest."""
    library = f"{Layout().python_dir}/psiphon_vpn"
    kept = {f"{library}/{name}.py" for name in ("__init__", "errors", "i18n", "system/byte_code")}
    files = tuple(file for file in payload if file.path in {*kept, str(Layout().command)})
    assert len(files) == len(kept) + 1
    manifest = make_file(Layout().program_manifest, render_manifest(files))
    return install_files((*files, manifest), tmp_path / "root")


def run_installed(root: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    library = Layout(root=root).python_dir
    command = [SYSTEM_PYTHON, "-ISB", *options, "-c", f"import sys; sys.path.insert(0, {str(library)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", stdin=subprocess.DEVNULL)


def find_byte_code(root: Path, source: str) -> Path:
    (found,) = (root / source).parent.glob(f"__pycache__/{Path(source).stem}.*.pyc")
    return found


def read_tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "code",
    [
        "from psiphon_vpn.cli.main import HOMES, load_commands; load_commands(sum(HOMES.values(), ()))",
        "import psiphon_vpn.service.daemon",
    ],
    ids=["commands", "daemon"],
)
def test_every_module_of_the_program_comes_from_byte_code(compiled: Path, code: str) -> None:
    reported = run_installed(compiled, code, "-v").stderr
    library = re.escape(str(Layout(root=compiled).python_dir))
    used = re.findall(rf"^# code object from '({library}/[^']+)'", reported, re.MULTILINE)
    assert len(used) > 30
    assert not [path for path in used if not path.endswith(".pyc")]
    assert not re.search(rf"^# code object from {library}[^']*\.py$", reported, re.MULTILINE)


def test_without_byte_code_the_modules_come_from_their_sources(root: Path) -> None:
    """The control of the previous test."""
    shutil.rmtree((root / ERRORS).parent / "__pycache__")
    reported = run_installed(root, "import psiphon_vpn.errors", "-v").stderr
    assert f"# code object from {root}/{ERRORS}" in reported
    assert "errors.cpython" not in reported


@pytest.mark.requirement("R12")
def test_everybody_can_read_it_and_nobody_but_root_write_it(compiled: Path) -> None:
    found = [path for path in compiled.rglob("*") if "__pycache__" in path.parts]
    assert len(found) > 100
    assert {path.stat().st_mode & 0o7777 for path in found if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o7777 for path in found if path.is_dir()} == {0o755}
    assert {path.stat().st_uid for path in found} == {os.geteuid()}


@pytest.mark.requirement("R12")
def test_byte_code_of_another_source_is_not_run_though_time_and_size_agree(root: Path) -> None:
    path = root / ERRORS
    status, text = path.stat(), path.read_text()
    assert run_installed(root, "from psiphon_vpn.errors import EXIT_FAILURE; print(EXIT_FAILURE)").stdout == "1\n"
    path.write_text(text.replace("EXIT_FAILURE = 1", "EXIT_FAILURE = 9"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert run_installed(root, "from psiphon_vpn.errors import EXIT_FAILURE; print(EXIT_FAILURE)").stdout == "9\n"


def test_what_is_compiled_stays_as_it_is(root: Path) -> None:
    before = read_tree(root)
    assert compile_program(str(root)) == 0
    assert read_tree(root) == before


def test_a_changed_source_alone_is_compiled_again(root: Path) -> None:
    (root / ERRORS).write_text("EXIT_FAILURE = 9\n")
    before = read_tree(root)
    assert compile_program(str(root)) == 1
    after = read_tree(root)
    changed = {path for path in before if before[path] != after.get(path)}
    assert changed == {find_byte_code(root, ERRORS), Layout(root=root).byte_code_record}


def _replace(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _truncate(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_replace, _truncate, Path.unlink])
def test_byte_code_that_is_not_what_was_compiled_is_made_again(root: Path, spoil: Callable[[Path], None]) -> None:
    before = read_tree(root)
    spoil(find_byte_code(root, ERRORS))
    assert compile_program(str(root)) == 1
    assert read_tree(root).keys() == before.keys()
    assert verify(RealSystem(), Layout(root=root)).troubles == ()


def test_byte_code_without_a_source_of_this_version_goes(root: Path) -> None:
    directory = (root / ERRORS).parent
    stray = [
        directory / "__pycache__/errors.cpython-38.pyc",
        directory / "__pycache__/gone.cpython-311.pyc",
        find_byte_code(root, ERRORS).with_suffix(".pyc.psiphon-new"),
        directory / "gone/__pycache__/x.pyc",
    ]
    stray[-1].parent.mkdir(parents=True)
    for path in stray:
        path.write_bytes(b"")
    compile_program(str(root))
    assert not [path for path in stray if path.exists()]
    assert not stray[-1].parent.exists()


def test_a_source_for_another_python_stops_nothing(root: Path) -> None:
    (root / ERRORS).write_text("this is no Python\n")
    assert compile_program(str(root)) == 0
    assert not list((root / ERRORS).parent.glob("__pycache__/errors.*"))


@pytest.mark.lab
@pytest.mark.requirement("R12", "R13")
def test_verify_knows_what_was_compiled(root: Path) -> None:
    layout = Layout(root=root)
    report = verify(RealSystem(), layout)
    assert report.troubles == ()
    path = find_byte_code(root, ERRORS)
    _replace(path)
    (path.parent / "extra.pyc").write_bytes(b"")
    found = {(trouble.path.rpartition("/")[2], trouble.kind) for trouble in verify(RealSystem(), layout).troubles}
    assert found == {(path.name, "changed"), ("extra.pyc", "unexpected")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"files": [{"path": "/etc/shadow", "sha256": "0", "mode": "0644"}]}',
        '{"files": [{"path": "/usr/lib/psiphon-vpn/lib/__pycache__/../x.pyc", "sha256": "0", "mode": "0644"}]}',
        '{"files": [{"path": "/usr/lib/psiphon-vpn/lib/evil.pyc", "sha256": "0", "mode": "0644"}]}',
        '{"files": [{"path": "/usr/lib/psiphon-vpn/lib/__pycache__/evil.py", "sha256": "0", "mode": "0644"}]}',
    ],
)
def test_a_record_that_names_anything_else_is_ignored(root: Path, text: str) -> None:
    Layout(root=root).byte_code_record.write_text(text)
    with pytest.raises(ManifestError):
        verify(RealSystem(), Layout(root=root))


def test_a_machine_without_the_program_is_left_alone(tmp_path: Path) -> None:
    assert not compile_installed(Layout(root=tmp_path))
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/psiphon-vpn").write_text("#!/nonexistent/python -ISB\n")
    assert find_launching_interpreter(Layout(root=tmp_path)) is None
    assert not compile_installed(Layout(root=tmp_path))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["psiphon-vpn"]


@pytest.mark.lab
def test_an_installation_is_compiled_before_its_service_starts_and_leaves_nothing(
    payload: tuple[PayloadFile, ...], tmp_path: Path
) -> None:
    machine = make_machine(tmp_path)
    before = machine.read_all()
    files = tuple(ScratchFile(path=file.path, content=file.content, mode=file.mode) for file in payload)
    install_clone(machine.platform, files, ACTING, say=lambda _line: None)
    layout = machine.platform.layout
    recorded = json.loads(layout.byte_code_record.read_text())["files"]
    assert len(recorded) > 100
    assert all((layout.root / entry["path"].lstrip("/")).is_file() for entry in recorded)
    assert uninstall(machine.platform, say=lambda _line: None)
    assert machine.read_all() == before
