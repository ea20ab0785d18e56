# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The question that shows whether the tunnel carries packets, asked of slow, lossy and hostile real resolvers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.kernel import Kernel
from tests.skipping import run_skipping

from psiphon_vpn.linux.resolver_probe import DNS_PORT, ask, build_question

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HERE = "127.0.0.1"
Answer = Callable[[bytes, int], tuple[float, bytes] | None]
"""Of a question and its number: after how many seconds which bytes come back; None for never."""


def respond(data: bytes) -> bytes:
    """The answer to this question."""
    return data[:2] + b"\x81\x80" + data[4:]


class Resolver(asyncio.DatagramProtocol):
    """Answers as the test says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        found = self._answer(data, self.asked)
        self.asked += 1
        if found is not None:
            asyncio.get_running_loop().call_later(found[0], self._transport.sendto, found[1], addr)


def question(kernel: Kernel, answer: Answer, *, seconds: float) -> tuple[bool, float, int]:
    """Whether an answer was accepted, after how many seconds, and how often the question was sent."""

    async def work() -> tuple[bool, float, int]:
        resolver = Resolver(answer)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: resolver, local_addr=(HERE, DNS_PORT))
        begin = loop.time()
        found = await ask(HERE, source=HERE, device="lo", seconds=seconds)
        took = loop.time() - begin
        transport.close()
        return found, took, resolver.asked

    kernel.ip("link", "set", "lo", "up")
    return kernel.host.call(lambda: run_skipping(work()))


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.4, 1.0, 2.5])
def test_a_tunnel_is_found_alive_however_long_the_way_is(kernel: Kernel, delay: float) -> None:
    """On a slow line an answer may take a second: an answer to an earlier copy of the question counts as well."""
    found, took, asked = question(kernel, lambda data, _number: (delay, respond(data)), seconds=4.0)
    assert found
    assert took == pytest.approx(delay)
    assert asked <= 9


def test_a_question_that_is_lost_is_asked_again_soon(kernel: Kernel) -> None:
    """The first one may come before the core's packet tunnel stands."""
    found, _took, asked = question(
        kernel, lambda data, number: (0.0, respond(data)) if number >= 1 else None, seconds=4.0
    )
    assert found
    assert asked >= 2


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    "rude",
    [
        lambda data: data,  # an echo of the question
        lambda data: bytes([data[0] ^ 1]) + respond(data)[1:],  # an answer to another question
        lambda data: respond(data)[:11],
        lambda _data: b"",
    ],
    ids=["echo", "another", "cut", "empty"],
)
def test_what_is_no_answer_to_this_question_is_none(kernel: Kernel, rude: Callable[[bytes], bytes]) -> None:
    found, took, asked = question(kernel, lambda data, _number: (0.0, rude(data)), seconds=0.7)
    assert not found
    assert took > 0.6
    assert 1 < asked <= 6


def test_silence_is_no_answer_and_is_asked_ever_more_slowly(kernel: Kernel) -> None:
    found, took, asked = question(kernel, lambda _data, _number: None, seconds=4.0)
    assert not found
    assert took > 3.9
    assert 4 <= asked <= 9


def test_a_question_tells_nothing_of_the_user() -> None:
    assert build_question(1)[12:] == b"\x00\x00\x02\x00\x01"


def test_a_port_nobody_listens_on_is_no_answer_and_no_hurry(kernel: Kernel) -> None:
    kernel.ip("link", "set", "lo", "up")

    def count_sent() -> int:
        """The number of datagrams that this machine has sent (RFC 4113, udpOutDatagrams)."""
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("OutDatagrams")])

    def work() -> tuple[bool, int]:
        before = count_sent()
        found = run_skipping(ask(HERE, source=HERE, device="lo", seconds=1.0))
        return found, count_sent() - before

    found, sent = kernel.host.call(work)
    assert not found
    assert 1 < sent <= 6


def test_an_address_that_is_not_ours_is_no_answer(kernel: Kernel) -> None:
    kernel.ip("link", "set", "lo", "up")
    assert not kernel.host.call(lambda: run_skipping(ask(HERE, source="192.0.2.1", device="lo", seconds=0.5)))
