# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every check notices what it looks for when that is broken, and no other check does."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.diagnose.breaks import BREAKS, HELD, Break, delete_frames, drop_in_sandbox, guard_lo_only
from tests.diagnose.breaks import kernel as break_kernel
from tests.diagnose.scene import (
    ASK,
    CORE_PID,
    ELF,
    IDENTITY,
    HealthyKernel,
    Recording,
    Scene,
    SceneSystem,
    find_troubles,
    make_installation,
    open_healthy_kernel,
    write,
)
from tests.policies import make_policy

from psiphon_lab.waiting import wait_until
from psiphon_vpn.diagnose.engine import run_check
from psiphon_vpn.diagnose.model import EXIT_OPEN, Result, Verdict, find_exit_code
from psiphon_vpn.diagnose.name_path import WAYS_OUT, Asked
from psiphon_vpn.diagnose.network import Network, read_features
from psiphon_vpn.diagnose.registry import CHECKS
from psiphon_vpn.diagnose.system import Answer, RealSystem
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_frame_guard
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.names import SCRATCH_TABLES
from psiphon_vpn.policy.own_tables import FRAMES
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.system import layout as places
from psiphon_vpn.system.layout import Layout

pytestmark = [pytest.mark.lab, pytest.mark.requirement("R15")]


@pytest.fixture(scope="module")
def recording() -> Recording:
    """A healthy kernel's recorded answers; the machine on which they are recorded must be found healthy."""
    return Recording()


@pytest.fixture
def scene(tmp_path: Path, recording: Recording) -> Scene:
    """A healthy machine with a recorded kernel."""
    layout = make_installation(tmp_path / "root")
    if not recording.answers:
        with open_healthy_kernel() as kernel:
            Scene(layout=layout, system=SceneSystem(recording), kernel=kernel).diagnose()
    return make_scene(tmp_path, recording, make=False)


def make_scene(tmp_path: Path, recording: Recording | None, *, make: bool = True) -> Scene:
    root = tmp_path / "root"
    layout = make_installation(root) if make else Layout(root=root)
    system = SceneSystem(recording)
    system.links[f"/proc/{CORE_PID}/exe"] = write(root / "memory" / "core", ELF)
    return Scene(layout=layout, system=system)


def test_a_healthy_machine_passes_every_check(scene: Scene) -> None:
    results = scene.diagnose()
    assert {name: result.reason for name, result in results.items() if result.verdict is not Verdict.OK} == {}
    assert find_exit_code(tuple(results.values())) == 0


def test_every_check_has_a_test_that_breaks_what_it_looks_at() -> None:
    assert set(BREAKS) == {check.id for check in CHECKS}
    assert len(CHECKS) >= 30


def judge(name: str, broken: Break, scene: Scene) -> None:
    broken.act(scene)
    results = scene.diagnose()
    reported = {trouble: results[trouble].reason for trouble in find_troubles(results)}
    assert set(reported) == {name, *broken.also}, reported
    assert results[name].reason
    assert results[name].next_step
    assert results[name].verdict in {Verdict.FAILED, Verdict.WARNING}
    assert (find_exit_code(tuple(results.values())) == EXIT_OPEN) == broken.opens


@pytest.mark.parametrize("name", [name for name, broken in BREAKS.items() if not broken.kernel])
def test_a_check_sees_what_is_broken_and_no_other_does(name: str, scene: Scene) -> None:
    judge(name, BREAKS[name], scene)


@pytest.mark.parametrize("name", [name for name, broken in BREAKS.items() if broken.kernel])
def test_a_check_sees_what_is_broken_in_a_real_kernel_and_no_other_does(name: str, tmp_path: Path) -> None:
    scene = make_scene(tmp_path, None)
    with open_healthy_kernel() as kernel:
        scene.kernel = kernel
        judge(name, BREAKS[name], scene)


@pytest.mark.requirement("R4")
def test_a_table_that_is_dormant_stops_nothing_and_is_not_called_a_lock(tmp_path: Path) -> None:
    def put_to_sleep(it: HealthyKernel) -> None:
        it.nft("add table inet psiphon_filter { flags dormant; }\n")
        it.release_guard()

    scene = make_scene(tmp_path, None)
    broken = break_kernel(put_to_sleep, "lock.base-text", *HELD, "lock.forwarded", "dns.wire", opens=True)
    with open_healthy_kernel() as scene.kernel:
        judge("lock.samples", broken, scene)


