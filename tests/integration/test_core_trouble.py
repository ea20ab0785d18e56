# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Trouble in the core and on the network: a typed reason with a next step, ever slower retries, always locked."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Figure
from tests.integration.testbed import Testbed, open_testbed
from tests.integration.troubles import count_tries, wait_reason, watch_states

from psiphon_lab import addresses as plan
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.standin_store import CRASHES, STORE_FILE
from psiphon_lab.waiting import wait_until
from psiphon_vpn.core.datastore import ASIDE, STORE_PARENT
from psiphon_vpn.service.model import SETTLE_SECONDS

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")


@pytest.fixture
def testbed(reopened_testbed: Testbed) -> Testbed:
    return reopened_testbed


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("target", [True, False], ids=["the one server", "any of the list"])
def test_a_region_that_no_server_is_in_is_named_as_the_reason(testbed: Testbed, target: bool) -> None:
    """With a target server the core ends; without one it waits for a list."""
    testbed.machine.write_config(target=target)
    text = testbed.machine.config_path.read_text()
    testbed.machine.write_config('egress_region = "ZZ"\n' + text)
    if not target:
        testbed.set_faults({"kind": "no_region"})
    testbed.machine.command("reload")
    status = wait_reason(testbed, "region")
    assert "psiphon-vpn region" in status["next_step"]
    assert (status["state"] in {"LOCKED", "CONNECTING"}, status["locked"]) == (True, True)
    testbed.machine.wait_for(lambda: testbed.read_status()["next_try"] is not None, "the next try")
    assert {testbed.read_status()["state"] for _ in range(20)} <= {"LOCKED", "CONNECTING"}
    assert testbed.read_status()["reason_code"] == "region"


def spoil_with_noise(store: Path) -> None:
    store.write_bytes(os.urandom(40000))


def spoil_by_truncation(store: Path) -> None:
    os.truncate(store, 3)


def spoil_so_that_it_crashes(store: Path) -> None:
    store.write_bytes(CRASHES)


def put_a_full_directory(store: Path) -> None:
    store.unlink()
    store.mkdir()
    (store / "something").touch()


def make_unreadable(store: Path) -> None:
    os.chown(store.parent, 0, 0)
    store.parent.chmod(0o700)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    ("spoil", "by_the_core"),
    [
        (spoil_with_noise, True),
        (spoil_by_truncation, True),
        (spoil_so_that_it_crashes, False),
        (put_a_full_directory, False),
        (make_unreadable, False),
    ],
)
def test_a_corrupt_data_store_is_reported_set_aside_once_and_the_tunnel_opens_again(
    testbed: Testbed, spoil: Callable[[Path], None], by_the_core: bool
) -> None:
    mark = testbed.world.mark()
    root = testbed.machine.state_dir / "core" / STORE_PARENT
    testbed.machine.command("stop")
    testbed.machine.wait_for(lambda: testbed.read_status()["core_pid"] is None, "the core's end")
    spoil(root / STORE_FILE)
    before = len(testbed.machine.read_log())
    testbed.machine.command("start")
    if not by_the_core:
        status = wait_reason(testbed, "datastore_broken")
        assert status["locked"] is True
        assert status["next_step"]
    testbed.machine.wait_state("OPEN")
    log = testbed.machine.read_log()[before:]
    assert log.count("begins with a new one" if by_the_core else "was set aside") in {1, 2}
    assert (root / ASIDE).exists() is not by_the_core
    assert str(root) not in log
    shutil.rmtree(root / ASIDE, ignore_errors=True)
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("kind", ["datastore_broken", "datastore_crash"])
def test_a_data_store_that_setting_aside_does_not_help_is_set_aside_once_and_never_in_a_loop(
    testbed: Testbed, kind: str
) -> None:
    testbed.set_faults({"kind": kind})
    before = len(testbed.machine.read_log())
    testbed.machine.command("restart")
    seen = watch_states(testbed, lambda: count_tries(testbed, before) >= 3, "the third try")
    assert "OPEN" not in seen
    assert testbed.machine.read_log()[before:].count("was set aside") == 1
    wait_reason(testbed, "datastore_broken")
    testbed.machine.wait_for(lambda: testbed.read_status()["next_try_what"] is not None, "the next try")


