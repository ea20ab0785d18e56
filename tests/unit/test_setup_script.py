# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The setup script and the locked requirements."""

import ast
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Figure

from psiphon_lab.attacks import load_attacks
from psiphon_lab.provider_censor import TEXT_SEARCHERS

ROOT = Path(__file__).parents[2]
SCRIPT = "Psiphon-Linux-VPN-Service-Setup.sh"
COMMANDS = "packaging/commands.sh"
RUN_PIP = "packaging/run_pip.py"
LOCKS = ("requirements.lock", "requirements-lab.lock", "requirements-dev.lock", "requirements-bootstrap.lock")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the script is for root")


def call(script: Path, *argv: str, venv: Path, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    # A PATH without sbin, as sudo may set it.
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
    """A checkout with lock files that need no network, and a program that prints its arguments."""
    directory.mkdir()
    shutil.copy(ROOT / SCRIPT, directory)
    for name in LOCKS:
        (directory / name).write_text("")
    (directory / "packaging").mkdir()
    for name in (COMMANDS, RUN_PIP):
        shutil.copy(ROOT / name, directory / name)
    package = directory / "src" / "psiphon_vpn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys\nprint('given', sys.argv[1:])\nsys.exit(7)\n")
    return directory / SCRIPT


@needs_root
@pytest.mark.requirement("R21")
def test_without_root_the_script_says_one_line_and_ends_with_77(tmp_path: Path) -> None:
    # A copy that others may read.
    script = Path(shutil.copy(ROOT / SCRIPT, "/tmp"))
    try:
        done = call(script, "demo", venv=tmp_path / "venv", uid=65534)
    finally:
        script.unlink()
    assert done.returncode == 77
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "root" in done.stderr
    # Not the name of a command that the program also has.
    assert done.stderr.startswith(f"{SCRIPT}: ")


@pytest.mark.defect(19)
@needs_root
def test_the_script_makes_the_environment_once_and_hands_over_arguments_and_exit_code(
    tmp_path: Path, figure: Figure
) -> None:
    script = make_checkout(tmp_path / "checkout")
    venv = tmp_path / "venv"
    first = call(script, "demo", "--json", "a b", venv=venv)
    assert (first.returncode, first.stdout) == (7, "given ['demo', '--json', 'a b']\n")
    assert "bringing the Python packages" in first.stderr

    start = time.monotonic()
    second = call(script, "status", venv=venv)
    figure("the setup script before its program begins, s", time.monotonic() - start)
    assert (second.returncode, second.stdout, second.stderr) == (7, "given ['status']\n", "")

    # The environment was interrupted before its last line was written, so it is made again.
    (venv / ".stamp-requirements.lock").unlink()
    assert "from requirements.lock" in call(script, "status", venv=venv).stderr
    assert "from requirements-lab.lock" in call(script, "demo", venv=venv).stderr
    # The lock file has changed, so it is made again.
    (script.parent / "requirements.lock").write_text("# new\n")
    assert "bringing the Python packages" in call(script, "status", venv=venv).stderr
    # The tests need more, and their packages include the others.
    assert "requirements-dev.lock" in call(script, "test", venv=venv).stderr
    assert call(script, "status", venv=venv).stderr == ""
    assert call(script, "leaktest", "--chaos", venv=venv).stderr == ""


@needs_root
def test_an_installations_environment_is_made_without_installing_pip_and_the_laboratorys_has_it(tmp_path: Path) -> None:
    script, venv = make_checkout(tmp_path / "checkout"), tmp_path / "venv"
    for command, has_pip in (("status", False), ("demo", True)):
        assert call(script, command, venv=venv).returncode == 7
        found = subprocess.run([venv / "bin/python", "-I", "-c", "import pip"], capture_output=True, check=False)
        assert (found.returncode == 0) is has_pip


@pytest.mark.parametrize("archive", [True, False], ids=["with its archive", "without"])
def test_pip_runs_for_an_environment_that_has_none(tmp_path: Path, archive: bool) -> None:
    venv, program = tmp_path / "venv", tmp_path / "run_pip.py"
    text = (ROOT / RUN_PIP).read_text()
    assert text.count('"*.whl"') == 1
    program.write_text(text if archive else text.replace('"*.whl"', '"*.none"'))
    subprocess.run(["/usr/bin/python3", "-I", "-m", "venv", "--without-pip", venv], check=True)
    asked = [str(venv / "bin/python"), "-I", str(program), "--disable-pip-version-check", "list", "--format=freeze"]
    # It names this environment's pip, which is installed in it only if there was no archive to run it from.
    reported = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert ("pip==" in reported) is not archive
    assert "click==" not in reported


