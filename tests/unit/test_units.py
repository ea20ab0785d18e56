# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd units, as systemd itself reads them."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from psiphon_vpn import network_managers
from psiphon_vpn.policy import names
from psiphon_vpn.system import units
from psiphon_vpn.system.layout import (
    GUARD_UNIT,
    KILLSWITCH_FAILED_UNIT,
    KILLSWITCH_UNIT,
    SERVERS_TIMER,
    SERVERS_UNIT,
    SERVICE_UNIT,
    SLEEP_UNIT,
    UNIT_FILES,
    UNITS,
    Layout,
)

MAX_EXPOSURE = {SERVICE_UNIT: 18, GUARD_UNIT: 30, KILLSWITCH_UNIT: 30, SLEEP_UNIT: 16, SERVERS_UNIT: 20}
"""In tenths, as --threshold takes it. Guard and boot lock have no mount namespace, for which systemd adds 1.6."""
TEXTS = units.render_units()

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def lines(unit: str, key: str) -> list[str]:
    """Every value of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", TEXTS[unit], re.MULTILINE)


def words(unit: str, key: str) -> list[str]:
    return " ".join(lines(unit, key)).split()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with the service's units, what they run, and the units of systemd that they refer to."""
    root = tmp_path_factory.mktemp("tree")
    directory = Layout(root=root).unit_dir
    directory.mkdir(parents=True)
    for name, text in TEXTS.items():
        (directory / name).write_text(text)
    for name in ("sysinit", "basic", "shutdown", "network-pre", "multi-user", "sleep", "timers"):
        (directory / f"{name}.target").write_text("[Unit]\nDescription=stub\n")
    for program in (
        "/usr/sbin/nft",
        "/bin/sh",
        "/usr/sbin/psiphon-vpnd",
        "/usr/bin/psiphon-vpn",
        "/usr/lib/psiphon-vpn/guard",
        "/usr/lib/psiphon-vpn/sleep",
    ):
        path = root / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return root


def analyze(tree: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *argv, f"--root={tree}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
    )


@needs_systemd
@pytest.mark.defect(14)
@pytest.mark.parametrize("unit", UNIT_FILES)
def test_systemd_finds_nothing_to_say_about_the_unit(tree: Path, unit: str) -> None:
    done = analyze(tree, "verify", "--man=no", unit)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", units.render_dropins())
def test_systemd_finds_nothing_to_say_about_the_drop_in(tree: Path, tmp_path: Path, unit: str) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    layout = Layout(root=copy)
    if unit.endswith(".service"):
        (layout.unit_dir / unit).write_text("[Service]\nExecStart=/bin/sh\n")
    path = layout.dropin(unit)
    path.parent.mkdir()
    name = unit.replace("@.", "@eth0.")
    path.write_text(units.render_dropins()[unit].replace("Wants=", "Wantz=").replace("Requires=", "Requirez="))
    assert "Unknown key" in analyze(copy, "verify", "--man=no", name).stderr, "the control"
    path.write_text(units.render_dropins()[unit])
    done = analyze(copy, "verify", "--man=no", name)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@needs_systemd
def test_the_verification_notices_a_word_that_systemd_does_not_know(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    path = Layout(root=copy).unit_dir / SERVICE_UNIT
    path.write_text(path.read_text().replace("RestrictRealtime=", "RestrictRealtyme="))
    assert "RestrictRealtyme" in analyze(copy, "verify", "--man=no", SERVICE_UNIT).stderr


@needs_systemd
@pytest.mark.requirement("R24")
@pytest.mark.parametrize("unit", MAX_EXPOSURE)
def test_the_exposure_that_systemd_counts_is_at_most_what_the_documents_say(tree: Path, unit: str) -> None:
    done = analyze(tree, "security", "--offline=yes", f"--threshold={MAX_EXPOSURE[unit]}", unit)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) * 10 <= MAX_EXPOSURE[unit]
    assert done.returncode == 0


