"""The setup script and the locked requirements."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "Psiphon-Linux-VPN-Service-Setup.sh"
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the script is for root")


def call(script: Path, *argv: str, venv: Path, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    # A PATH without sbin, as sudo may give it.
    env = {"PATH": "/usr/bin:/bin", "PSIPHON_VPN_VENV": str(venv), "HOME": "/"}
    return subprocess.run(
        [str(script), *argv],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd="/",
        user=uid,
        group=uid,
    )


def make_checkout(directory: Path) -> Path:
    """A checkout with locks that need nothing from a network, and a program that says what it was given."""
    directory.mkdir()
    shutil.copy(ROOT / SCRIPT, directory)
    for name in LOCKS:
        (directory / name).write_text("")
    package = directory / "src" / "psiphon_vpn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys\nprint('given', sys.argv[1:])\nsys.exit(7)\n")
    return directory / SCRIPT


@needs_root
@pytest.mark.requirement("R21")
def test_without_root_the_script_says_one_line_and_ends_with_77(tmp_path: Path) -> None:
    # A copy where others may read it.
    script = Path(shutil.copy(ROOT / SCRIPT, "/tmp"))
    try:
        done = call(script, "demo", venv=tmp_path / "venv", uid=65534)
    finally:
        script.unlink()
    assert done.returncode == 77
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "root" in done.stderr


@pytest.mark.defect(19)
@needs_root
def test_the_script_makes_the_environment_once_and_hands_over_arguments_and_exit_code(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "checkout")
    venv = tmp_path / "venv"
    first = call(script, "demo", "--json", "a b", venv=venv)
    assert (first.returncode, first.stdout) == (7, "given ['demo', '--json', 'a b']\n")
    assert "making" in first.stderr

    start = time.monotonic()
    second = call(script, "status", venv=venv)
    assert time.monotonic() - start < 1
    assert (second.returncode, second.stdout, second.stderr) == (7, "given ['status']\n", "")

    # Cut off before its last line was written: made anew.
    (venv / ".stamp-requirements.lock").unlink()
    assert "making" in call(script, "status", venv=venv).stderr
    # The lock has changed: made anew.
    (script.parent / "requirements.lock").write_text("# new\n")
    assert "making" in call(script, "status", venv=venv).stderr
    # The tests need more; what they need includes the rest.
    assert "requirements-dev.lock" in call(script, "test", venv=venv).stderr
    assert call(script, "status", venv=venv).stderr == ""


@needs_root
@pytest.mark.parametrize(("argv", "wanted"), [(["demo"], False), (["demo", "--core", "c", "--server", "s"], True)])
def test_the_real_servers_own_needs_are_installed_only_for_it(tmp_path: Path, argv: list[str], wanted: bool) -> None:
    script = make_checkout(tmp_path / "checkout")
    # The commands that are there, without iptables, and a package manager that only says what it is asked for.
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in ("/usr/bin", "/usr/sbin"):
        for program in Path(directory).iterdir():
            link = programs / program.name
            if "tables" not in program.name and not program.name.startswith("apt") and not link.exists():
                link.symlink_to(program)
    (programs / "apt-get").write_text('#!/bin/bash\necho "asked $*" >&2\n')
    (programs / "apt-get").chmod(0o755)
    text = script.read_text()
    place = 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin${PATH:+:$PATH}"'
    assert place in text
    script.write_text(text.replace(place, f'PATH="{programs}"'))
    done = call(script, *argv, venv=tmp_path / "venv")
    assert done.returncode == 7
    assert ("asked install -qq -y --no-install-recommends iptables iptables" in done.stderr) is wanted


@needs_root
def test_the_script_removes_nothing_that_is_no_virtual_environment(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "checkout")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "precious").touch()
    done = call(script, "status", venv=tmp_path / "venv")
    assert done.returncode == 1
    assert "in the way" in done.stderr
    assert (tmp_path / "venv" / "precious").exists()


@needs_root
def test_the_script_loads_nothing_from_the_current_directory(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "checkout")
    (tmp_path / "sys.py").write_text("")
    (tmp_path / "psiphon_vpn.py").write_text("print('planted')")
    call(script, venv=tmp_path / "venv")
    done = subprocess.run(
        [str(script)],
        env={"PATH": "/usr/bin:/bin", "PSIPHON_VPN_VENV": str(tmp_path / "venv"), "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "given []\n"


def test_the_script_is_a_short_bootstrap() -> None:
    assert len((ROOT / SCRIPT).read_text().splitlines()) < 100
    assert (ROOT / SCRIPT).stat().st_mode & 0o111


@pytest.mark.defect(10)
@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_requirement_is_exact_and_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = re.findall(r"^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    unindented = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(entries) == len(unindented) > 0
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)


def test_the_tests_run_with_the_versions_that_users_get() -> None:
    def read(name: str) -> set[str]:
        return set(re.findall(r"^\S+==\S+", (ROOT / name).read_text(), re.MULTILINE))

    assert read("requirements.lock") < read("requirements-dev.lock")