@pytest.mark.parametrize("held", [True, False])
def test_who_holds_apts_lock_is_waited_for_with_a_word(tmp_path: Path, held: bool) -> None:
    lock = tmp_path / "lock-frontend"
    lock.touch()
    script = f'say() {{ echo "$*" >&2; }}; . "{ROOT / COMMANDS}"; await_locks "{lock}" "{tmp_path}/none"; echo done'
    with lock.open("r+") as file:
        if held:
            fcntl.lockf(file, fcntl.LOCK_EX)  # as apt does
        waiting = subprocess.Popen(
            ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        assert waiting.stderr is not None
        if held:
            assert f"waiting for process {os.getpid()} (" in waiting.stderr.readline()
            assert waiting.poll() is None
            fcntl.lockf(file, fcntl.LOCK_UN)
        said, errors = waiting.communicate(timeout=60)
    assert (said, errors) == ("done\n", "")


def write_program(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def pretend_venv(script: Path, venv: Path, lock: str) -> None:
    """An environment that the script takes for one made from this lock file; making a real one takes seconds."""
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    write_program(python, 'shift 3; printf "given"; printf " %s" "$@"; exit 7')
    digest = hashlib.sha256((script.parent / lock).read_bytes()).hexdigest()
    (venv / f".stamp-{lock}").write_text(f"{digest}  - {python.resolve()} {script.parent}\n")


def keep_programs(script: Path, programs: Path, *, without: Callable[[str], bool]) -> None:
    """Let the script find only the programs of this machine, except some, and no package manager."""
    programs.mkdir()
    for directory in ("/usr/bin", "/usr/sbin"):
        for program in Path(directory).iterdir():
            link = programs / program.name
            if not without(program.name) and not program.name.startswith("apt") and not link.exists():
                link.symlink_to(program)
    text = script.read_text()
    place = 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"; '
    assert place in text
    script.write_text(text.replace(place, f'PATH="{programs}"; '))


@needs_root
@pytest.mark.parametrize(("argv", "wanted"), [(["demo"], False), (["demo", "--core", "c", "--server", "s"], True)])
def test_the_real_servers_own_needs_are_installed_only_for_it(tmp_path: Path, argv: list[str], wanted: bool) -> None:
    script = make_checkout(tmp_path / "checkout")
    programs = tmp_path / "bin"
    keep_programs(script, programs, without=lambda name: "tables" in name)
    write_program(programs / "apt-get", 'echo "asked $*" >&2')
    pretend_venv(script, tmp_path / "venv", "requirements-lab.lock")
    done = call(script, *argv, venv=tmp_path / "venv")
    assert done.returncode == 7
    assert (
        "asked install -qq -y -o DPkg::Lock::Timeout=600 --no-install-recommends iptables iptables" in done.stderr
    ) is wanted


KNOWN_PROGRAMS = ("python3.13", "python3.12", "python3.11", "python3.99", "uv", "dnf", "pacman", "zypper", "nft", "ip")

# Programs with services that would touch this machine's network, and the units that are masked for each.
SERVICES = {
    "firewalld": "firewalld.service",
    "radvd": "radvd.service",
    "dockerd": "docker.service docker.socket containerd.service",
}


@needs_root
@pytest.mark.parametrize(
    ("systemd", "policy", "masks", "come"),
    [
        (True, None, 0, True),
        (True, None, 1, False),
        (False, None, 0, False),
        (False, 0, 0, False),
        (False, 101, 0, True),
    ],
    ids=["masked", "mask fails", "no systemd, no policy", "no systemd, policy allows", "no systemd, policy forbids"],
)
def test_the_attacks_programs_come_only_if_their_services_cannot_run_and_stop_nothing_if_they_do_not(
    tmp_path: Path, systemd: bool, policy: int | None, masks: int, come: bool
) -> None:
    script = make_checkout(tmp_path / "checkout")
    commands = script.parent / COMMANDS
    programs, running, rules = tmp_path / "bin", tmp_path / "running", tmp_path / "policy-rc.d"
    keep_programs(script, programs, without=lambda name: name in {*SERVICES, "containerd", "arping"})
    write_program(programs / "systemctl", f'echo "systemctl $*" >&2; exit {masks}')
    # Docker's package does not exist here.
    write_program(programs / "apt-get", 'echo "apt-get $*" >&2; [[ "$*" != *docker* ]]')
    text = commands.read_text()
    for place, other in (("/run/systemd/system", running), ("/usr/sbin/policy-rc.d", rules)):
        assert place in text
        text = text.replace(place, str(other))
    commands.write_text(text)
    if systemd:
        running.mkdir()
    if policy is not None:
        write_program(rules, f"exit {policy}")
    # Only the laboratory's lock file, or the script would make an environment.
    pretend_venv(script, tmp_path / "venv", "requirements-lab.lock")
    done = call(script, "leaktest", venv=tmp_path / "venv")
    assert (done.returncode, done.stdout) == (7, "given leaktest")
    said = done.stderr.splitlines()
    installed = [line for line in said if line.startswith("apt-get install")]
    # Harmless packages come in any case, one by one if one of them does not exist.
    assert any("iputils-arping" in line.split() for line in installed)
    assert any("docker.io" in line for line in installed) is come
    for program, units in SERVICES.items():
        package = "docker.io" if program == "dockerd" else program
        asked = [at for at, line in enumerate(said) if line.startswith("apt-get install") and package in line.split()]
        masked = [at for at, line in enumerate(said) if line == f"systemctl --root=/ --quiet mask {units}"]
        assert bool(asked) is come
        assert not come or masked[0] < asked[0]
    assert len([line for line in said if line.startswith("apt-get update")]) == 1


def list_wanted(*, fast: bool = False) -> list[str]:
    """What the script installs for the tests; fast: for `test --fast`."""
    text = (ROOT / SCRIPT).read_text()
    found = re.search(r'\*" test "\*\) wanted=\(([^)]*)\)', text)
    more = re.search(r"wanted\+=\(([^)]*)\)", text)
    assert found is not None
    assert more is not None
    return found[1].split() if fast else [*found[1].split(), *more[1].split()]


# What tests use if it is there, and otherwise skip with a reason: parts of a system, or alternatives.
# The script does not install iwd: its package renames a machine's own wireless cards (80-iwd.link). Docker comes with
# `leaktest` only.
OPTIONAL = {"groff", "systemd-analyze", "systemd-tmpfiles", "dpkg-deb", "NETWORKD", "iwctl", "dockerd"}


@needs_root
@pytest.mark.parametrize(
    ("command", "part"),
    [*(("test", part) for part in list_wanted()), *(("test --fast", part) for part in list_wanted(fast=True))],
)
def test_each_part_that_tests_need_is_asked_for_by_itself_on_a_machine_that_lacks_it_alone(
    tmp_path: Path, command: str, part: str
) -> None:
    script = make_checkout(tmp_path / "checkout")
    programs = tmp_path / "bin"
    keep_programs(script, programs, without=lambda name: name == part)
    for name in set(list_wanted()) - {part}:
        if not (programs / name).exists():
            write_program(programs / name, "exit 0")
    write_program(programs / "apt-get", 'echo "asked $*" >&2')
    write_program(programs / "systemctl", "exit 0")
    commands = script.parent / COMMANDS
    running = tmp_path / "running"
    running.mkdir()
    commands.write_text(commands.read_text().replace("/run/systemd/system", str(running)))
    pretend_venv(script, tmp_path / "venv", "requirements-dev.lock")
    done = call(script, *command.split(), venv=tmp_path / "venv")
    assert done.returncode == 7
    asked = [line for line in done.stderr.splitlines() if line.startswith("asked install")]
    package = subprocess.run(
        ["bash", "-c", f'. "{ROOT / COMMANDS}"; package_for "{part}" apt-get'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert asked == [f"asked install -qq -y -o DPkg::Lock::Timeout=600 --no-install-recommends {package}"], (
        "only that one"
    )


def test_what_a_test_looks_for_is_brought_by_the_script_or_named_as_optional() -> None:
    needed: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for call_node in ast.walk(ast.parse(path.read_text())):
            if isinstance(call_node, ast.Call) and ast.unparse(call_node.func) in {"shutil.which", "which"}:
                argument = call_node.args[0]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    needed[argument.value] = path.name
            if isinstance(call_node, ast.Assign) and isinstance(call_node.value, ast.ListComp):
                if ast.unparse(call_node.targets[0]) not in {"MISSING", "missing"}:
                    continue
                needed |= {
                    node.value: path.name
                    for node in ast.walk(call_node.value)
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)
                }
    assert {"dbus-daemon", "radvd", "dnsmasq", "shellcheck"} <= set(needed), "the control"
    brought = {*list_wanted(), "nft", "ip", "setpriv", "nsenter", "openssl", "flock", "find"}
    assert set(needed) - brought - OPTIONAL == set(), needed
    assert TEXT_SEARCHERS[0] in brought, "its package has both"


@pytest.mark.parametrize("there", [True, False])
def test_a_service_that_the_machine_had_before_is_not_masked(tmp_path: Path, there: bool) -> None:
    write_program(tmp_path / "systemctl", "echo $*")
    if there:
        write_program(tmp_path / "containerd", "")
    text = (ROOT / COMMANDS).read_text().replace("/run/systemd/system", str(tmp_path))
    done = subprocess.run(
        ["/bin/bash", "-euc", f"{text}\nsay() {{ :; }}; may_come dockerd"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("containerd.service" in done.stderr.split()) is not there
    assert "docker.service" in done.stderr.split()


def test_leaktest_brings_what_the_attacks_declare_and_nothing_else() -> None:
    found = re.search(r"^attackers=\((.*?)\)", (ROOT / SCRIPT).read_text(), re.DOTALL | re.MULTILINE)
    assert found
    declared = {tool for attack in load_attacks() for tool in attack.tools}
    assert sorted(found[1].split()) == sorted(declared)


@needs_root
@pytest.mark.parametrize(
    ("command", "asked"), [("test", False), ("test --fast", False), ("test --kernels", True), ("leaktest", True)]
)
def test_the_attacks_programs_come_with_whatever_plays_the_whole_leak_test(
    tmp_path: Path, command: str, asked: bool
) -> None:
    script, programs = make_checkout(tmp_path / "checkout"), tmp_path / "bin"
    keep_programs(script, programs, without=lambda name: name == "udhcpc")
    write_program(programs / "apt-get", 'echo "asked $*" >&2')
    # Nothing whose service could run is brought here.
    commands = script.parent / COMMANDS
    commands.write_text(
        commands.read_text()
        .replace("/run/systemd/system", str(tmp_path / "none"))
        .replace("/usr/sbin/policy-rc.d", str(tmp_path / "none"))
    )
    lock = "requirements-lab.lock" if command == "leaktest" else "requirements-dev.lock"
    pretend_venv(script, tmp_path / "venv", lock)
    done = call(script, *command.split(), venv=tmp_path / "venv")
    assert done.returncode == 7
    words = {word for line in done.stderr.splitlines() if line.startswith("asked install") for word in line.split()}
    assert ("udhcpc" in words) is asked


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "pacman", "zypper"])
def test_every_word_of_a_package_is_one(manager: str) -> None:
    text = (ROOT / COMMANDS).read_text()
    commands = sorted({tool for attack in load_attacks() for tool in attack.tools})
    asked = "".join(f'package_for "{name}" {manager};' for name in commands)
    done = subprocess.run(["bash", "-euc", f"{text}\n{asked}"], capture_output=True, text=True, check=True)
    packages = done.stdout.splitlines()
    assert len(packages) == len(commands)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9. +-]+", package) for package in packages)


@needs_root
def test_the_script_removes_nothing_that_is_no_virtual_environment(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "checkout")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "precious").touch()
    done = call(script, "status", venv=tmp_path / "venv")
    assert done.returncode == 1
    assert "is not a virtual environment" in done.stderr
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


@needs_root
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_root_runs_no_program_that_somebody_else_put_into_the_path(tmp_path: Path, first: bool) -> None:
    """Fakes of every program, present or missing here, in a user's directory and as shell functions."""
    script, reported = make_checkout(tmp_path / "checkout"), tmp_path / "told"
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in {*KNOWN_PROGRAMS, *(path.name for path in Path("/usr/bin").iterdir())}:
        write_program(hostile / name, f'echo "{name} $EUID" >>{reported}')
    os.chown(hostile, 65534, 65534)
    system = "/usr/bin:/bin"
    functions = {
        f"BASH_FUNC_{name}%%": f"() {{ echo {name} >>{reported}; }}" for name in ("command", "type", "setpriv", "cd")
    }
    env = {
        "PATH": f"{hostile}:{system}" if first else f"{system}:{hostile}",
        "PSIPHON_VPN_VENV": str(tmp_path / "venv"),
        "HOME": "/",
    }
    subprocess.run(["/bin/bash", "-c", "python3.99 || true"], env=env, capture_output=True, check=False)
    assert reported.read_text() == f"python3.99 {os.geteuid()}\n", "the control: a script that trusts PATH runs them"
    reported.unlink()
    done = subprocess.run(
        [str(script), "status"],
        env=env | functions,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "given ['status']\n"), done.stderr
    assert not reported.exists(), reported.read_text()


@needs_root
@pytest.mark.parametrize("by", ["variable", "file", "home"])
def test_root_runs_nothing_that_a_variable_of_somebody_elses_names(tmp_path: Path, by: str) -> None:
    """pip runs itself with whatever Python its configuration names. Later programs get no such variable either."""
    script, reported = make_checkout(tmp_path / "checkout"), tmp_path / "told"
    main = script.parent / "src" / "psiphon_vpn" / "__main__.py"
    main.write_text("import os\nprint(*sorted(os.environ))\n")
    write_program(tmp_path / "python", f'echo "$EUID" >>{reported}\nexec python3 "$@"')
    configuration = tmp_path / ".config" / "pip" / "pip.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f"[global]\npython = {tmp_path / 'python'}\n")
    hostile = {
        "variable": {"PIP_PYTHON": str(tmp_path / "python")},
        "file": {"PIP_CONFIG_FILE": str(configuration)},
        "home": {"HOME": str(tmp_path)},
    }[by]
    env = {"PATH": "/usr/bin:/bin", "HOME": "/", "PSIPHON_VPN_VENV": str(tmp_path / "venv")}
    subprocess.run(
        ["python3", "-I", "-m", "pip", "--disable-pip-version-check", "list"],
        env=env | hostile,
        capture_output=True,
        check=False,
    )
    assert reported.exists(), "the control: pip runs it"
    reported.unlink()
    names = (
        "BASH_ENV",
        "ENV",
        "CDPATH",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "APT_CONFIG",
        "OPENSSL_CONF",
        "PERL5OPT",
    )
    kept = {"LC_ALL": "C", "https_proxy": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9", "SUDO_UID": "1"}
    done = subprocess.run(
        [str(script), "status"],
        env=env | hostile | kept | dict.fromkeys(names, str(tmp_path)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not reported.exists(), done.stderr
    there = set(done.stdout.split())
    assert there >= {*kept, "HOME", "PATH"}, done.stderr
    assert not there & {*names, "PIP_PYTHON", "PIP_CONFIG_FILE"}


@needs_root
def test_a_python_of_somebody_elses_is_passed_over_wherever_a_link_leads_to_it(tmp_path: Path) -> None:
    script, reported = make_checkout(tmp_path / "checkout"), tmp_path / "told"
    programs, home = tmp_path / "bin", tmp_path / "home"
    home.mkdir()
    keep_programs(script, programs, without=lambda name: name.startswith("python3.13"))
    write_program(home / "python", f"id -u >>{reported}; exit 0")
    os.chown(home / "python", 65534, 65534)
    (programs / "python3.13").symlink_to(home / "python")
    done = call(script, "status", venv=tmp_path / "venv")
    assert done.returncode == 7, done.stderr
    assert not reported.exists()


def test_at_a_terminal_its_messages_keep_to_80_columns_with_words_unbroken(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "checkout")
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            ["bash", "-c", f'source <(grep "^say()" "{script}"); say "$1"', "-", "word " * 60 + "end"],
            stderr=theirs,
            check=True,
        )
        shown = os.read(ours, 65536).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert len(shown) > 4
    assert max(map(len, shown)) <= 80
    assert {word for line in shown[1:] for word in line.split()} == {"word", "end"}


def test_the_script_is_a_short_bootstrap() -> None:
    lines = (ROOT / SCRIPT).read_text().splitlines()
    assert len([line for line in lines if "SPDX-" not in line]) < 100
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

    assert read("requirements.lock") < read("requirements-lab.lock") < read("requirements-dev.lock")
    # A user's machine gets nothing that only the laboratory needs.
    assert not {"dpkt", "pyroute2", "scapy"} & {entry.partition("==")[0] for entry in read("requirements.lock")}
