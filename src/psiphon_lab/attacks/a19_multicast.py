# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A19: multicast and broadcast."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from psiphon_lab import packet_builder
from psiphon_lab.fork_server import Shot
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Trace
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.sending import BOTH, send_datagram

SOCKETS_ONLY = True  # see fork_server

SSDP, DISCOVERY = 1900, 32414
GROUPS = {4: ("239.255.255.250", "224.0.0.1"), 6: ("ff02::c", "ff05::c", "ff02::1")}


REPORTED = 0.12  # the kernel reports after up to REPORT_MS, more than once
REPORT_MS = 20


def join(shot: Shot, *, interface: str, group: str) -> None:
    """Join a group, which makes the kernel report it (IGMP). The program itself sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex(interface)
        sock.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            struct.pack("4s4si", packet_builder.pack_address(group), bytes(4), index),
        )
        time.sleep(REPORTED)


def join_ipv6(shot: Shot, *, interface: str, group: str) -> None:
    """The same with IPv6 (MLD). The group's address can contain any data that the program chooses."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        index = socket.if_nametoindex(interface)
        sock.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packet_builder.pack_address(group) + struct.pack("@I", index)
        )
        time.sleep(REPORTED)


def _reports(group: str) -> Callable[[Shot], Trace]:
    return lambda _: Trace(token=packet_builder.pack_address(group))


def run(trial: Trial) -> None:
    """Send to SSDP and other groups, join groups, and send to both kinds of broadcast address."""
    for number, lan in enumerate(trial.lans):
        wire = lan.interface
        reported = {f"ipv6/conf/{wire}/mldv{version}_unsolicited_report_interval": REPORT_MS for version in (1, 2)}
        trial.client.set_sysctls({f"ipv4/conf/{wire}/igmpv3_unsolicited_report_interval": REPORT_MS, **reported})
        for order, by in enumerate(BOTH):
            group = f"239.77.{number * 2 + order}.77"
            trial.fire(join, by=by, family=4, name=f"IGMP {wire} {by}", interface=wire, group=group, seconds=0.1,
                       trace=_reports(group))  # fmt: skip
            group = f"ff3e::6c65:616b:{number * 2 + order}:77"
            trial.fire(join_ipv6, by=by, family=6, name=f"MLD {wire} {by}", interface=wire, group=group, seconds=0.1,
                       trace=_reports(group))  # fmt: skip
            for family, groups in GROUPS.items():
                for target in groups:
                    trial.fire(send_datagram, by=by, family=family, name=f"{target} {wire} {by}", target=target,
                               port=SSDP, interface=wire, group=True)  # fmt: skip
            subnet = "192.0.2.127" if wire == "eth0" else "192.0.2.255"
            for target in ("255.255.255.255", subnet):
                trial.fire(send_datagram, by=by, family=4, name=f"broadcast {target} {wire} {by}", target=target,
                           port=DISCOVERY, interface=wire, broadcast=True)  # fmt: skip


ATTACK = Attack(
    id="A19",
    name="multicast and broadcast",
    reference="discovery protocols; IGMP and MLD that the kernel sends by itself",
    summary="A program looks for devices around it, or joins a group, and everybody on the local network sees it.",
    actors=(Actor.ROOT, Actor.USER),
    recognised="by source port or a token in the payload; IGMP and MLD by the group's address in it",
    control="the same packets without the lock",
    run=run,
)
