# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What this kernel can do: a mechanism is missing only if nft refuses it, never because nft was disturbed."""

import asyncio
import errno
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux import disturbance, features, scratch
from psiphon_vpn.linux.disturbance import ATTEMPTS
from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.run import CommandError

Done = subprocess.CompletedProcess[str]
OURS = "chain of_0 {"
EVERYTHING = (
    f"{OURS} hook output timeout 1m type route hook egress mark set reject with tcp reset admin-prohibited dnat ip to "
    "fib daddr type rt ip nexthop rt ip6 nexthop oifkind flags owner"
)


def _fail(argv: Sequence[str], code: int | None, said: str = "", cause: OSError | None = None) -> CommandError:
    error = CommandError(argv, said or "it failed", returncode=code, stderr=said)
    error.__cause__ = cause
    return error


DISTURBANCES: dict[str, Callable[[Sequence[str]], CommandError]] = {
    "too slow": lambda argv: _fail(argv, None),
    "killed": lambda argv: _fail(argv, -9),
    "no process": lambda argv: _fail(argv, None, cause=OSError(errno.EAGAIN, "again")),
    "busy": lambda argv: _fail(argv, 1, f"Error: Could not process rule: {os.strerror(errno.EBUSY)}"),
    "memory": lambda argv: _fail(argv, 1, f"netlink: Error: {os.strerror(errno.ENOMEM)}"),
}


class Nft:
    """Accepts and lists everything, except where the plan for a call says otherwise."""

    def __init__(self, plan: Iterator[Callable[[Sequence[str]], CommandError] | None]) -> None:
        self._plan = plan

    async def __call__(self, argv: Sequence[str], *, input: str | None = None) -> Done:
        disturbance = next(self._plan, None)
        if disturbance is not None:
            raise disturbance(argv)
        return subprocess.CompletedProcess(list(argv), 0, EVERYTHING, "")


async def _accept() -> bool:
    return True


def _probe(
    monkeypatch: pytest.MonkeyPatch, nft: object, can_filter: Callable[[], Awaitable[bool]] = _accept
) -> Features:
    monkeypatch.setattr(scratch, "run_async", nft)
    monkeypatch.setattr(scratch, "token_hex", lambda size: "0")
    monkeypatch.setattr(features, "can_filter", can_filter)
    monkeypatch.setattr(disturbance, "PAUSE_SECONDS", 0)
    return asyncio.run(probe_features())


@given(
    st.lists(st.sampled_from([None, *DISTURBANCES.values()]), max_size=80).filter(
        # Fewer disturbances in a row than attempts; each attempt takes up to three calls.
        lambda plan: sum(call is not None for call in plan) < ATTEMPTS
    )
)
def test_whatever_disturbs_nft_no_mechanism_is_taken_for_missing(
    plan: list[Callable[[Sequence[str]], CommandError] | None],
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = _probe(monkeypatch, Nft(iter(plan)))
    assert set(found.missing) <= {"tun"}


@pytest.mark.parametrize("disturbance", DISTURBANCES.values(), ids=DISTURBANCES)
def test_an_nft_that_is_always_disturbed_shows_nothing_and_is_said_to(
    monkeypatch: pytest.MonkeyPatch, disturbance: Callable[[Sequence[str]], CommandError]
) -> None:
    with pytest.raises(CommandError):
        _probe(monkeypatch, Nft(disturbance for _call in range(10_000)))


def test_another_program_that_flushes_all_rules_makes_no_mechanism_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = iter(range(4))

    async def nft(argv: Sequence[str], *, input: str | None = None) -> Done:
        if argv[1] == "list":
            with suppress(StopIteration):
                next(flushes)
                raise _fail(argv, 1, f"Error: {os.strerror(errno.ENOENT)}")
        return subprocess.CompletedProcess(list(argv), 0, EVERYTHING, "")

    assert set(_probe(monkeypatch, nft).missing) <= {"tun"}


@pytest.mark.parametrize("listing", ["", "chain c {", EVERYTHING.replace(OURS, "chain of_1 {")])
def test_a_table_that_another_process_loaded_under_the_same_name_says_nothing(
    monkeypatch: pytest.MonkeyPatch, listing: str
) -> None:
    def nft(replaced: int) -> Callable[..., Awaitable[Done]]:
        left = iter(range(replaced))

        async def run(argv: Sequence[str], *, input: str | None = None) -> Done:
            is_replaced = argv[1] == "list" and next(left, None) is not None
            return subprocess.CompletedProcess(list(argv), 0, listing if is_replaced else EVERYTHING, "")

        return run

    assert set(_probe(monkeypatch, nft(ATTEMPTS - 1)).missing) <= {"tun"}
    with pytest.raises(CommandError, match="another process"):
        _probe(monkeypatch, nft(10_000))


@pytest.mark.parametrize("cause", [errno.ENOENT, errno.EACCES])
def test_without_nft_there_is_no_nftables(monkeypatch: pytest.MonkeyPatch, cause: int) -> None:
    async def nft(argv: Sequence[str], *, input: str | None = None) -> Done:
        raise _fail(argv, None, cause=OSError(cause, os.strerror(cause)))

    assert not _probe(monkeypatch, nft).nftables


def test_what_nft_refuses_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nft(argv: Sequence[str], *, input: str | None = None) -> Done:
        if input is not None and "egress" in input:
            raise _fail(argv, 1, "Error: syntax error, unexpected string, expecting hook")
        return subprocess.CompletedProcess(list(argv), 0, EVERYTHING, "")

    found = _probe(monkeypatch, nft)
    assert not found.egress_hook
    assert found.nftables


def test_an_interactive_nft_that_was_disturbed_says_so_with_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbances = iter(range(2))

    async def nft(argv: Sequence[str], *, input: str | None = None) -> Done:
        if argv == ["nft", "-i"]:
            with suppress(StopIteration):
                next(disturbances)
                return subprocess.CompletedProcess(list(argv), 0, "", f"Error: {os.strerror(errno.EBUSY)}")
        return subprocess.CompletedProcess(list(argv), 0, EVERYTHING, "")

    assert _probe(monkeypatch, nft).owner_flag


def test_traffic_control_that_was_disturbed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbances = iter([OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))] * (ATTEMPTS - 1))

    async def can_filter() -> bool:
        if (disturbance := next(disturbances, None)) is not None:
            raise disturbance
        return True

    assert _probe(monkeypatch, Nft(iter(())), can_filter).traffic_filters


def test_traffic_control_that_is_always_disturbed_shows_nothing_and_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def can_filter() -> bool:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with pytest.raises(CommandError, match=os.strerror(errno.ENOBUFS)):
        _probe(monkeypatch, Nft(iter(())), can_filter)
