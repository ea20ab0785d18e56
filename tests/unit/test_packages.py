# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
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
from psiphon_vpn.system.acting import collect_acting_files
from psiphon_vpn.system.dependencies import read_pins
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON
from psiphon_vpn.system.layout import DROPIN, UNIT_FILES
from psiphon_vpn.system.package_documents import LICENSE, collect_documents, collect_settings, render_copyright
from psiphon_vpn.system.packages import FORMATS, OTHERS_DIRECTORIES, SCRIPTS, build_packages
from psiphon_vpn.system.payload import collect_payload
from psiphon_vpn.system.payload_file import PayloadFile
from psiphon_vpn.system.resources import render_resource
from psiphon_vpn.system.units import NOTIFY_UNIT

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
        timeout=300,
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
    wanted = payload | {file.path: file for file in (*collect_documents(ROOT, "deb"), *collect_settings("deb"))}
    assert set(found) == set(wanted)
    for path, file in wanted.items():
        assert found[path].read_bytes() == file.content
        assert stat.S_IMODE(found[path].lstat().st_mode) == file.mode
    owners = {line.split()[1] for line in call("dpkg-deb", "-c", packages["deb"]).splitlines()}
    assert owners == {"root/root"}


@pytest.mark.requirement("R1")
def test_no_package_holds_a_file_that_acts(payload: dict[str, PayloadFile]) -> None:
    """Nor a file of that name: an upgrade would remove an older package's, while the machine must stay locked."""
    acting = {file.path for file in collect_acting_files()}
    assert len(acting) > 15
    for kind in FORMATS:
        held = {*payload, *(file.path for file in (*collect_documents(ROOT, kind), *collect_settings(kind)))}
        assert not held & acting
        for path in held - set(payload):
            assert path.startswith(("/usr/share/", "/etc/apt/apt.conf.d/"))
    # What remains below systemd's directories are units that nothing wants.
    for path in payload:
        if path.startswith("/usr/lib/systemd/"):
            assert Path(path).name in {*UNIT_FILES, NOTIFY_UNIT}
        else:
            assert path.startswith(("/usr/lib/psiphon-vpn/", "/usr/bin/", "/usr/sbin/", "/usr/share/"))


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not here")
@needs_dpkg
def test_lintian_has_no_complaint_that_is_not_explained(packages: dict[str, Path]) -> None:
    argv = ("lintian", "--allow-root", "--fail-on", "none", "--tag-display-limit", "0", packages["deb"])
    said = [line for line in call(*argv).splitlines() if re.match(r"[EWX]:", line)]
    assert not said, said
    lines = render_resource("lintian-overrides").splitlines()
    explained = False
    for line in lines:
        assert line.startswith("#") or explained, line
        explained = True


@needs_dpkg
def test_apt_never_removes_it_by_itself(tmp_path: Path) -> None:
    (setting,) = collect_settings("deb")
    path = tmp_path / "apt.conf"
    path.write_bytes(setting.content)
    patterns = re.findall(r'APT::NeverAutoRemove:: "(.*)";', call("apt-config", "-c", path, "dump"))
    assert any(re.search(pattern, "psiphon-vpn") for pattern in patterns)
    assert not any(re.search(pattern, "psiphon-vpn-other") for pattern in patterns)


@needs_dpkg
def test_the_copyright_names_every_part_of_the_package_and_its_licence(packages: dict[str, Path]) -> None:
    text = render_copyright(ROOT / "requirements.lock")
    pins = read_pins(ROOT / "requirements.lock")
    for name in pins:
        assert re.search(rf"^License: [A-Za-z0-9.-]+-{re.escape(name)}$", text, re.MULTILINE), name
    assert f"License: {LICENSE}" in text
    held = call("dpkg-deb", "-c", packages["deb"])
    for path in re.findall(r"^ (usr/lib/psiphon-vpn/lib/\S+)$", text, re.MULTILINE):
        assert f"./{path.removesuffix('*')}" in held
    assert (ROOT / "LICENSE").read_bytes() in {file.content for file in collect_documents(ROOT, "rpm")}


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
    wanted = payload | {file.path: file for file in (*collect_documents(ROOT, "rpm"), *collect_settings("rpm"))}
    assert files == {path: file.mode for path, file in wanted.items()}


@needs_rpm
@needs_dpkg
def test_the_packages_need_what_the_service_needs(packages: dict[str, Path]) -> None:
    for text in (call("rpm", "-qp", "--requires", packages["rpm"]), call("dpkg-deb", "-f", packages["deb"], "Depends")):
        needs = [r"python3 \(?>= 3\.11", "nftables", "iproute", r"systemd \(?>= 245", "ca-certificates", "openssl"]
        for need in needs:
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
    """A root with a shell, and in place of Python a program that records its calls."""
    root = tmp_path / "root"
    for name in ("sh", "cp", "mv", "rm", "sync"):
        copy_with_libraries(Path(shutil.which(name) or name).resolve(), root)
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
        assert re.match("-ISB (/usr)?/bin/psiphon-vpn ", line)
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
    assert run_script(scratch, "preinstall", *words) == []
    assert run_script(scratch, "preremove", *words) == []
    assert run_script(scratch, "postremove", *words) == []
    assert run_script(scratch, "postinstall", *words) == [CONFIGURE]


@needs_root
@pytest.mark.parametrize("word", ["remove", "0"])
def test_a_removal_deconfigures_before_the_files_go(scratch: Path, word: str) -> None:
    assert run_script(scratch, "preremove", word) == [DECONFIGURE]


