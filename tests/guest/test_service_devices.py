# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole service on Debian's kernels, over devices that are no plain card.

Each is tried three times in one guest: without the lock (the positive control), with the boot lock and no daemon, and
with the service. Where it does not open, its status says why, and what it says to do has it open.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from tests.guest.devices import DEVICES, FAR, LINE4, PUT_AWAY, Device
from tests.guest.plain_line import Line, open_line

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.frames import Frame
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.probe import ProbeSpec, probe_specs
from psiphon_lab.probe_runner import NOBODY, unseen_probes

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(3600)]
MODULES: Final = ("bonding", "macvlan", "ipvlan", "vrf", "wireguard", "ip_gre", "ipip")
PLUMBING: Final = {"arp", "nd", "mld"}
FLOW, CALL = "tunnel flow", "tunnel call"


@dataclass
class Played:
    """What came of one device.

    Attributes:
        answers: to the probes without the lock.
        unseen: probes that did not come out then.
        carried: whether packets of a tunnel came out then.
        locked: verdicts with the boot lock: how many frames of each kind.
        leaks: frames outside that are not innocent, in words, by state.
        seen: how many probes came out, by state.
        status: the service's, once it has opened, or has said why not.
        through: how many frames were judged as what, while it was open.
        cured: the state after the next step.
    """

    answers: dict[str, str] = field(default_factory=dict)
    unseen: list[ProbeSpec] = field(default_factory=list)
    carried: bool = False
    leaks: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    through: dict[str, str] = field(default_factory=dict)
    cured: dict[str, Any] = field(default_factory=dict)


class Player:
    """Plays devices in a guest."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._salt = 0

    def control(self, device: Device, played: Played) -> None:
        """Without the lock."""
        mark = self._make(device)
        specs, played.answers = self._probe()
        frames = self._line.frames_since(mark)
        played.unseen = unseen_probes(specs, frames)
        played.carried = any(is_carried(frame, device) for frame in frames)
        self._put_away()

    def locked(self, device: Device, played: Played) -> None:
        """With the boot lock and no daemon."""
        mark = self._make(device)
        specs, _answers = self._probe()
        self._judge(mark, specs, played, "locked")
        self._put_away()

    def service(self, device: Device, played: Played) -> None:
        """With the service."""
        service = self._line.service
        mark = self._make(device)
        reached = f"status['reason_code'] == '{device.reason}'" if device.reason else "status['state'] == 'OPEN'"
        played.status = service.wait_status(reached)
        specs, played.through = self._probe()
        self._judge(mark, specs, played, "service")
        if device.reason:
            mark = self._line.mark()
            self._line.guest.run(device.cure)
            played.cured = service.wait_open()
            self._judge(mark, (), played, "cured")
        self._put_away()
        service.wait_status("status['state'] == 'LOCKED'")

    def _make(self, device: Device) -> dict[str, int]:
        mark = self._line.mark()
        self._line.guest.run(f"set -e\n{device.make}")
        return mark

    def _put_away(self) -> None:
        self._line.guest.run(PUT_AWAY)

    def _probe(self) -> tuple[list[ProbeSpec], dict[str, str]]:
        specs: list[ProbeSpec] = []
        answers: dict[str, str] = {}
        for label, uid in (("root", 0), ("user", NOBODY)):
            self._salt += 1
            battery = probe_specs(salt=self._salt, interface="u0", label=label)
            answers |= self._line.service.run_probes(battery, uid=uid)
            specs += battery
        return specs, answers

    def _judge(self, mark: dict[str, int], specs: Iterable[ProbeSpec], played: Played, state: str) -> None:
        frames = self._line.frames_since(mark)
        verdicts = self._line.judge(frames)
        tried = list(specs)
        played.leaks[state] = [each.text for each in verdicts if each.is_leak]
        played.seen[state] = len(tried) - len(unseen_probes(tried, frames))
        played.kinds[state] = Counter(str(each.innocent) for each in verdicts)


def is_carried(frame: Frame, device: Device) -> bool:
    """Whether a frame has a packet of the device's tunnel."""
    return frame.data[12:14] == b"\x08\0" and frame.data[23] == device.outer


def list_chosen(items: list[pytest.Item]) -> list[str]:
    """The devices of the tests that will run, as far as this machine has the programs."""
    specs = [getattr(item, "callspec", None) for item in items]
    chosen = {spec.params["name"] for spec in specs if spec is not None and "name" in spec.params}
    return [name for name, device in DEVICES.items() if name in chosen and shutil.which(device.needs)]


@pytest.fixture(scope="module")
def played(
    kernel: Kernel, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Played]]:
    """Every device in every state."""
    chosen = list_chosen(request.session.items)
    results = {name: Played() for name in chosen}
    with open_line(kernel, tmp_path_factory.mktemp("guest"), modules=MODULES, joined=True) as line:
        line.guest.run(FAR)
        player = Player(line)
        for name in chosen:
            player.control(DEVICES[name], results[name])
        line.service.lock()
        for name in chosen:
            player.locked(DEVICES[name], results[name])
        line.service.start()
        for name in chosen:
            player.service(DEVICES[name], results[name])
        yield results


def check_control(name: str, found: Played) -> None:
    """Without the lock everything came out, by this device."""
    device = DEVICES[name]
    if device.outer is not None:
        assert LINE4 in found.answers.values(), "the internet saw the tunnel's address"
        assert found.carried
    else:
        assert {LAN_A.client4, LAN_A.client6} <= set(found.answers.values())
        assert not [spec for spec in found.unseen if spec.interface or not device.bound_only]


@pytest.mark.requirement("R2", "R5", "R6", "R7", "B4")
@pytest.mark.parametrize("name", DEVICES)
def test_a_device_as_uplink_lets_nothing_out_but_the_tunnel_and_says_why_it_does_not_open(
    played: dict[str, Played], name: str
) -> None:
    device = DEVICES[name]
    if name not in played:
        pytest.skip(f"{device.needs} is not installed")
    found = played[name]
    check_control(name, found)
    assert not any(found.leaks.values()), found.leaks
    assert not any(found.seen.values()), found.seen
    assert set(found.kinds["locked"]) <= PLUMBING
    if device.reason:
        assert found.status["state"] == "LOCKED"
        assert found.status["uplink"] is None
        assert not any(found.through.values())
        assert set(found.kinds["service"]) <= PLUMBING
        assert found.cured["uplink"]["interface"] == "eth0"
        assert found.kinds["cured"][FLOW]
        return
    assert found.status["uplink"]["interface"] == "u0"
    assert {which: layer["state"] for which, layer in found.status["layers"].items() if layer["state"] != "ok"} == {}
    for label in ("root", "user"):
        assert found.through[f"{label}-tcp-ipv4-internet-plain"] == plan.SERVER4
        assert found.through[f"{label}-tcp-ipv6-internet-plain"] == plan.SERVER6
    assert found.kinds["service"][FLOW]
    assert set(found.kinds["service"]) <= {FLOW, CALL, *PLUMBING}
