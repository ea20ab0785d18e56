# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each way to censor stops what it is for, nothing else, and only while it is switched on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from psiphon_lab import addresses as plan
from psiphon_lab.internet import Internet, open_internet
from psiphon_lab.namespace import Host
from psiphon_lab.provider_censor import (
    AfterBytes,
    ByAddress,
    ByPort,
    ByProtocol,
    ByReset,
    ByServerName,
    Censor,
    PoisonedNames,
    ProviderCensor,
    Throttle,
)
from psiphon_lab.world import World

pytestmark = pytest.mark.lab

# Makes requests as the neighbour, who has no service: a page, an echo, a name, the list. Prints each result as a word.
ASK = """
import contextlib, socket, ssl, sys, threading, time
from psiphon_lab.dns_message import encode_query, read_answers
what, target, port, word = sys.argv[1:5]
def send(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)
try:
    if what == "name":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(float(word.partition(" ")[2] or 5)); sock.connect((target, int(port)))
        sock.send(encode_query(7, word.partition(" ")[0], 1))
        print(",".join(read_answers(sock.recv(4096))[2])); sys.exit()
    sock = socket.create_connection((target, int(port)), timeout=3)
    if what == "page":
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print("page" if b"200 OK" in sock.recv(4096) else "nothing")
    elif what == "echo":
        sent = bytes([128]) * int(word); got = 0
        threading.Thread(target=send, args=(sock, sent), daemon=True).start()
        begin = time.monotonic()
        while got < len(sent):
            data = sock.recv(65536)
            if not data: break
            got += len(data)
        print("echo" if got == len(sent) else f"{got} bytes"); print(time.monotonic() - begin)
    else:
        context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(sock, server_hostname=word) as secure:
            secure.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            print("tls" if secure.recv(4096) else "nothing")
except TimeoutError:
    print("silence")
except ConnectionError:
    print("reset")
except ssl.SSLError:
    print("reset")
"""


def ask(host: Host, what: str, target: str, port: int, word: str = "1") -> list[str]:
    import sys

    return host.run([sys.executable, "-c", ASK, what, target, str(port), word]).stdout.split()


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with World(captures=False) as world, open_internet(world) as made:
        made.publish("NL", "DE")
        yield made


@dataclasses.dataclass(frozen=True)
class Case:
    """A censor, what it stops, how that looks, and what it lets pass."""

    censor: Censor
    stopped: tuple[str, str, int, str]
    how: str
    passes: tuple[tuple[str, str, int, str], ...]


PAGE = ("page", plan.INTERNET4, 80, "")
ECHO = ("echo", plan.INTERNET4, 7, "100")
LISTS = ("tls", plan.LIST_HOST4, 443, plan.LIST_NAME)
NAME = ("name", plan.INTERNET4, 53, plan.ECHO_NAME)
CASES = {
    "address": Case(ByAddress((plan.LIST_HOST4,)), LISTS, "silence", (PAGE, ECHO, NAME)),
    "port": Case(ByPort((80, 443)), ECHO, "silence", (PAGE, LISTS, NAME)),
    "protocol": Case(ByProtocol(), ECHO, "silence", (PAGE, LISTS, NAME)),
    "reset": Case(ByReset((plan.LIST_HOST4,)), LISTS, "reset", (PAGE, ECHO, NAME)),
    "bytes": Case(AfterBytes(50_000), ("echo", plan.INTERNET4, 7, "200000"), "silence", (PAGE, ECHO, LISTS, NAME)),
    "server name": Case(ByServerName((plan.LIST_NAME,)), LISTS, "reset",
                        (PAGE, ECHO, NAME, ("tls", plan.LIST_HOST4, 443, "other.example"))),
    "name": Case(PoisonedNames((plan.LIST_NAME,), "192.0.2.99"), ("name", plan.INTERNET4, 53, plan.LIST_NAME),
                 "192.0.2.99", (PAGE, ECHO, NAME, LISTS)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_censor_stops_what_it_is_for_and_nothing_else_while_it_is_on(internet: Internet, name: str) -> None:
    case, neighbour = CASES[name], internet.world.neighbour
    censor = ProviderCensor(internet.world.provider_a)
    free = ask(neighbour, *case.stopped)[0]
    assert free in {"page", "echo", "tls", plan.LIST_HOST4}
    censor.impose(case.censor)
    try:
        assert censor.count() == 0
        assert [ask(neighbour, *one)[0] for one in case.passes] == [
            plan.INTERNET4 if one is NAME else one[0] for one in case.passes
        ]
        assert ask(neighbour, *case.stopped)[0] == case.how
        censor.wait_until_it_stops_something()
    finally:
        censor.lift()
    assert ask(neighbour, *case.stopped)[0] == free


def test_a_throttled_server_is_slow_and_the_others_are_not(internet: Internet) -> None:
    censor, neighbour = ProviderCensor(internet.world.provider_a), internet.world.neighbour
    censor.impose(Throttle((plan.INTERNET4,), 40_000))
    try:
        word, seconds = ask(neighbour, "echo", plan.INTERNET4, 7, "120000")
        assert (word, float(seconds) > 0.5) == ("echo", True)
        assert censor.count() > 0
    finally:
        censor.lift()
    assert ask(neighbour, "echo", plan.INTERNET4, 7, "120000")[0] == "echo"


def test_a_censor_cuts_what_was_open_before_it(internet: Internet) -> None:
    """A blocked address carries nothing more, even on an established connection."""
    censor, neighbour = ProviderCensor(internet.world.provider_a), internet.world.neighbour
    script = (
        "import socket, sys\n"
        f"sock = socket.create_connection(('{plan.INTERNET4}', 7), timeout=60)\n"
        "sock.sendall(b'1'); sock.recv(1); print('open', flush=True); sys.stdin.readline()\n"
        "sock.settimeout(1); sock.sendall(b'2')\n"
        "try:\n    print(sock.recv(1))\nexcept TimeoutError:\n    print('silence')\n"
    )
    import subprocess
    import sys

    child = neighbour.spawn([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    censor.impose(ByAddress((plan.INTERNET4,)))
    try:
        child.stdin.write(b"\n")
        child.stdin.flush()
        censor.wait_until_it_stops_something()
        assert child.stdout.readline() == b"silence\n"
    finally:
        censor.lift()