@pytest.mark.requirement("R1")
def test_a_core_that_hangs_while_it_connects_is_replaced_and_the_reason_is_reported() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.program = [str(HASTY), "QUIET_SECONDS=1.0"]
        testbed.set_faults({"kind": "hang"})
        testbed.machine.start_daemon()
        status = wait_reason(testbed, "core_hangs")
        assert status["locked"] is True
        testbed.set_faults()
        testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R1")
def test_a_sign_in_page_that_the_network_announced_is_the_reason_and_nothing_is_opened_for_it() -> None:
    with open_testbed(start=False) as testbed:
        links = testbed.world.directory / "links"
        links.mkdir()
        index = testbed.world.client.call(lambda: socket.if_nametoindex("eth0"))
        (links / str(index)).write_text("OPER_STATE=routable\nCAPTIVE_PORTAL=https://portal.example/\n")
        testbed.machine.program = [str(HASTY), f"SLOW_SECONDS=0.5,LINKS={links}"]
        testbed.set_faults({"kind": "disconnect"})
        testbed.machine.start_daemon()
        status = wait_reason(testbed, "captive_portal")
        assert "another network" in status["next_step"]
        assert "portal.example" not in testbed.machine.read_log()
        testbed.probe()
        testbed.set_faults()
        testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R1")
def test_a_network_without_any_sign_of_its_own_is_explained_after_a_while() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.program = [str(HASTY), "SLOW_SECONDS=0.5"]
        testbed.set_faults({"kind": "disconnect"})
        testbed.machine.start_daemon()
        status = wait_reason(testbed, "slow")
        assert "sign in" in status["next_step"]
        assert status["next_try"] is not None


@pytest.mark.requirement("R1")
def test_a_wrong_clock_is_distinguished_from_what_the_server_said_and_named_when_no_server_answers() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.program = [str(HASTY), "SLOW_SECONDS=0.5"]
        testbed.set_faults({"kind": "wrong_clock", "seconds": 7200})
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        assert -7210 < testbed.read_status()["clock_skew_seconds"] < -7190
        testbed.set_faults({"kind": "disconnect"})
        status = wait_reason(testbed, "clock")
        assert "timedatectl" in status["next_step"]


@pytest.mark.requirement("R1")
def test_status_and_journal_say_in_a_sentence_what_it_waits_for_since_when_and_what_it_tries_next_and_when(
    testbed: Testbed,
) -> None:
    testbed.set_faults({"kind": "datastore"})
    before = len(testbed.machine.read_log())
    asked = datetime.now(UTC)
    testbed.machine.command("restart")
    testbed.machine.wait_for(lambda: testbed.read_status()["next_try_what"] == "connecting again", "the next try")
    status = testbed.read_status()
    assert "another program uses the stored data" in status["reason"]
    assert "any other copy" in status["next_step"]
    since, next_try = (datetime.fromisoformat(status[name]) for name in ("since", "next_try"))
    assert asked <= since <= datetime.now(UTC)
    assert since < next_try < since + timedelta(seconds=10)
    log = testbed.machine.read_log()[before:]
    assert re.search(r"-> LOCKED: datastore .*: another program uses the stored data of the tunnel program\n", log)
    assert re.search(r"-> LOCKED: datastore .*\n.*next: connecting again, at 20\d\d-\d\d-\d\dT\d\d:\d\d", log), log


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"kind": "exit", "code": 0}, "core_exited"),
        ({"kind": "exit", "code": 2}, "core_exited"),
        ({"kind": "datastore"}, "datastore"),
        ({"kind": "signal", "number": 11}, "core_exited"),
    ],
    ids=str,
)
def test_a_core_that_ends_at_once_every_time_is_not_retried_in_a_tight_loop(
    testbed: Testbed, fault: dict[str, Any], reason: str
) -> None:
    testbed.set_faults(fault)
    # Stop first: a retry that was due before the test must not count.
    testbed.machine.command("stop")
    before, begin = len(testbed.machine.read_log()), time.monotonic()
    testbed.machine.command("start")
    seen = watch_states(testbed, lambda: count_tries(testbed, before) >= 4, "the fourth try")
    # Retries after 0.5, 1 and 2 s, each up to a fifth longer.
    assert time.monotonic() - begin >= 3.5, "the pauses between"
    log = testbed.machine.read_log()[before:]
    assert "OPEN" not in seen
    assert len(log.splitlines()) < 30
    wait_reason(testbed, reason)
    # While an attempt begins, no next one is announced.
    testbed.machine.wait_for(lambda: testbed.read_status()["next_try"] is not None, "the next try")
    assert testbed.read_status()["locked"] is True


