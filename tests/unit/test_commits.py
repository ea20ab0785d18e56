# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commits of other programs: which of them cannot have changed a rule, and whether each announcement was received."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.linux import commits as module
from psiphon_vpn.linux.commits import CommitLog, Commits
from psiphon_vpn.linux.netlink import HEADER, write_attribute
from psiphon_vpn.linux.nfnetlink import OWN_PREFIX, Generation, parse_generations
from psiphon_vpn.policy.own_tables import OWN_TABLES
from psiphon_vpn.run import run_async, was_started_here
from psiphon_vpn.service.culprit import describe_committer, is_contained

NEWTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, DELSETELEM, NEWGEN, NEWFLOWTABLE = 0, 3, 6, 9, 12, 14, 15, 22
ELEMENTS = {NEWSETELEM, DELSETELEM}


def message(kind: int, body: bytes, port: int = 77) -> bytes:
    payload = bytes(4) + body
    return HEADER.pack(HEADER.size + len(payload), 0x0A00 | kind, 0, 1, port) + payload


def about(kind: int, table: bytes) -> bytes:
    return message(kind, write_attribute(1, table + b"\0") + write_attribute(2, b"bans\0"))


def end(number: int) -> bytes:
    return message(NEWGEN, write_attribute(1, struct.pack(">I", number)) + write_attribute(2, struct.pack(">I", 5)))


def is_harmful(*messages: bytes) -> bool:
    """Whether a commit counts as harmful, announced in one message or in several."""
    found = set()
    for parts in ([b"".join(messages)], list(messages)):
        log = CommitLog()
        log.hear(Generation(8, 5, "f2b", frozenset({"f2b"})))
        for part in parts:
            for generation in parse_generations(part):
                log.hear(generation)
        found.add(not log.covers(8, 9))
    (harmful,) = found
    return harmful


@pytest.mark.requirement("B3")
def test_only_elements_of_other_programs_tables_are_harmless() -> None:
    for kind in range(40):
        if kind != NEWGEN:
            assert is_harmful(about(kind, b"f2b"), end(9)) == (kind not in ELEMENTS)
    for table in OWN_TABLES:
        assert table.name.startswith(OWN_PREFIX)
        assert is_harmful(about(NEWSETELEM, table.name.encode()), end(9))
    assert is_harmful(end(9)), "nothing is known of it"
    assert is_harmful(message(NEWSETELEM, write_attribute(2, b"f2b\0")), end(9))
    assert is_harmful(message(NEWSETELEM, b""), end(9))
    assert is_harmful(about(NEWSETELEM, b"f2b"), about(NEWRULE, b"f2b"), about(NEWSETELEM, b"f2b"), end(9))
    assert not is_harmful(about(NEWSETELEM, b"f2b"), about(DELSETELEM, b"other"), end(9))
    assert parse_generations(end(9))[0].port == 77


def commit(number: int, *, harmless: bool = True) -> Generation:
    return Generation(number, 5, "f2b", frozenset({"f2b"}), 77, harmful=not harmless)


def hear(log: CommitLog, *numbers: int) -> None:
    for number in numbers:
        log.hear(commit(number))


@pytest.mark.requirement("B3")
def test_a_generation_is_as_good_as_one_before_it_only_if_all_between_was_heard_and_harmless() -> None:
    log = CommitLog()
    hear(log, 10)
    assert not log.covers(9, 10), "the first that is heard may have begun before"
    hear(log, 11, 12)
    assert log.covers(10, 12)
    assert log.covers(11, 12)
    assert not log.covers(9, 12)
    assert not log.covers(12, 11)
    assert not log.covers(10, 13), "not announced yet"
    log.hear(commit(13, harmless=False))
    hear(log, 14)
    assert not log.covers(12, 14)
    assert log.covers(13, 14)
    hear(log, 16)
    assert not log.covers(14, 16), "one was not heard"


@pytest.mark.requirement("B3")
def test_a_reading_of_ours_is_whole_while_others_change_rules_of_their_own() -> None:
    log = CommitLog()
    hear(log, 10)
    log.hear(commit(11, harmless=False))
    assert log.covers(10, 11, ours_alone=True)
    assert not log.covers(10, 11)
    hear(log, 12)
    assert log.covers(10, 12, ours_alone=True)
    log.hear(replace(commit(0, harmless=False), ours=True))
    hear(log, 13)
    assert not log.covers(12, 13, ours_alone=True)
    hear(log, 14, 16)
    assert log.covers(13, 14, ours_alone=True) is False, "one was not heard"
    log.lose()
    log.drain()
    hear(log, 17)
    assert not log.covers(16, 17, ours_alone=True)


def test_what_touches_a_table_of_ours_or_one_that_is_not_known_is_ours() -> None:
    for kind in range(40):
        if kind != NEWGEN:
            assert not parse_generations(about(kind, b"f2b") + end(9))[0].ours
            for table in OWN_TABLES:
                assert parse_generations(about(kind, table.name.encode()) + end(9))[0].ours
            assert parse_generations(message(kind, b"") + end(9))[0].ours
    (first,) = parse_generations(about(NEWRULE, b"psiphon_filter"))
    assert first.ours


def test_one_part_that_is_not_harmless_makes_the_whole_commit_so() -> None:
    log = CommitLog()
    hear(log, 10)
    log.hear(commit(0, harmless=False))
    log.hear(commit(0))
    hear(log, 11)
    assert not log.covers(10, 11)
    hear(log, 12)
    assert log.covers(11, 12)


