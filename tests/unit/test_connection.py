# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the status says about the tunnel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.core import events as notices
from psiphon_vpn.service.connection import RATE_SECONDS, Connection


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_connection_is_distinguished_from_its_tunnel_on_and_ends_with_it() -> None:
    clock = Clock()
    connection = Connection(clock)
    assert connection.describe() is None
    # The server's limits come with its handshake, before the tunnel is reported.
    for notice in (notices.ConnectedServer("DE", "OSSH"), notices.TrafficRateLimits(0, 7), notices.Tunnels(1)):
        connection.hear(notice)
    clock.now += 61
    connection.hear(notices.Tunnels(1))
    reported = connection.describe()
    assert reported is not None
    assert (reported["protocol"], reported["seconds"], reported["limit_up"], reported["limit_down"]) == (
        "OSSH",
        61,
        None,
        7,
    )
    connection.hear(notices.Tunnels(0))
    assert connection.describe() is None
    connection.hear(notices.Tunnels(1))
    reported = connection.describe()
    assert reported is not None
    assert (reported["protocol"], reported["seconds"], reported["limit_down"], reported["sent"]) == (None, 0, None, 0)


def test_a_rate_is_of_the_last_seconds_and_goes_to_zero_in_silence() -> None:
    clock = Clock()
    connection = Connection(clock)
    connection.hear(notices.Tunnels(1))
    for _ in range(20):
        clock.now += 1
        connection.hear(notices.BytesTransferred(100, 1000))
    reported = connection.describe()
    assert reported is not None
    assert (reported["sent"], reported["received"]) == (2000, 20000)
    assert 100 <= int(str(reported["rate_up"])) <= 120
    clock.now += RATE_SECONDS + 1
    reported = connection.describe()
    assert reported is not None
    assert (reported["sent"], reported["rate_up"], reported["rate_down"]) == (2000, 0, 0)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2**40), st.integers(0, 2**40)), max_size=30))
def test_sums_are_exact_and_no_rate_is_above_what_passed(passed: list[tuple[float, int, int]]) -> None:
    clock = Clock()
    connection = Connection(clock)
    connection.hear(notices.Tunnels(1))
    for pause, sent, received in passed:
        clock.now += pause
        connection.hear(notices.BytesTransferred(sent, received))
    reported = connection.describe()
    assert reported is not None
    assert reported["sent"] == sum(sent for _, sent, _ in passed)
    assert reported["received"] == sum(received for _, _, received in passed)
    assert 0 <= int(str(reported["rate_up"])) <= int(str(reported["sent"]))
