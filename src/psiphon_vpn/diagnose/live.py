# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`diagnose --live`: tries to leak on this machine, and watches its own interfaces.

The laboratory shows what a watch from inside can see (tests/diagnose/test_live.py): a packet socket sees a frame in the
last step before the driver, *after* every hook of nftables, the egress hook too. So it does not see what a rule
dropped, and what it sees has left. It does not see frames that bypass the queueing discipline (PACKET_QDISC_BYPASS,
AF_XDP), nor what a network card does by itself: only a capture outside shows those, as in the laboratory. Nothing is
proven about states that the machine was not in.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from psiphon_vpn.diagnose import live_probes
from psiphon_vpn.diagnose.live_probes import Probe, Sent
from psiphon_vpn.diagnose.model import Check, Group, Outcome, Result, Verdict, mark
from psiphon_vpn.i18n import _

ETH_P_ALL: Final = 0x0003
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE: Final = 33
BUFFER_BYTES: Final = 16 << 20
SETTLE_SECONDS: Final = 0.4
MAX_FRAMES: Final = 200_000
LIMITS: Final = mark(
    "The watch runs on this machine itself. It sees what the network card receives, after every rule; it does not "
    "see frames that bypass the queue (AF_XDP, PACKET_QDISC_BYPASS), nor packets forwarded for containers."
)


@dataclass(frozen=True, kw_only=True)
class WireReport:
    """What was seen on one interface.

    Attributes:
        seen: names of the probes that left by it.
        control: whether the frame that may leave was seen; without it, seeing nothing proves nothing.
        lost: frames that the kernel dropped from the watch.
    """

    wire: str
    seen: tuple[str, ...]
    control: bool
    lost: int


@dataclass(frozen=True, kw_only=True)
class LiveReport:
    """The results of the probes."""

    sent: tuple[Sent, ...]
    wires: tuple[WireReport, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as an object for programs."""
        return {
            "probes": [{"name": one.probe.name, "outcome": one.outcome} for one in self.sent],
            "wires": [
                {"interface": wire.wire, "seen": list(wire.seen), "control": wire.control, "lost": wire.lost}
                for wire in self.wires
            ],
            "limits": _(LIMITS),
        }


class _Watch:
    """A packet socket on one interface."""

    def __init__(self, wire: str, *, header: bool) -> None:
        self.wire, self.header = wire, header
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            self._socket.bind((wire, ETH_P_ALL))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def read(self) -> tuple[list[bytes], int]:
        """The frames that left since the start, and how many were lost."""
        frames: list[bytes] = []
        for _number in range(MAX_FRAMES):
            try:
                frame, address = self._socket.recvfrom(1 << 16)
            except (BlockingIOError, TimeoutError):
                break
            except OSError:
                continue
            if address[2] == socket.PACKET_OUTGOING:
                frames.append(frame)
        _packets, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return frames, lost

    def close(self) -> None:
        self._socket.close()


def run_live(wires: tuple[str, ...], headerless: tuple[str, ...] = ()) -> LiveReport:
    """Watch the interfaces, send every probe once, and report what left.

    Args:
        wires: interfaces that lead out.
        headerless: those of them without an Ethernet header.

    Raises:
        OSError: an interface cannot be watched.
    """
    watches: list[_Watch] = []
    try:
        watches += [_Watch(wire, header=wire not in headerless) for wire in wires]
        probes = live_probes.list_probes(wires, headerless)
        token, target = secrets.token_bytes(live_probes.CONTROL_TOKEN_BYTES), live_probes.make_target(4)
        for wire in wires:
            if wire not in headerless:
                live_probes.send_control(wire, target, token)
        sent = live_probes.send_probes(probes)
        time.sleep(SETTLE_SECONDS)
        return LiveReport(sent=sent, wires=tuple(_judge(watch, probes, token) for watch in watches))
    finally:
        for watch in watches:
            watch.close()


def _judge(watch: _Watch, probes: tuple[Probe, ...], control: bytes) -> WireReport:
    frames, lost = watch.read()
    by_target: dict[bytes, list[Probe]] = {}
    for probe in probes:
        by_target.setdefault(ipaddress.ip_address(probe.target).packed, []).append(probe)
    seen: dict[str, None] = {}
    for frame in frames:
        if control in frame:
            continue
        for address in live_probes.iterate_addresses(frame, header=watch.header):
            sharing = by_target.get(address, ())
            # Where there are more probes than targets the token tells which it was. Without one, as in a question for
            # the target's link address, it was one of them: none of them may be called held.
            told = [probe for probe in sharing if probe.token in frame]
            seen |= dict.fromkeys(probe.name for probe in told or sharing)
        if b"psiphon-live-" in frame:
            seen |= dict.fromkeys(probe.name for probe in probes if probe.token in frame)
    return WireReport(wire=watch.wire, seen=tuple(seen), control=any(control in frame for frame in frames), lost=lost)


LEAK: Final = Check(
    id="live.leaks",
    group=Group.LIVE,
    title=mark("No probe leaves by a network interface"),
    next_step=mark("Take the machine off the network, then: sudo psiphon-vpn start"),
    run=lambda _facts: Outcome(verdict=Verdict.SKIPPED, reason=""),
)


def judge(report: LiveReport) -> tuple[Outcome, ...]:
    """An outcome for each interface."""
    return tuple(_judge_wire(wire, len(report.sent)) for wire in report.wires)


def _judge_wire(wire: WireReport, count: int) -> Outcome:
    if wire.seen:
        text = _("OPEN: {count} of {total} left by {wire}, among them: {names}")
        names = "; ".join(wire.seen[:3])
        reason = text.format(count=len(wire.seen), total=count, wire=wire.wire, names=names)
        return Outcome(verdict=Verdict.FAILED, reason=reason, open=True)
    if wire.lost:
        reason = _("{wire}: the watch lost {lost} frames, so the result is unknown").format(
            wire=wire.wire, lost=wire.lost
        )
        return Outcome(verdict=Verdict.UNKNOWN, reason=reason)
    if not wire.control:
        reason = _("{wire}: the watch did not see the frame that may leave either, so the result is unknown")
        return Outcome(verdict=Verdict.UNKNOWN, reason=reason.format(wire=wire.wire))
    reason = _("{wire}: none of {total} was seen, while the frame that may leave was").format(
        wire=wire.wire, total=count
    )
    return Outcome(verdict=Verdict.OK, reason=reason)


def to_results(report: LiveReport | None, trouble: str = "") -> tuple[Result, ...]:
    """Results in the form of the checks' results. Without a report, the reason for that."""
    if report is None:
        outcomes: tuple[Outcome, ...] = (Outcome(verdict=Verdict.UNKNOWN, reason=trouble),)
    else:
        skipped = Outcome(verdict=Verdict.SKIPPED, reason=_("there is no interface that leads out"))
        outcomes = judge(report) or (skipped,)
    return tuple(
        Result(
            check=LEAK,
            verdict=outcome.verdict,
            reason=outcome.reason,
            next_step=_(LEAK.next_step) if outcome.open else None,
            open=outcome.open,
            seconds=0.0,
        )
        for outcome in outcomes
    )
