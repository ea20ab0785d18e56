"""The packages, as dpkg and rpm read and run them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from psiphon_vpn.cli.main import cli
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON
from psiphon_vpn.system.packages import FORMATS, OTHERS_DIRECTORIES, SCRIPTS, build_packages
from psiphon_vpn.system.payload import PayloadFile, collect_payload

ROOT = Path(__file__).parents[2]
CONFIGURE, DECONFIGURE = "system-configure", "system-deconfigure"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a scratch root and changes into it")
needs_rpm = pytest.mark.skipif(shutil.which("rpm") is None, reason="rpm is not here")
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here")


def call(*argv: str | Path, ok: bool = True) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert not ok or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def payload() -> dict[str, PayloadFile]:
    return {file.path: file for file in collect_payload(cli, python=SYSTEM_PYTHON)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(zip(FORMATS, build_packages(cli, tmp_path_factory.mktemp("packages")), strict=True))


@pytest.mark.requirement("R20")
def test_two_builds_give_the_same_bytes(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tehran")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        again = build_packages(cli, tmp_path / "again")
    finally:
        os.umask(before)
    for path, other in zip(packages.values(), again, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


@needs_dpkg
def test_the_deb_holds_the_payload_and_nothing_else(
    packages: dict[str, Path], payload: dict[str, PayloadFile], tmp_path: Path
) -> None:
    call("dpkg-deb", "-x", packages["deb"], tmp_path)
    found = {f"/{path.relative_to(tmp_path)}": path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert set(found) == set(payload)
    for path, file in payload.items():
        assert found[path].read_bytes() == file.content
        assert stat.S_IMODE(found[path].lstat().st_mode) == file.mode
    owners = {line.split()[1] for line in call("dpkg-deb", "-c", packages["deb"]).splitlines()}
    assert owners == {"root/root"}


@needs_rpm
def test_the_rpm_lists_the_payload_and_nothing_else(packages: dict[str, Path], payload: dict[str, PayloadFile]) -> None:
    form = "[%{FILEMODES:octal} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]"
    listing = call("rpm", "-qp", "--qf", form, packages["rpm"])
    files = {}
    for line in listing.splitlines():
        mode, owner, path = line.split(" ", 2)
        assert owner == "root:root"
        if not int(mode, 8) & 0o040000:
            files[path] = int(mode, 8) & 0o7777
    assert files == {path: file.mode for path, file in payload.items()}


@needs_rpm
@needs_dpkg
def test_the_packages_need_what_the_service_needs(packages: dict[str, Path]) -> None:
    for text in (call("rpm", "-qp", "--requires", packages["rpm"]), call("dpkg-deb", "-f", packages["deb"], "Depends")):
        for need in (r"python3 \(?>= 3\.11", "nftables", "iproute", "util-linux", r"systemd \(?>= 245"):
            assert re.search(need, text), need


# -- what the scriptlets do ---------------------------------------------------------------------------------------


def copy_with_libraries(program: Path, root: Path) -> None:
    needed = re.findall(r"(/\S+)", call("ldd", program))
    for path in (program, *map(Path, needed)):
        target = root / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A root with a shell, and in the place of Python a recorder of what it is called for."""
    root = tmp_path / "root"
    copy_with_libraries(Path("/bin/sh").resolve(), root)
    shell = Path("/bin/sh").resolve()
    (root / "bin").mkdir(exist_ok=True)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to(shell)
    for directory in OTHERS_DIRECTORIES:
        (root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
    recorder = root / SYSTEM_PYTHON.lstrip("/")
    recorder.parent.mkdir(parents=True, exist_ok=True)
    recorder.write_text('#!/bin/sh\necho "$*" >>/calls\n[ ! -e /fail ]\n')
    recorder.chmod(0o755)
    return root


def read_calls(root: Path) -> list[str]:
    path = root / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    for line in found:
        assert line.startswith("-ISB /usr/bin/psiphon-vpn ")
    return [line.split()[2] for line in found]


def run_script(root: Path, name: str, *words: str) -> list[str]:
    program = root / "usr/bin/psiphon-vpn"
    program.write_text(f"#!{SYSTEM_PYTHON} -ISB\n")
    program.chmod(0o755)
    shutil.copy(ROOT / "packaging" / f"{name}.sh", root / "script")
    call("chroot", root, "/bin/sh", "/script", *words)
    return read_calls(root)


@needs_root
@pytest.mark.requirement("R3")
@pytest.mark.parametrize(
    "words",
    [
        *(["upgrade", "0.2.0-1"], ["failed-upgrade", "0.1.0-1"], ["deconfigure", "in-favour", "other", "1"]),
        *(["1"], ["2"], [], ["purge"], ["nonsense"]),
    ],
    ids=" ".join,
)
def test_only_a_removal_lets_the_machine_go(scratch: Path, words: list[str]) -> None:
    assert run_script(scratch, "preremove", *words) == []
    assert run_script(scratch, "postremove", *words) == []
    assert run_script(scratch, "postinstall", *words) == [CONFIGURE]


@needs_root
@pytest.mark.parametrize("word", ["remove", "0"])
def test_a_removal_deconfigures_before_the_files_go(scratch: Path, word: str) -> None:
    assert run_script(scratch, "preremove", word) == [DECONFIGURE]


def test_scriptlets_call_the_hidden_commands_and_nothing_that_opens() -> None:
    for name in SCRIPTS:
        text = (ROOT / "packaging" / f"{name}.sh").read_text()
        code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        assert not re.search(r"\bnft\b|\brelease\b|\bip\b", code)
        assert set(re.findall(r"psiphon-vpn (\S+)", code)) <= {CONFIGURE, DECONFIGURE}


@needs_root
@pytest.mark.requirement("R3")
@pytest.mark.parametrize("there", [True, False], ids=["upgraded", "removed"])
def test_the_lock_is_forgotten_only_after_its_files_have_gone(scratch: Path, *, there: bool) -> None:
    (scratch / "run/systemd/system").mkdir(parents=True)
    systemctl = scratch / "usr/bin/systemctl"
    systemctl.write_text('#!/bin/sh\necho "$*" >>/systemctl-calls\n')
    systemctl.chmod(0o755)
    if there:
        (scratch / "usr/lib/systemd/system/psiphon-killswitch.service").touch()
    assert run_script(scratch, "postremove", "1" if there else "0") == []
    # The drop-ins that require the lock are forgotten first, or network managers would be stopped with it.
    first, *rest = (scratch / "systemctl-calls").read_text().splitlines()
    assert first == "daemon-reload"
    assert bool(rest) != there


@needs_root
@needs_rpm
@pytest.mark.requirement("R3")
def test_rpm_installs_upgrades_and_removes_in_a_scratch_root(
    packages: dict[str, Path], payload: dict[str, PayloadFile], scratch: Path
) -> None:
    # Debian's rpm wants to be told that it is meant.
    debian = ("--force-debian",) if Path("/etc/debian_version").exists() else ()
    common = ("rpm", "--root", scratch, "--nodeps", *debian)
    before = snapshot(scratch)
    call(*common, "-i", packages["rpm"])
    assert read_calls(scratch) == [CONFIGURE]
    for path, file in payload.items():
        assert (scratch / path.lstrip("/")).read_bytes() == file.content
    # The same version over itself takes the way of an upgrade.
    call(*common, "-U", "--replacepkgs", packages["rpm"])
    assert read_calls(scratch) == [CONFIGURE]
    # A machine that cannot be deconfigured keeps its package.
    (scratch / "fail").touch()
    call(*common, "-e", "psiphon-vpn", ok=False)
    assert read_calls(scratch) == [DECONFIGURE]
    assert (scratch / "usr/sbin/psiphon-vpnd").exists()
    (scratch / "fail").unlink()
    call(*common, "-e", "psiphon-vpn")
    assert read_calls(scratch) == [DECONFIGURE]
    assert snapshot(scratch) == before


@needs_root
@needs_dpkg
@pytest.mark.requirement("R3")
def test_dpkg_installs_upgrades_and_removes_in_a_scratch_root(packages: dict[str, Path], scratch: Path) -> None:
    admin = scratch / "var/lib/dpkg"
    for name in ("info", "updates", "triggers"):
        (admin / name).mkdir(parents=True)
    (admin / "status").touch()
    before = snapshot(scratch)
    common = ("dpkg", f"--root={scratch}", "--force-depends")
    call(*common, "-i", packages["deb"])
    assert read_calls(scratch) == [CONFIGURE]
    call(*common, "-i", packages["deb"])
    assert read_calls(scratch) == [CONFIGURE]
    (scratch / "fail").touch()
    call(*common, "-r", "psiphon-vpn", ok=False)
    # The removal was called off: configured again, as far as that goes.
    assert read_calls(scratch) == [DECONFIGURE, CONFIGURE]
    assert (scratch / "usr/sbin/psiphon-vpnd").exists()
    (scratch / "fail").unlink()
    call(*common, "-P", "psiphon-vpn")
    assert read_calls(scratch) == [DECONFIGURE]
    assert snapshot(scratch) == before


def snapshot(root: Path) -> set[str]:
    """Every path but the databases of the package managers, and the directories that every system has."""
    found = {f"/{path.relative_to(root)}" for path in root.rglob("*")}
    return {path for path in found if not path.startswith(("/var", "/root"))} - OTHERS_DIRECTORIES