def test_a_machine_is_found_healthy_by_a_look_that_takes_longer_than_a_lease(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, None)

    def take_long(network: Network) -> Network:
        assert scene.kernel is not None
        before = scene.kernel.renewals
        wait_until(lambda: scene.kernel is not None and scene.kernel.renewals >= before + 3, "longer than a lease")
        return network

    scene.system.network = take_long
    with open_healthy_kernel() as scene.kernel:
        assert find_troubles(scene.diagnose()) == set()


def test_a_machine_is_found_healthy_whatever_loopback_is_called(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, None)
    with open_healthy_kernel(loopback="within") as scene.kernel:
        assert find_troubles(scene.diagnose()) == set()


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("name", ["lo", "within"])
def test_rules_that_open_for_a_name_that_loopback_has_or_had_are_found(name: str, tmp_path: Path) -> None:
    def open_for_name(it: HealthyKernel) -> None:
        it.nft(f'insert rule inet psiphon_filter output oifname "{name}" accept\n')
        it.nft(f'insert rule inet psiphon_filter forward iifname "{name}" accept\n')
        it.release_guard()
        it.host.set_sysctls({"ipv4/ip_forward": 1})

    scene = make_scene(tmp_path, None)
    broken = break_kernel(open_for_name, "lock.base-text", *HELD, "lock.forwarded", opens=True)
    with open_healthy_kernel(loopback="within") as scene.kernel:
        judge("lock.samples", broken, scene)


def test_the_dormant_copies_of_a_reading_are_nobody_elses_rules(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, None)
    with open_healthy_kernel() as scene.kernel:
        for name in SCRATCH_TABLES:
            scene.kernel.nft(build_base_table(make_policy(State.OPEN)).render(name=name, flags="dormant"))
        assert find_troubles(scene.diagnose()) == set()


def test_a_drop_in_beside_our_own_units_is_read_too(scene: Scene) -> None:
    judge("units.dropins", Break(act=drop_in_sandbox), scene)


def test_what_a_distribution_sets_for_every_service_is_no_trouble(scene: Scene) -> None:
    path = write(scene.layout.unit_dir / "service.d/10-timeout.conf", "[Service]\nTimeoutStopFailureMode=abort\n")
    shown = "/" + str(path.relative_to(scene.layout.root))
    for name in places.UNITS:
        scene.system.units[name]["DropInPaths"] = shown
    assert find_troubles(scene.diagnose()) == set()


def test_a_link_to_a_device_in_the_place_of_a_file_is_not_opened(scene: Scene) -> None:
    intent = scene.layout.state_dir / "intent"
    intent.unlink()
    intent.symlink_to("/dev/null")
    results = scene.diagnose()
    assert results["tunnel.intent"].verdict is Verdict.UNKNOWN
    assert "ordinary" in results["tunnel.intent"].reason


def test_without_nft_nothing_is_called_locked(scene: Scene) -> None:
    BREAKS["lock.readable"].act(scene)
    results = scene.diagnose()
    assert results["lock.samples"].verdict is Verdict.SKIPPED
    assert find_exit_code(tuple(results.values())) == EXIT_OPEN


def test_the_order_of_a_boot_before_the_installation_says_nothing(scene: Scene) -> None:
    BREAKS["units.boot"].act(scene)
    os.utime(scene.layout.install_journal, (scene.system.now - 60, scene.system.now - 60))
    assert scene.diagnose()["units.boot"].verdict is Verdict.SKIPPED


def test_a_program_that_runs_from_sealed_memory_can_be_compared() -> None:
    """Like the tunnel core: /proc/PID/exe leads to no path, but still has the content."""
    content = Path("/bin/sleep").read_bytes()
    descriptor = os.memfd_create("core", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, content)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with subprocess.Popen([f"/proc/self/fd/{descriptor}", "20"], pass_fds=(descriptor,)) as running:
            found = RealSystem().hash(Path(f"/proc/{running.pid}/exe"))
            running.kill()
    finally:
        os.close(descriptor)
    assert found == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("code", [3, None])
