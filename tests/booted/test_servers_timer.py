# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The timer that refreshes the server list, and the log, with real systemd and journald."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.booted.conftest import scenario
from tests.booted.newcomer import REAL, fetch_page, start

from psiphon_lab import addresses as plan
from psiphon_lab.booted.session import RealLike
from psiphon_lab.booted.terminal import COLUMNS, Terminal
from psiphon_lab.judge import judge_frames
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.waiting import wait_until
from psiphon_vpn.servers.record import RECORD_NAME
from psiphon_vpn.servers.refresh import DUE_AGE
from psiphon_vpn.system.layout import SERVERS_TIMER, SERVERS_UNIT, Layout

SOON = """
[Timer]
OnActiveSec=
OnActiveSec=1s
RandomizedDelaySec=0
AccuracySec=1ms
"""
"""The empty value removes all moments of the installed unit (systemd.timer(5))."""
CAME = "A newer server list was fetched, and is in use."
FAILED = "No newer server list was fetched"


def read_record(real_like: RealLike) -> dict[str, object]:
    """The record of the list in use."""
    shown = real_like.session.computer.run(["cat", Layout().servers_dir / "current" / RECORD_NAME]).stdout
    return dict(json.loads(shown))


def make_old(real_like: RealLike) -> None:
    """Make the list in use old enough for a refresh."""
    old = (datetime.now(UTC) - 2 * DUE_AGE).isoformat()
    text = json.dumps({**read_record(real_like), "fetched_at": old})
    real_like.session.computer.run(["tee", Layout().servers_dir / "current" / RECORD_NAME], input=text)


def let_it_fire(real_like: RealLike) -> str:
    """Restart the timer and wait until its run has ended; returns the run's result."""
    computer = real_like.session.computer
    # A timer that fires while its unit still runs starts no new run.
    assert computer.show(SERVERS_UNIT, "ActiveState")["ActiveState"] in {"inactive", "failed"}
    before = computer.show(SERVERS_UNIT, "InvocationID").get("InvocationID")
    computer.run(["systemctl", "restart", SERVERS_TIMER])

    def has_run() -> bool:
        shown = computer.show(SERVERS_UNIT, "InvocationID", "ActiveState")
        return shown.get("InvocationID") != before and shown["ActiveState"] in {"inactive", "failed"}

    wait_until(has_run, "the end of a run of the timer's service", timeout=120, pause=0.1)
    return computer.show(SERVERS_UNIT, "Result")["Result"]


def assert_waits(real_like: RealLike) -> None:
    """The timer is active, and has a next time."""
    shown = real_like.session.computer.show(SERVERS_TIMER, "SubState", "NextElapseUSecMonotonic")
    assert shown["SubState"] == "waiting"
    assert shown["NextElapseUSecMonotonic"] not in {"", "infinity"}


@pytest.mark.requirement("R2", "R5", "R11")
@pytest.mark.parametrize(("tree", "real"), [("debian13", "stand-ins"), *REAL], indirect=True)
def test_the_timer_refreshes_the_list_through_the_tunnel_alone_and_the_log_tells_it(
    tree: Path, wheels: Path, real: RealPrograms | None
) -> None:
    with start(tree, wheels, real) as real_like:
        session, internet = real_like.session, real_like.internet
        computer, service, lists = session.computer, session.service, internet.list_host
        internet.publish("NL", "DE")
        mark = session.world.mark()
        service.run_setup("install", "--yes", "--yes-cut-remote-sessions", "--download")
        service.wait_state("OPEN")
        # The positive control: the list fetched in the open, before the lock, is a leak for the judge of what follows.
        seen = [verdict.text for verdict in judge_frames(session.world.frames_since(mark), session.judge_by())
                if verdict.is_leak]  # fmt: skip
        assert any(plan.LIST_HOST4 in text or plan.LIST_HOST6 in text for text in seen), seen[:10]
        assert_waits(real_like)

        # The timer is stopped for this: systemd would read the new time of a waiting timer when it has long passed.
        computer.run(["systemctl", "stop", SERVERS_TIMER])
        dropin = computer.files / f"etc/systemd/system/{SERVERS_TIMER}.d/soon.conf"
        dropin.parent.mkdir()
        dropin.write_text(SOON)
        computer.run(["systemctl", "daemon-reload"])
        everybody = [server.place.region for server in internet.servers.values()]
        newest = internet.publish(*everybody)
        asked = len(lists.read_record())
        with (
            Terminal(computer.inside, [Layout().command, "log", "--follow"]) as terminal,
            scenario(session, "the timer refreshes the list"),
        ):
            terminal.wait_for("connected")  # it has begun
            since = time.time()
            assert let_it_fire(real_like) == "success"
            assert len(lists.read_record()) == asked, "a list that is not old is not asked for"
            make_old(real_like)
            assert let_it_fire(real_like) == "success"
            assert read_record(real_like)["entries"] == len(everybody)
            terminal.wait_for(CAME)
            requests = lists.read_record()[asked:]
            assert requests
            places = [server.place for server in internet.servers.values()]
            assert {request["client"] for request in requests} <= {
                address for place in places for address in (place.address4, place.address6)
            }
            assert not session.list_outside_queries(since)
            assert fetch_page(real_like) in internet.servers

            # Without its host, the list in use stays, and the log says why.
            lists.stop()
            make_old(real_like)
            assert let_it_fire(real_like) != "success"
            terminal.wait_for(FAILED)
            assert (computer.files / str(Layout().servers_dir).lstrip("/") / "current/list").read_bytes() == newest
        assert not [line for line in terminal.find_lines() if len(line) > COLUMNS], terminal.shown
        reported = service.command("log").stdout
        assert CAME in " ".join(reported.split())
        assert FAILED in " ".join(reported.split())
        # The log leaves out the run that had nothing to do.
        assert reported.count(SERVERS_UNIT) < 3, reported

        dropin.unlink()
        computer.reboot()
        service.wait_state("OPEN")
        assert_waits(real_like)