@needs_root
@pytest.mark.parametrize(
    ("words", "goes"),
    [
        *((["remove"], True), (["0"], True), (["upgrade", "0.2.0-1"], True), (["deconfigure", "in-favour"], True)),
        # In rpm's upgrade the new version's script has already compiled. In dpkg's failed upgrade nothing changes.
        *((["1"], False), (["failed-upgrade", "0.1.0-1"], False)),
    ],
)
def test_byte_code_goes_before_the_files_that_it_was_made_of(scratch: Path, words: list[str], goes: bool) -> None:
    copy_with_libraries(Path(shutil.which("find") or "find").resolve(), scratch)
    program = scratch / "usr/lib/psiphon-vpn"
    made = [
        program / "lib/psiphon_vpn/__pycache__/x.pyc",
        program / "python/__pycache__/y.pyc",
        program / "byte_code.json",
    ]
    source = program / "lib/psiphon_vpn/x.py"
    for path in (*made, source):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run_script(scratch, "preremove", *words)
    assert [path.exists() for path in made] == [not goes] * 3
    assert made[0].parent.exists() is not goes
    assert source.exists()


def test_scriptlets_call_the_hidden_commands_and_nothing_that_opens() -> None:
    for name in SCRIPTS:
        text = (ROOT / "packaging" / f"{name}.sh").read_text()
        code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        assert not re.search(r"\bnft\b|\brelease\b|\bip\b", code)
        assert set(re.findall(r"(?<![\w/])psiphon-vpn (\S+)", code)) <= {CONFIGURE, DECONFIGURE}


@needs_root
@pytest.mark.requirement("R2", "R3")
@pytest.mark.parametrize("known", ["var/lib/psiphon-vpn/journal.json", "usr/lib/psiphon-vpn/rules/boot.nft", None])
def test_the_drop_ins_of_an_earlier_version_outlive_its_files_where_it_had_locked(
    scratch: Path, known: str | None
) -> None:
    units = scratch / "usr/lib/systemd/system"
    former = [units / f"{unit}.d" / "psiphon-vpn.conf" for unit in ("sysinit.target", "NetworkManager.service")]
    for path in former:
        path.parent.mkdir(parents=True)
        path.write_text(f"[Unit]\nWants={path.parent.name}\n")
    if known is not None:
        (scratch / known).parent.mkdir(parents=True)
        (scratch / known).touch()
    for _again in range(2):
        assert run_script(scratch, "preinstall", "upgrade", "0.1.0-1") == []
        new = [path.with_name(DROPIN) for path in former]
        assert [path.exists() for path in new] == [known is not None] * 2
        for path, old in zip(new, former, strict=True):
            assert known is None or path.read_bytes() == old.read_bytes()
    assert not list(units.rglob("*.psiphon-new"))


@needs_root
def test_a_purge_takes_the_configuration_and_a_removal_does_not(scratch: Path) -> None:
    config = scratch / "etc/psiphon-vpn/config.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    for word in ("remove", "upgrade", "0", "1", "abort-install"):
        assert run_script(scratch, "postremove", word) == []
        assert config.exists()
    assert run_script(scratch, "postremove", "purge") == []
    assert not config.parent.exists()


@needs_root
@pytest.mark.requirement("R3")
@pytest.mark.parametrize("there", [True, False], ids=["upgraded", "removed"])
def test_the_lock_is_forgotten_only_after_its_files_have_gone(scratch: Path, *, there: bool) -> None:
    (scratch / "run/systemd/system").mkdir(parents=True)
    (scratch / "dev").mkdir()
    systemctl = scratch / "usr/bin/systemctl"
    systemctl.write_text('#!/bin/sh\necho "$*" >>/systemctl-calls\n')
    systemctl.chmod(0o755)
    if there:
        (scratch / "usr/lib/systemd/system/psiphon-killswitch.service").touch()
    assert run_script(scratch, "postremove", "1" if there else "0") == []
    # systemd forgets the drop-ins that require the lock first, or it would stop network managers too.
    first, *rest = (scratch / "systemctl-calls").read_text().splitlines()
    assert first == "daemon-reload"
    assert bool(rest) != there


@needs_root
@needs_rpm
@pytest.mark.requirement("R3")
def test_rpm_installs_upgrades_and_removes_in_a_scratch_root(
    packages: dict[str, Path], payload: dict[str, PayloadFile], scratch: Path
) -> None:
    # Debian's rpm needs a flag to run at all.
    debian = ("--force-debian",) if Path("/etc/debian_version").exists() else ()
    common = ("rpm", "--root", scratch, "--nodeps", *debian)
    before = snapshot(scratch)
    call(*common, "-i", packages["rpm"])
    assert read_calls(scratch) == [CONFIGURE]
    for path, file in payload.items():
        assert (scratch / path.lstrip("/")).read_bytes() == file.content
    # The same version again counts as an upgrade.
    call(*common, "-U", "--replacepkgs", packages["rpm"])
    assert read_calls(scratch) == [CONFIGURE]
    # If the machine cannot be deconfigured, the package stays.
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
    # The removal was cancelled: the package is configured again, as far as possible.
    assert read_calls(scratch) == [DECONFIGURE, CONFIGURE]
    assert (scratch / "usr/sbin/psiphon-vpnd").exists()
    (scratch / "fail").unlink()
    call(*common, "-P", "psiphon-vpn")
    assert read_calls(scratch) == [DECONFIGURE]
    assert snapshot(scratch) == before


def snapshot(root: Path) -> set[str]:
    """Every path except the package managers' databases and the directories that every system has."""
    found = {f"/{path.relative_to(root)}" for path in root.rglob("*")}
    return {path for path in found if not path.startswith(("/var", "/root"))} - OTHERS_DIRECTORIES
