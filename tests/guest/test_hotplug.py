# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Cards that QEMU plugs in and out of a guest, on PCI Express and on USB, with programs that use each at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from tests.guest.plain_line import PHONE_CARD, Line, open_line
from tests.guest.seeker import BEGIN, HUSH, ROUNDS, SAYS, SEEK, SEEKER

from psiphon_lab.addresses import LAN_A
from psiphon_lab.frames import Frame
from psiphon_lab.guest.kernels import Kernel

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(1800)]
MODULES: Final = ("xhci_pci", "cdc_ether", "rndis_host")
PLUMBING: Final = {"arp", "nd", "mld", "dhcp"}
FLOW, CALL = "tunnel flow", "tunnel call"
PCI, USB = "0", "2"
MACS: Final = {PCI: LAN_A.mac, USB: PHONE_CARD}


def bring_up(mac: str, name: str) -> str:
    """What a udev rule and a network manager do: wait for a card, give it a name, an address and a route."""
    return f"""
        set -e
        while ! found=$(grep -l {mac} /sys/class/net/*/address 2>/dev/null); do sleep 0.02; done
        found=$(basename $(dirname $(echo "$found" | head -n1)))
        [ "$found" = {name} ] || ip link set dev $found name {name}
        ip link set dev {name} up
        ip address add {LAN_A.client4}/{LAN_A.prefix4} dev {name}
        ip address add {LAN_A.client6}/{LAN_A.prefix6} dev {name} nodad
        ip route add default via {LAN_A.router4} dev {name} proto dhcp metric 50
        ip -6 route add default via {LAN_A.router6} dev {name} proto ra metric 50
    """


@dataclass(frozen=True)
class Seen:
    """What came out while cards came and went.

    Attributes:
        sent: what the frames say that they are, as "who how".
        leaks: frames that are not innocent, in words, except those that say something.
        kinds: why the others are innocent.
        status: the service's at the end, if it runs.
    """

    sent: frozenset[str]
    leaks: tuple[str, ...]
    kinds: frozenset[str]
    status: dict[str, Any]


class Bench:
    """A guest whose cards are out."""

    def __init__(self, line: Line) -> None:
        self.line = line
        (line.guest.exchange / "seeker.py").write_text(SEEKER)
        line.guest.unplug(0)
        line.guest.unplug(1)

    def play(self, *steps: tuple[str, ...], wait: str = "") -> Seen:
        """Plug cards while programs send by whatever there is.

        Args:
            steps: each is "in" or "out", the card's number, and for the first the name that it gets.
            wait: what the service's status is to fulfil at the end; "" without a service.
        """
        guest = self.line.guest
        mark = self.line.mark()
        guest.run(BEGIN)
        seekers = [guest.start(f"{SEEK} {who}") for who in ("root", "user")]
        for how, number, *name in steps:
            if how == "out":
                guest.unplug(int(number))
                continue
            bring = guest.start(bring_up(MACS[number], name[0]))
            guest.plug(int(number))
            done = guest.finish(bring)
            assert done.code == 0, done.output
            guest.run(ROUNDS)
        status = self.line.service.wait_status(wait) if wait else {}
        guest.run(f"{ROUNDS} touch {HUSH}")
        for seeker in seekers:
            assert int(guest.finish(seeker).output), "it has sent"
        return self._judge(self.line.frames_since(mark), status)

    def _judge(self, frames: list[Frame], status: dict[str, Any]) -> Seen:
        said = [found[1].decode() if (found := SAYS.search(frame.data)) else "" for frame in frames]
        verdicts = self.line.judge(frames)
        return Seen(
            frozenset(said) - {""},
            tuple(each.text for each, word in zip(verdicts, said, strict=True) if each.is_leak and not word),
            frozenset(each.innocent for each in verdicts if each.innocent is not None),
            status,
        )


ALL: Final = {"root ip", "user ip", "root raw"}


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Locked, without the daemon and without a card, after the positive controls."""
    with open_line(kernel, tmp_path_factory.mktemp("guest"), modules=MODULES, pluggable=True) as line:
        made = Bench(line)
        for card in (PCI, USB):
            seen = made.play(("in", card, "card0"), ("out", card))
            assert seen.sent == ALL, "without the lock all comes out"
        line.service.lock()
        yield made


@pytest.mark.requirement("R2", "R5", "R6")
@pytest.mark.parametrize("card", [PCI, USB], ids=["pci", "usb"])
def test_locked_no_packet_leaves_by_a_card_that_is_plugged_in_from_its_first_moment(bench: Bench, card: str) -> None:
    """Without the service a new card has no guard against raw frames: SECURITY.md says so."""
    seen = bench.play(("in", card, "card0"), ("out", card))
    assert seen.sent <= {"root raw"}
    assert not seen.leaks
    assert seen.kinds <= PLUMBING


@pytest.fixture(scope="module")
def started(bench: Bench) -> Bench:
    """The daemon runs; there is no card."""
    bench.line.service.start()
    return bench


OPEN: Final = "status['state'] == 'OPEN' and status['uplink']['interface'] == '{}'"


@pytest.mark.requirement("R5", "R6", "R9")
def test_an_unplugged_card_that_comes_back_under_another_name_lets_out_the_tunnel_alone(started: Bench) -> None:
    bench = started
    check_open(bench.play(("in", PCI, "card0"), wait=OPEN.format("card0")))
    check_open(bench.play(("out", PCI), ("in", PCI, "card7"), wait=OPEN.format("card7")))


def check_open(seen: Seen) -> None:
    """Only the tunnel's own flow; raw frames at most before the service has seen the card (SECURITY.md)."""
    assert seen.sent <= {"root raw"}
    assert not seen.leaks
    assert seen.kinds <= {FLOW, CALL, *PLUMBING}
    assert {name: layer["state"] for name, layer in seen.status["layers"].items() if name == "egress_guard"} == {
        "egress_guard": "ok"
    }
