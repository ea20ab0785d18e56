# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that an installation puts on a machine."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from psiphon_vpn import __version__
from psiphon_vpn.cli.main import cli
from psiphon_vpn.errors import UserError
from psiphon_vpn.system import dependencies
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON, carry_interpreter, find_interpreter
from psiphon_vpn.system.layout import UNITS, Layout
from psiphon_vpn.system.payload import collect_payload
from psiphon_vpn.system.payload_file import PayloadFile

ROOT = Path(__file__).parents[2]
LAYOUT = Layout()


@pytest.fixture(scope="module")
def payload() -> dict[str, PayloadFile]:
    return {file.path: file for file in collect_payload(cli, python=SYSTEM_PYTHON)}


@pytest.fixture(scope="module")
def tree(payload: dict[str, PayloadFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The payload in a scratch root, readable by everybody."""
    root = tmp_path_factory.mktemp("root")
    for file in payload.values():
        path = root / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    return root


def test_the_same_checkout_gives_the_same_bytes(payload: dict[str, PayloadFile]) -> None:
    assert collect_payload(cli, python=SYSTEM_PYTHON) == tuple(payload.values())


@pytest.mark.requirement("R12")
def test_nobody_but_root_can_write_what_root_runs(payload: dict[str, PayloadFile]) -> None:
    assert {file.mode for file in payload.values()} == {0o644, 0o755}
    programs = {file.path for file in payload.values() if file.mode == 0o755}
    assert programs == {str(path) for path in (LAYOUT.command, LAYOUT.daemon, LAYOUT.guard_script, LAYOUT.sleep_script)}


def test_the_payload_holds_units_rules_nobody_rendered_and_no_laboratory(payload: dict[str, PayloadFile]) -> None:
    for unit in UNITS:
        assert str(LAYOUT.unit_dir / unit) in payload
    # Before an installation is configured, this directory does not exist, and without it the units do nothing.
    assert not [path for path in payload if path.startswith(f"{LAYOUT.rules_dir}/")]
    assert not [path for path in payload if "__pycache__" in path or "/psiphon_lab/" in path]
    assert not [path for path in payload if path.startswith(("/etc/", "/var/", "/run/"))]


@pytest.mark.requirement("R13")
def test_the_manifest_names_every_other_file_with_its_hash(payload: dict[str, PayloadFile]) -> None:
    manifest = json.loads(payload[str(LAYOUT.program_manifest)].content)
    assert manifest["version"] == __version__
    named = {entry["path"]: entry for entry in manifest["files"]}
    assert set(named) == set(payload) - {str(LAYOUT.program_manifest)}
    for path, entry in named.items():
        assert entry["sha256"] == hashlib.sha256(payload[path].content).hexdigest()
        assert (entry["owner"], entry["group"]) == ("root", "root")
        assert int(entry["mode"], 8) == payload[path].mode


def run_installed(tree: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as the launchers do, with only Python's own library and the payload on its path."""
    library = tree / str(LAYOUT.python_dir).lstrip("/")
    return subprocess.run(
        [SYSTEM_PYTHON, "-ISB", "-c", f"import sys; sys.path.insert(0, {str(library)!r})\n{code}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )


needs_python = pytest.mark.skipif(
    not find_interpreter(LAYOUT).path.startswith(SYSTEM_PYTHON), reason="the system's Python is too old"
)


@needs_python
def test_every_installed_module_can_be_loaded_from_the_payload_alone(tree: Path) -> None:
    library = tree / str(LAYOUT.python_dir).lstrip("/")
    modules = [
        str(path.relative_to(library).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in sorted((library / "psiphon_vpn").rglob("*.py"))
    ]
    assert len(modules) > 60
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(len(sys.modules))"
    done = run_installed(tree, code)
    assert done.returncode == 0, done.stderr
    assert not list(tree.rglob("__pycache__"))


def test_no_installed_module_needs_the_laboratory(payload: dict[str, PayloadFile]) -> None:
    # The demonstration requires a checkout before it imports any of it.
    allowed = {"cli/develop.py"}
    package = f"{LAYOUT.python_dir}/psiphon_vpn/"
    for path, file in payload.items():
        if not path.startswith(package) or not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(file.content)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("psiphon_lab") for name in names):
                assert path.removeprefix(package) in allowed


def test_the_program_needs_no_package_but_those_of_its_lock(payload: dict[str, PayloadFile]) -> None:
    """Imports inside functions count too. What only the laboratory needs is not installed."""
    package = f"{LAYOUT.python_dir}/psiphon_vpn/"
    needed = set()
    for path, file in payload.items():
        if path.startswith(package) and path.endswith(".py"):
            for node in ast.walk(ast.parse(file.content)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                needed |= {name.partition(".")[0] for name in names}
    needed -= {*sys.stdlib_module_names, "psiphon_vpn", "psiphon_lab"}  # the previous test covers the last condition
    assert needed == {"click", "httpx", "jeepney", "rich", "tomlkit"}
    assert needed <= set(dependencies.read_pins(ROOT / "requirements.lock"))


@needs_python
@pytest.mark.parametrize("command", ["demo", "test"])
def test_an_installed_copy_says_that_the_laboratory_is_in_a_checkout(tree: Path, command: str) -> None:
    done = run_installed(tree, f"from psiphon_vpn.cli.main import run_cli\nsys.exit(run_cli([{command!r}]))")
    assert done.returncode == 1
    assert "this is an installed copy" in done.stderr
    assert "checkout" in done.stderr


COLLECT = """
from psiphon_vpn.cli.main import cli
from psiphon_vpn.system.payload import collect_payload
collect_payload(cli)
"""


@needs_python
def test_an_installed_copy_cannot_be_the_source_of_another(tree: Path) -> None:
    done = run_installed(tree, COLLECT)
    assert "this is an installed copy" in done.stderr


def test_launchers_load_nothing_of_the_callers(payload: dict[str, PayloadFile]) -> None:
    for path in (LAYOUT.command, LAYOUT.daemon):
        assert payload[str(path)].content.startswith(b"#!/usr/bin/python3 -ISB\n")


# -- the locked packages ------------------------------------------------------------------------------------------


def make_package(directory: Path, *, files: dict[str, bytes], version: str = "1.0", recorded: bool = True) -> None:
    info = directory / f"thing-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
    lines = [f"{info.name}/RECORD,,"]
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        text = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={text},{len(content)}" if recorded else f"{name},,")
    (info / "RECORD").write_text("\n".join(lines) + "\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "packages"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    (tmp_path / "lock").write_text("thing==1.0 \\\n    --hash=sha256:00\n")
    importlib.invalidate_caches()
    return directory


def collect(packages: Path) -> dict[str, bytes]:
    return dict(dependencies.collect_dependencies(packages.parent / "lock"))


def test_a_locked_package_is_taken_without_its_tests_and_scripts(packages: Path) -> None:
    make_package(packages, files={"thing/__init__.py": b"x", "thing/tests/test_x.py": b"y", "../bin/thing": b"z"})
    assert collect(packages) == {"thing/__init__.py": b"x"}


@pytest.mark.requirement("R13")
def test_a_package_that_was_changed_after_its_installation_is_refused(packages: Path) -> None:
    make_package(packages, files={"thing/__init__.py": b"x"})
    (packages / "thing/__init__.py").write_bytes(b"evil")
    with pytest.raises(UserError, match="was changed"):
        collect(packages)


@pytest.mark.requirement("R13")
def test_a_file_without_a_recorded_hash_is_refused(packages: Path) -> None:
    make_package(packages, files={"thing/__init__.py": b"x"}, recorded=False)
    with pytest.raises(UserError, match="no recorded hash"):
        collect(packages)


def test_another_version_is_refused(packages: Path) -> None:
    make_package(packages, files={"thing/__init__.py": b"x"}, version="1.1")
    with pytest.raises(UserError, match=r"is 1\.1 and not 1\.0"):
        collect(packages)


def test_a_package_that_is_not_there_is_refused(packages: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        collect(packages)


def test_compiled_code_is_refused(packages: Path) -> None:
    make_package(packages, files={"thing/fast.so": b"\x7fELF"})
    with pytest.raises(UserError, match="not Python"):
        collect(packages)


def test_every_locked_package_is_in_the_payload(payload: dict[str, PayloadFile]) -> None:
    for name, version in dependencies.read_pins(ROOT / "requirements.lock").items():
        info = f"{LAYOUT.python_dir}/{name.replace('-', '_')}-{version}.dist-info/METADATA"
        assert info in payload, info


# -- the interpreter ----------------------------------------------------------------------------------------------


def test_a_python_of_the_checkouts_own_is_brought_along(tmp_path: Path) -> None:
    prefix = tmp_path / "cpython"
    for name in ("bin/python3.12", "lib/libpython3.12.so.1.0", "lib/python3.12/os.py", "lib/python3.12/test/x.py"):
        path = prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (prefix / "bin/python3.12").chmod(0o755)
    (prefix / "lib/libpython3.12.so").symlink_to("libpython3.12.so.1.0")
    (prefix / "lib/python3.12/site-packages").mkdir()
    (prefix / "lib/python3.12/site-packages/pip.py").write_text("pip")
    found = carry_interpreter(LAYOUT, prefix, prefix / "bin/python3.12")
    assert found.path == "/usr/lib/psiphon-vpn/python/bin/python3.12"
    assert found.files == (
        ("python/bin/python3.12", b"bin/python3.12", 0o755),
        ("python/lib/libpython3.12.so.1.0", b"lib/libpython3.12.so.1.0", 0o644),
        ("python/lib/python3.12/os.py", b"lib/python3.12/os.py", 0o644),
    )


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/"])
def test_half_a_system_is_never_brought_along(prefix: str) -> None:
    with pytest.raises(UserError, match="cannot be copied"):
        carry_interpreter(LAYOUT, Path(prefix), Path("/usr/bin/python3"))