def test_where_no_name_resolves_the_next_step_fits_what_this_machine_asks(scene: Scene, code: int | None) -> None:
    scene.system.commands[ASK] = Answer(code=code)
    scene.system.units["systemd-resolved.service"]["ActiveState"] = "inactive"
    for text, asked in (("nameserver 127.0.0.1\n", Asked.LOCAL), ("nameserver 192.0.2.1\n", Asked.OUTSIDE)):
        write(scene.layout.root / "etc/resolv.conf", text)
        reported = scene.diagnose()["dns.programs"]
        assert (reported.verdict, reported.next_step) == (Verdict.FAILED, WAYS_OUT[asked])


def test_a_resolver_on_this_machine_may_be_asked_by_ipv6(scene: Scene) -> None:
    write(scene.layout.root / "etc/resolv.conf", "nameserver ::1\n")
    assert scene.diagnose()["dns.resolv-conf"].verdict is Verdict.OK


def test_a_file_that_takes_the_place_of_our_drop_in_is_named(scene: Scene) -> None:
    root, dropin = scene.layout.root, scene.layout.resolved_dropin
    (root / "etc/systemd/resolved.conf.d/psiphon-vpn.conf").unlink()
    write(dropin, "[Resolve]\nDNS=10.200.3.2\n")
    assert scene.diagnose()["dns.resolved-file"].verdict is Verdict.OK
    write(root / "etc/systemd/resolved.conf.d" / dropin.name, "")
    reported = scene.diagnose()["dns.resolved-file"]
    assert reported.verdict is Verdict.FAILED
    assert f"/etc/systemd/resolved.conf.d/{dropin.name}" in (reported.next_step or "")


@pytest.mark.requirement("R1")
def test_a_package_that_is_not_set_up_locks_nothing_and_is_said_to(scene: Scene) -> None:
    shutil.rmtree(scene.layout.rules_dir)
    scene.layout.install_journal.unlink(missing_ok=True)
    reported = scene.diagnose()
    assert reported["files.installed"].verdict is Verdict.FAILED
    assert reported["files.installed"].next_step == "Set it up: sudo psiphon-vpn setup"
    for name in ("files.owners", "units.killswitch", "units.wanted", "files.boot-rules"):
        assert reported[name].verdict is Verdict.SKIPPED


# -- the frame guard --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1", "B4")
def test_a_card_that_neither_guard_marks_for_is_cut_off_by_its_filter_and_named(tmp_path: Path) -> None:
    def take_both(it: HealthyKernel) -> None:
        guard_lo_only(it)
        delete_frames(it)

    scene = make_scene(tmp_path, None)
    with open_healthy_kernel() as scene.kernel:
        judge("lock.traffic-control", break_kernel(take_both, "lock.egress-wires", "lock.frame-guard"), scene)


PLUGGED_IN = "usb0"


def plug_in(kernel: HealthyKernel, name: str = PLUGGED_IN) -> None:
    kernel.ip("link", "add", name, "type", "veth", "peer", "name", "far1")


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("name", [PLUGGED_IN, "c*b"])
def test_a_card_that_was_plugged_in_since_is_named_and_the_step_helps_with_its_name_too(
    tmp_path: Path, name: str
) -> None:
    scene = make_scene(tmp_path, None)
    scene.system.cards = ("eth0", name)
    with open_healthy_kernel() as scene.kernel:
        plug_in(scene.kernel, name)
        reported = scene.diagnose()["lock.frame-guard"]
        assert reported.verdict is Verdict.FAILED
        assert f"it is not on {name}:" in reported.reason
        assert "systemctl reload-or-restart psiphon-guard" in (reported.next_step or "")
        assert ("Give c*b a name" in (reported.next_step or "")) is (name == "c*b")


