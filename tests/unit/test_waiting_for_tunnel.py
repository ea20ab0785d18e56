# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`start --wait` and the end of a set-up: when the wait for the tunnel ends, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.cli.waiting import LASTING_SECONDS, describe_end_of_set_up, follow
from psiphon_vpn.client import Status
from psiphon_vpn.errors import DaemonDownError, UserError

CONNECTING: Status = {"state": "CONNECTING", "reason_code": "connecting", "reason": "looking", "lasting": False}
REGION: Status = {"state": "CONNECTING", "reason_code": "region", "reason": "no server there", "lasting": True}
OPEN: Status = {"state": "OPEN", "reason_code": "verified", "reason": "open", "lasting": False}
FAILED: Status = {"state": "FAILED", "reason_code": "bad_config", "reason": "unusable", "lasting": True}


def wait(*statuses: Status, seconds: float = 1000) -> tuple[int, list[str]]:
    """The exit code and the printed lines, with one status each second."""
    reported: list[str] = []
    clock = iter(range(10_000))
    _status, code = follow(iter(statuses), seconds, clock=lambda: float(next(clock)), tell=reported.append)
    return code, reported


def test_an_open_tunnel_ends_the_waiting_with_success_and_each_reason_is_reported_once() -> None:
    assert wait(CONNECTING, CONNECTING, REGION, CONNECTING, OPEN) == (0, ["looking", "no server there", "looking"])


def test_a_reason_that_stays_and_needs_a_person_ends_the_waiting() -> None:
    assert wait(CONNECTING, *[REGION] * (int(LASTING_SECONDS) + 1))[0] == 1
    assert wait(*[REGION, CONNECTING] * 20, OPEN)[0] == 0, "the reason goes away again"


def test_a_configuration_that_is_not_usable_ends_it_at_once() -> None:
    assert wait(CONNECTING, FAILED, OPEN)[0] == 1


def test_it_waits_no_longer_than_asked() -> None:
    assert wait(*[CONNECTING] * 100, OPEN, seconds=30)[0] == 75


@given(st.lists(st.sampled_from([CONNECTING, REGION, FAILED, OPEN]), min_size=1, max_size=60), st.integers(2, 40))
def test_it_never_reports_success_without_an_open_tunnel_nor_failure_after_one(
    statuses: list[Status], seconds: int
) -> None:
    code, _reported = wait(*statuses, seconds=seconds)
    assert code in {0, 1, 75}
    seen = statuses[:seconds]
    if code == 0:
        assert OPEN in seen
    if code == 75:
        assert OPEN not in seen


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\nb"])
def test_what_the_daemon_says_cannot_steer_the_terminal(text: str) -> None:
    _code, reported = wait(CONNECTING | {"reason": text}, OPEN)
    assert reported[0].isprintable()


class Daemon:
    """A daemon and its clock: each connection to it behaves as the next item says."""

    def __init__(self, *lives: list[Status] | UserError) -> None:
        self._lives = iter(lives)
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def watch(self) -> Iterator[Status]:
        life = next(self._lives, DOWN)
        if isinstance(life, UserError):
            raise life
        for status in life:
            yield status
            self.now += 1
        raise DOWN

    def tell(self) -> str:
        return describe_end_of_set_up(self.watch, clock=self.clock, sleep=self.sleep, seconds=30)


DOWN = DaemonDownError("nobody answers")


def test_a_set_up_ends_by_saying_where_one_appears() -> None:
    assert Daemon([CONNECTING, OPEN | {"region": "NL"}]).tell() == (
        "Connected: you appear on the internet in NL (Netherlands)."
    )
    assert Daemon([OPEN | {"region": None}]).tell() == "Connected."


def test_it_waits_for_a_daemon_that_begins_or_begins_again() -> None:
    assert Daemon(DOWN, DOWN, [CONNECTING], DOWN, [CONNECTING, OPEN | {"region": "NL"}]).tell().startswith("Connected:")


def test_it_ends_by_the_reason_and_a_next_step() -> None:
    lasting = REGION | {"next_step": "Choose another: sudo psiphon-vpn region"}
    assert Daemon([lasting] * 20).tell() == "Not connected: no server there. Choose another: sudo psiphon-vpn region"
    reported = Daemon([CONNECTING] * 60).tell()
    assert reported == (
        "Not connected yet: looking. The service goes on by itself; to see how: psiphon-vpn status --watch"
    )


@pytest.mark.parametrize("error", [DOWN, UserError("It was refused", "only members may", "Use sudo.")])
def test_a_daemon_that_does_not_answer_is_said_and_is_no_failure(error: UserError) -> None:
    daemon = Daemon(*[error] * 60)
    assert daemon.tell() == str(error)
    assert daemon.now <= 30


@given(st.lists(st.sampled_from([CONNECTING, REGION, FAILED, OPEN, {}]), max_size=60), st.integers(0, 40))
def test_a_set_up_says_connected_only_with_an_open_tunnel_and_waits_no_longer_than_it_may(
    statuses: list[Status], downs: int
) -> None:
    daemon = Daemon(*[DOWN] * downs, statuses)
    reported = daemon.tell()
    assert reported.isprintable()
    assert reported.startswith(("Connected", "Not connected", "Cannot reach"))
    assert not reported.startswith("Connected") or OPEN in statuses
    assert daemon.now <= 31