@needs_systemd
@pytest.mark.requirement("R24")
def test_without_one_directive_the_exposure_is_too_high(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    path = Layout(root=copy).unit_dir / SERVICE_UNIT
    path.write_text(path.read_text().replace("ProtectSystem=strict\n", ""))
    assert analyze(copy, "security", "--offline=yes", "--threshold=18", SERVICE_UNIT).returncode != 0


@pytest.mark.requirement("R8")
def test_the_daemon_has_exactly_three_capabilities_in_both_sets() -> None:
    three = {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"}
    for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert len(lines(SERVICE_UNIT, key)) == 1
        assert set(words(SERVICE_UNIT, key)) == three
    assert lines(SERVICE_UNIT, "User") == ["psiphon-user"]
    assert lines(SERVICE_UNIT, "Group") == ["psiphon-group"]
    assert lines(SERVICE_UNIT, "NoNewPrivileges") == ["yes"]


@pytest.mark.requirement("R8")
@pytest.mark.parametrize("unit", [KILLSWITCH_UNIT, GUARD_UNIT, KILLSWITCH_FAILED_UNIT])
def test_what_runs_as_root_has_one_capability(unit: str) -> None:
    assert words(unit, "CapabilityBoundingSet") == ["CAP_NET_ADMIN"]


NO_UNIT_NEEDS = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
SystemCallArchitectures=native
KeyringMode=private
LimitCORE=0
"""
MOUNTS = """\
PrivateMounts=yes
ProtectSystem=strict
ProtectHome=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
"""


LOCK_UNITS = (KILLSWITCH_UNIT, GUARD_UNIT, KILLSWITCH_FAILED_UNIT)
"""Load the lock at boot. Without the first, no network manager starts; without the others, a layer is missing."""


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_confined_by_the_same_directives(unit: str) -> None:
    assert (NO_UNIT_NEEDS if unit in LOCK_UNITS else NO_UNIT_NEEDS + MOUNTS) in TEXTS[unit]


@pytest.mark.requirement("R1", "R2")
@pytest.mark.parametrize("unit", LOCK_UNITS)
def test_no_unit_of_the_lock_needs_a_mount_namespace(unit: str) -> None:
    """Systemd sometimes fails to make one during the boot: the machine stayed offline until the next one.

    The directives are those of systemd.exec(5) that use one.
    """
    files = "ReadWrite|ReadOnly|Inaccessible|Exec(Paths|Search)|NoExec|Temporary|Bind|Root|Mount|ProcSubset"
    assert not re.search(f"^(Protect|Private|{files})", TEXTS[unit], re.MULTILINE)


@pytest.mark.requirement("R24")
def test_the_two_roots_of_the_lock_are_confined_alike() -> None:
    killswitch, guard = (TEXTS[unit].partition("\nCapabilityBoundingSet=")[2] for unit in (KILLSWITCH_UNIT, GUARD_UNIT))
    assert killswitch == guard
    assert len(guard.splitlines()) > 14
    # Neither can reach a name service: nft looks up the numbers of users.
    assert "\nRestrictAddressFamilies=AF_NETLINK\n" in guard


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("unit", [KILLSWITCH_UNIT, GUARD_UNIT, KILLSWITCH_FAILED_UNIT])
def test_the_lock_needs_no_python(unit: str) -> None:
    assert "python" not in TEXTS[unit].lower()
    assert "python" not in units.render_guard_script().lower()


@pytest.mark.defect(14)
@pytest.mark.requirement("R2", "R3")
@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != SLEEP_UNIT])
def test_stopping_a_unit_runs_no_command(unit: str) -> None:
    assert not lines(unit, "ExecStop")
    assert not lines(unit, "ExecStopPost")


@pytest.mark.requirement("R3")
@pytest.mark.parametrize("unit", UNIT_FILES)
def test_no_unit_can_be_disabled(unit: str) -> None:
    assert "[Install]" not in TEXTS[unit]


@pytest.mark.requirement("R3")
def test_targets_want_the_units_without_being_asked() -> None:
    dropins = units.render_dropins()
    assert KILLSWITCH_UNIT in dropins["sysinit.target"]
    assert GUARD_UNIT in dropins["sysinit.target"]
    assert SERVICE_UNIT in dropins["multi-user.target"]
    assert SLEEP_UNIT in dropins["sleep.target"]
    assert SERVERS_TIMER in dropins["timers.target"]


@pytest.mark.requirement("R2")
def test_the_boot_lock_waits_for_nothing_and_everything_waits_for_it() -> None:
    assert lines(KILLSWITCH_UNIT, "DefaultDependencies") == ["no"]
    assert int(lines(KILLSWITCH_UNIT, "TimeoutStartSec")[0]) >= 300, "30 s kept a slow computer offline (tests/vm)"
    assert not lines(KILLSWITCH_UNIT, "After")
    assert not lines(KILLSWITCH_UNIT, "Requires")
    assert {"network-pre.target", "sysinit.target", *network_managers.UNITS} <= set(words(KILLSWITCH_UNIT, "Before"))
    assert "network-pre.target" in words(KILLSWITCH_UNIT, "Wants")
    # These would make it wait for file systems, which may need the network.
    for key in ("PrivateTmp", "StateDirectory", "RequiresMountsFor", "DynamicUser"):
        assert not lines(KILLSWITCH_UNIT, key)
        assert not lines(GUARD_UNIT, key)


@pytest.mark.requirement("R2")
def test_the_boot_lock_stays_at_shutdown() -> None:
    for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
        assert not lines(unit, "Conflicts")
        assert lines(unit, "RefuseManualStop") == ["yes"]
        assert lines(unit, "IgnoreOnIsolate") == ["yes"]


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("unit", network_managers.UNITS)
def test_without_the_boot_lock_no_network_manager_starts(unit: str) -> None:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd have capital letters
    parser.read_string(units.render_dropins()[unit])
    assert dict(parser["Unit"]) == {"Requires": KILLSWITCH_UNIT, "After": KILLSWITCH_UNIT}


@pytest.mark.requirement("R1", "R2")
def test_an_empty_file_is_no_lock_and_no_last_resort_although_nft_takes_it_for_rules() -> None:
    load, check = lines(KILLSWITCH_UNIT, "ExecStart")
    assert load.endswith(str(Layout().boot_rules))
    assert check == f"/usr/sbin/nft -c add rule inet {names.BASE_TABLE} output drop"
    (command,) = lines(KILLSWITCH_FAILED_UNIT, "ExecStart")
    assert f"{Layout().drop_rules} && {check}; then" in command


@pytest.mark.requirement("R1", "R2")
def test_a_boot_lock_that_does_not_load_ends_in_the_drop_rules_and_a_word_on_the_console() -> None:
    assert lines(KILLSWITCH_UNIT, "OnFailure") == [KILLSWITCH_FAILED_UNIT]
    (command,) = lines(KILLSWITCH_FAILED_UNIT, "ExecStart")
    assert str(Layout().drop_rules) in command
    assert lines(KILLSWITCH_FAILED_UNIT, "StandardOutput") == ["journal+console"]
    # What `status` and `diagnose` look for stays when the unit has ended, until the boot lock loads after all.
    mark = Layout().boot_lock_failure
    assert lines(KILLSWITCH_FAILED_UNIT, "RuntimeDirectory") == [mark.name]
    assert lines(KILLSWITCH_FAILED_UNIT, "RuntimeDirectoryPreserve") == ["yes"]
    assert lines(KILLSWITCH_UNIT, "ExecStartPost") == [f"-/bin/rm -rf {mark}"]


@pytest.mark.requirement("R3", "R6")
def test_every_kind_of_sleep_waits_for_the_unit_that_closes_but_not_for_ever_and_not_for_its_success() -> None:
    assert words(SLEEP_UNIT, "Before") == ["sleep.target"]
    assert (lines(SLEEP_UNIT, "Type"), lines(SLEEP_UNIT, "RemainAfterExit")) == (["oneshot"], ["yes"])
    # It stops when the sleep is over, which is how the service learns of that.
    assert lines(SLEEP_UNIT, "StopWhenUnneeded") == ["yes"]
    assert lines(SLEEP_UNIT, "DefaultDependencies") == ["no"]
    # Wanted, not required (systemd.unit(5)); and the limit is more than the script's own limits together.
    assert "Requires" not in units.render_dropins()["sleep.target"]
    limits = [int(seconds) for seconds in re.findall(r"timeout -s KILL (\d+)", units.render_sleep_script())]
    assert limits == [15, 10], "an answer took more than 2 s on a slow computer (tests/vm)"
    program, nft = limits
    assert program + 3 * nft < int(*lines(SLEEP_UNIT, "TimeoutStartSec"))
    assert program < int(*lines(SLEEP_UNIT, "TimeoutStopSec"))
    assert words(SLEEP_UNIT, "CapabilityBoundingSet") == ["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"]


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("unit", [*(unit for unit in UNIT_FILES if unit != KILLSWITCH_FAILED_UNIT)])
def test_a_unit_is_left_out_only_where_no_trace_of_an_installation_is_left(unit: str) -> None:
    conditions = lines(unit, "ConditionPathExists")
    assert len(conditions) == 2
    # The bar ("|") means that one true condition is enough.
    assert all(condition.startswith("|/") for condition in conditions)
    assert not re.search("^Condition(?!PathExists)", TEXTS[unit], re.MULTILINE)


@pytest.mark.requirement("B2")
def test_a_busy_machine_starves_what_keeps_the_lease_last_and_never_keeps_it_from_starting() -> None:
    (weight,) = lines(SERVICE_UNIT, "CPUWeight")
    assert 100 < int(weight) <= 10_000, "more than every other unit has (systemd.resource-control(5))"
    # A container may refuse each of these, and then the unit does not start at all (systemd.exec(5)).
    for key in ("Nice", "CPUSchedulingPolicy", "IOSchedulingClass"):
        assert not lines(SERVICE_UNIT, key)
    assert not lines(SERVICE_UNIT, "CPUQuota")


@pytest.mark.requirement("R2")
def test_the_daemon_is_started_again_for_ever_and_wants_the_lock_without_needing_it() -> None:
    assert lines(SERVICE_UNIT, "Restart") == ["always"]
    # What systemd counts as a clean end (systemd.service(5), SuccessExitStatus=) is not one for the holder of a guard.
    assert lines(GUARD_UNIT, "Restart") == ["on-failure"]
    assert set(words(GUARD_UNIT, "RestartForceExitStatus")) == {"0", "SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE"}
    for unit in (SERVICE_UNIT, GUARD_UNIT):
        assert lines(unit, "StartLimitIntervalSec") == ["0"]
    assert {KILLSWITCH_UNIT, GUARD_UNIT} <= set(words(SERVICE_UNIT, "Wants"))
    assert {KILLSWITCH_UNIT, GUARD_UNIT} <= set(words(SERVICE_UNIT, "After"))
    assert not lines(SERVICE_UNIT, "Requires")
    assert lines(SERVICE_UNIT, "WatchdogSec") == ["20"]


@pytest.mark.requirement("R3", "R19", "R24")
def test_a_newer_list_comes_through_the_tunnels_proxy_or_not_at_all_and_within_bounds() -> None:
    assert lines(SERVERS_UNIT, "ExecStart") == ["/usr/bin/psiphon-vpn servers refresh --if-due"]
    assert (lines(SERVERS_UNIT, "IPAddressDeny"), lines(SERVERS_UNIT, "IPAddressAllow")) == (["any"], ["127.0.0.1"])
    assert words(SERVERS_UNIT, "RestrictAddressFamilies") == ["AF_UNIX", "AF_INET"]
    assert "CAP_NET_ADMIN" not in words(SERVERS_UNIT, "CapabilityBoundingSet")
    assert lines(SERVERS_UNIT, "Type") == ["oneshot"]
    assert lines(SERVERS_UNIT, "TimeoutStartSec") == ["300"]
    assert not lines(SERVERS_UNIT, "Restart")
    # Nothing waits for this unit, and it waits for nothing.
    for unit in (SERVERS_UNIT, SERVERS_TIMER):
        for key in ("After", "Before", "Wants", "Requires"):
            assert not lines(unit, key)
    assert lines(SERVERS_TIMER, "RandomizedDelaySec") == ["1h"]
    assert not lines(SERVERS_TIMER, "WakeSystem")