@pytest.mark.requirement("B4")
def test_a_frame_guard_that_was_loaded_again_for_every_card_is_well(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, None)
    scene.system.cards = ("eth0", PLUGGED_IN)
    with open_healthy_kernel() as scene.kernel:
        plug_in(scene.kernel)
        scene.kernel.tell_holder(
            f"delete table {FRAMES}\n{build_frame_guard(IDENTITY, parse_names(*scene.system.cards)).render()}"
        )
        wait_until(lambda: PLUGGED_IN in scene.kernel.listing("ruleset"), "the guard")  # type: ignore[union-attr]
        reported = scene.diagnose()["lock.frame-guard"]
        assert (reported.verdict, reported.reason) == (Verdict.OK, f"on eth0, {PLUGGED_IN}")


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("owned", [True, False])
def test_a_frame_guard_of_another_text_or_that_anybody_can_flush_is_not_called_well(
    tmp_path: Path, *, owned: bool
) -> None:
    frames = build_frame_guard(IDENTITY, parse_names("eth0"))
    other = build_frame_guard(replace(IDENTITY, uid=64191), parse_names("eth0"))
    scene = make_scene(tmp_path, None)
    with open_healthy_kernel() as scene.kernel:
        if owned:
            scene.kernel.tell_holder(f"delete table {FRAMES}\n{other.render()}")
            wait_until(lambda: "skuid 64191" in _list_frames(scene.kernel), "the other text")
        else:
            delete_frames(scene.kernel)
            scene.kernel.nft(frames.render(flags=""))
        reported = scene.diagnose()["lock.frame-guard"]
        assert reported.verdict is Verdict.FAILED
        assert ("is not what" if owned else "no owner") in reported.reason


def _list_frames(kernel: HealthyKernel | None) -> str:
    assert kernel is not None
    return kernel.host.run(["nft", "list", "table", *FRAMES.address], check=False).stdout


@pytest.mark.requirement("B4", "R22")
@pytest.mark.parametrize(
    ("cards", "lacking", "reason"),
    [
        ((), None, "no card of its own"),
        (("eth0",), "egress_hook", "no egress hook"),
        (("eth0",), "owner_flag", "no owned tables"),
    ],
)
def test_where_there_is_nothing_that_it_could_guard_or_the_kernel_cannot_the_frame_guard_is_not_missed(
    tmp_path: Path, cards: tuple[str, ...], lacking: str | None, reason: str
) -> None:
    scene = make_scene(tmp_path, None)
    scene.system.cards = cards
    with open_healthy_kernel() as scene.kernel:
        delete_frames(scene.kernel)
        if lacking is not None:
            scene.system.features = replace(scene.kernel.host.call(read_features), **{lacking: False})
        reported = scene.diagnose()["lock.frame-guard"]
        assert reported.verdict is Verdict.SKIPPED
        assert reason in reported.reason


@pytest.mark.parametrize("state", ["LOCKED", "CONNECTING", "VERIFYING", "FAILED"])
def test_a_machine_that_is_to_be_connected_and_is_not_is_never_called_well(state: str) -> None:
    reported = judge_state(
        {"state": state, "intent": "connected", "reason": "no server answered", "next_step": "Wait."}
    )
    assert (reported.verdict, reported.next_step) == (Verdict.FAILED, "Wait.")
    assert "no server answered" in reported.reason
    assert judge_state({"state": "LOCKED", "intent": "stopped"}).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ({}, Verdict.SKIPPED),
        ({"servers": {"known": None}}, Verdict.SKIPPED),
        ({"servers": {"known": 0}}, Verdict.FAILED),
        ({"servers": {"known": 5}}, Verdict.OK),
        ({"servers": {"known": 5}, "region_wanted": "CA", "regions_available": []}, Verdict.OK),
        ({"servers": {"known": 5}, "region_wanted": "CA", "regions_available": ["DE"]}, Verdict.FAILED),
        ({"servers": {"known": 5}, "region_wanted": "CA", "regions_available": ["CA"]}, Verdict.OK),
    ],
)
def test_servers_that_cannot_be_used_are_reported(status: dict[str, object], verdict: Verdict) -> None:
    assert judge_status("tunnel.servers", status).verdict is verdict


def judge_state(status: dict[str, object]) -> Result:
    return judge_status("tunnel.state", status)


def judge_status(name: str, status: dict[str, object]) -> Result:
    """One check's outcome for a service with this status and nothing else."""
    service = SimpleNamespace(status=status)
    facts = SimpleNamespace(service=service)
    return run_check(next(check for check in CHECKS if check.id == name), facts)  # type: ignore[arg-type]