@pytest.mark.requirement("B3")
def test_after_a_loss_nothing_is_believed_before_the_first_commit_that_was_surely_heard_whole() -> None:
    log = CommitLog()
    hear(log, 10, 11)
    log.lose()
    hear(log, 12)  # it was queued before the loss
    log.hear(commit(0))  # so was the beginning of the next, whose middle was lost
    log.drain()
    hear(log, 13)
    assert not log.covers(12, 13)
    assert not log.covers(11, 13)
    hear(log, 14)
    assert log.covers(13, 14)
    log.drain()
    assert log.covers(13, 14), "reading all there is is no loss"


def test_the_numbers_begin_again_without_zero() -> None:
    log = CommitLog()
    hear(log, 0xFFFFFFFE, 0xFFFFFFFF, 1, 2)
    assert log.covers(0xFFFFFFFE, 2)
    assert not log.covers(2, 0xFFFFFFFE)


@pytest.mark.requirement("B3")
@given(
    st.lists(st.tuples(st.sampled_from(["harmless", "harmful", "lost", "unheard", "read all"])), max_size=40),
    st.integers(1, 2**32 - 1),
)
def test_whatever_happens_no_harmful_and_no_unheard_commit_is_ever_covered(
    events: list[tuple[str]], first: int
) -> None:
    log, number, bad = CommitLog(), first, [0]
    heard = 0
    count = 0
    for (event,) in events:
        if event in {"harmless", "harmful", "unheard"}:
            number = (number + 1) & 0xFFFFFFFF or 1
            count += 1
            if event != "harmless":
                bad.append(count)
            if event != "unheard":
                log.hear(commit(number, harmless=event == "harmless"))
                heard = count
        elif event == "lost":
            log.lose()
            bad.append(count + 1)
            number = (number + 1) & 0xFFFFFFFF or 1
            count += 1
        else:
            log.drain()
        for back in range(1, min(count, 12) + 1):
            verified = (number - back) & 0xFFFFFFFF
            if number > back and log.covers(verified, number):
                assert not any(count - back < one <= count for one in bad)
                assert heard == count


class FakeSocket:
    """Stands in for the monitor: returns its items, and raises those that are exceptions."""

    def __init__(self, *content: bytes | OSError) -> None:
        self.content = list(content)

    def recv(self, size: int) -> bytes:
        if not self.content:
            raise BlockingIOError
        item = self.content.pop(0)
        if isinstance(item, OSError):
            raise item
        return item


def make(monkeypatch: pytest.MonkeyPatch, *content: bytes | OSError) -> tuple[Commits, FakeSocket]:
    fake = FakeSocket(*content)
    monkeypatch.setattr(module, "open_generation_monitor", lambda: cast(Any, fake))
    return Commits(), fake


def test_what_is_read_to_know_something_is_reported_later_and_the_harmless_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commits, fake = make(monkeypatch, about(NEWRULE, b"f2b"), end(10), about(NEWSETELEM, b"f2b") + end(11))
    reported: list[bool] = []
    commits.call_when_untold(lambda: reported.append(True))
    assert commits.find_equal(10) == 11
    assert reported == [True]
    assert [item and item.number for item in commits.take()] == [0, 10]
    fake.content.append(about(NEWSETELEM, b"f2b") + end(12))
    assert commits.is_equal(10, 12)
    assert reported == [True]
    assert commits.take() == []
    assert commits.find_origin(12) == 10
    fake.content.append(about(NEWSETELEM, b"psiphon_filter") + end(13))
    assert not commits.is_equal(12, 13)
    assert commits.find_origin(13) == 13


def test_a_loss_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    commits, fake = make(monkeypatch, end(10), about(NEWSETELEM, b"f2b") + end(11), OSError(errno.ENOBUFS, "lost"))
    assert commits.find_equal(10) == 10
    assert commits.take()[-1] is None
    fake.content += [about(NEWSETELEM, b"f2b") + end(12), about(NEWSETELEM, b"f2b") + end(13)]
    assert commits.find_equal(11) == 11
    assert commits.find_equal(12) == 13


def test_in_a_container_a_process_id_of_the_host_is_called_one(tmp_path: Path) -> None:
    assert describe_committer("ufw", 4242, 7, contained=False) == "ufw (pid 4242)"
    assert describe_committer("ufw", 4242, 4_000_000_000, contained=True) == "ufw (pid 4242 on the host)"
    assert not is_contained(tmp_path / "none")
    assert is_contained(tmp_path)


def test_a_socket_that_got_a_number_of_the_kernels_choice_is_ours_only_while_a_command_runs(tmp_path: Path) -> None:
    chosen_by_kernel = 0xFFFFEFFF
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    end = os.open(pipe, os.O_RDWR)

    async def scenario() -> None:
        said = await run_async(["sh", "-c", "echo $$"])
        assert was_started_here(int(said.stdout))
        assert not was_started_here(chosen_by_kernel)
        command = asyncio.create_task(run_async(["head", "-c", "1", str(pipe)], timeout=60))
        while not was_started_here(chosen_by_kernel):
            await asyncio.sleep(0)
        assert not was_started_here(os.getpid())
        os.write(end, b"x")
        await command
        assert not was_started_here(chosen_by_kernel)

    try:
        asyncio.run(scenario())
    finally:
        os.close(end)