@pytest.mark.requirement("R1", "R6")
def test_a_core_that_dies_right_after_each_opening_is_replaced_ever_more_slowly(testbed: Testbed) -> None:
    before = len(testbed.machine.read_log())
    killed: dict[int, float] = {}

    def kill_what_opened() -> bool:
        status = testbed.read_status()
        pid = status["core_pid"]
        if status["state"] == "OPEN" and pid is not None and pid not in killed:
            killed[pid] = time.monotonic()
            os.kill(pid, 9)
        return len(killed) == 8

    testbed.machine.wait_for(kill_what_opened, "eight openings")
    log = testbed.machine.read_log()[before:]
    # Five retries at once, then after 0.5, 1 and 2 s.
    times = list(killed.values())
    assert times[-1] - times[4] >= 1.5, killed
    assert len(log.splitlines()) < 120
    testbed.machine.wait_state("OPEN")


@pytest.mark.requirement("R6")
def test_an_uplink_that_flaps_is_opened_on_only_when_it_has_held(testbed: Testbed) -> None:
    world = testbed.world
    mark = world.mark()
    seen: list[dict[str, Any]] = []
    ups: list[datetime] = []

    def flap() -> bool:
        world.set_carrier(plan.LAN_A, up=False)
        ups.append(datetime.now(UTC))
        world.set_carrier(plan.LAN_A, up=True)
        seen.append(testbed.read_status())  # not the log: it leaves out lines when so much happens
        return bool(testbed.read_status()["reason_code"] == "unstable")

    wait_until(flap, "a network that is called unstable", pause=0.25)
    first = len(seen)
    wait_until(lambda: flap() and len(seen) >= first + 6, "that for a while", pause=0.25)
    since = {datetime.fromisoformat(status["since"]) for status in seen if status["state"] == "OPEN"}
    for opened in (moment for moment in since if moment > ups[first]):
        held = opened - max(up for up in ups if up <= opened)
        assert held.total_seconds() >= SETTLE_SECONDS - 0.001, "opened before the network had held"
    world.disconnect_uplink(plan.LAN_A)
    world.connect_uplink(plan.LAN_A)
    testbed.machine.wait_state("OPEN")
    # A core that ends during its handshake leaves frames of a connection that its server did not record.
    leaks = find_leaks(world.frames_since(mark), world_evidence(testbed.server.read_flows()))
    assert [leak.text for leak in leaks if f" > {plan.SERVER4}:" not in leak.text] == []


def talk_until_refused() -> float:
    """Send datagrams that nobody answers; returns the seconds until they were refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.settimeout(0)

        def is_refused() -> bool:
            try:
                out.sendto(b"anybody", (plan.INTERNET4, 7))
            except BlockingIOError:
                return False  # the socket is full because the tunnel reads nothing: it is not closed yet
            except OSError:
                return True
            return False

        return wait_until(is_refused, "datagrams that are refused", pause=0.1)


@pytest.mark.requirement("R1")
def test_a_tunnel_that_swallows_traffic_is_noticed(testbed: Testbed, figure: Figure) -> None:
    testbed.machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page")
    testbed.set_faults({"kind": "blackhole"})
    # Two looks half a second apart, and 3 s of silence; the regular question alone would take up to 19 s.
    figure("a tunnel that swallows everything to its closing, s", testbed.world.client.call(talk_until_refused))
    assert testbed.read_status()["state"] != "OPEN"


@pytest.mark.requirement("R1")
def test_a_core_that_hangs_while_it_is_open_is_noticed_closed_for_and_replaced(
    testbed: Testbed, figure: Figure
) -> None:
    testbed.machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page")
    hung = testbed.read_status()["core_pid"]
    os.kill(hung, signal.SIGSTOP)
    # The next core finds no server yet: a service that opens again within a tenth of a second would be seen open only.
    testbed.set_faults({"kind": "no_region"})
    # Noticed by the queue of a device that nobody reads; the regular question alone would take up to 19 s.
    figure("a core that hangs to its closing, s", testbed.world.client.call(talk_until_refused))
    assert testbed.read_status()["state"] != "OPEN"
    testbed.set_faults()
    reopened = testbed.machine.wait_state("OPEN")
    assert reopened["core_pid"] not in {None, hung}
    assert not Path(f"/proc/{hung}").exists()
    testbed.machine.wait_for(lambda: testbed.page() == plan.SERVER4, "a page")
