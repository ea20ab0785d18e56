# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts probes on a host, collects their results, and looks for their frames on the wires."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from psiphon_lab.frames import Frame, decode_ip
from psiphon_lab.namespace import PATIENCE, Host, LabError
from psiphon_lab.probe import DNS_TCP, ICMP, LIMIT, PATTERN, TCP, ProbeResult, ProbeSpec

NOBODY = 65534
_TOKEN = re.compile(PATTERN.encode())


class RunningProbes:
    """Probes that run; `collect` waits for them."""

    def __init__(self, host: Host, child: subprocess.Popen[bytes], specs: Sequence[ProbeSpec]) -> None:
        self._host = host
        self._child = child
        self._specs = specs

    def collect(self) -> dict[str, ProbeResult]:
        """The results by probe id. Raises LabError unless every probe has one."""
        try:
            output, _ = self._child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            self._child.kill()
            raise LabError(f"{self._host.name}: probes did not end") from error
        results = {fields["id"]: ProbeResult(**fields) for fields in map(json.loads, output.splitlines())}
        if set(results) != {spec.id for spec in self._specs}:
            raise LabError(
                f"{self._host.name}: {len(results)} of {len(self._specs)} probes answered, rc {self._child.returncode}"
            )
        return results


def start_probes(host: Host, specs: Sequence[ProbeSpec], *, uid: int = 0, limit: float = LIMIT) -> RunningProbes:
    """Start probes on a host as `uid` (and as the group with that number), and return at once."""
    identity = {} if uid == 0 else {"uid": uid, "gid": uid}
    child = host.spawn_module("psiphon_lab.probe", stdin=subprocess.PIPE, stdout=subprocess.PIPE, **identity)
    assert child.stdin is not None
    child.stdin.write(json.dumps({"limit": limit, "specs": [asdict(spec) for spec in specs]}).encode())
    child.stdin.close()
    child.stdin = None  # or communicate() would flush it
    return RunningProbes(host, child, specs)


def run_probes(host: Host, specs: Sequence[ProbeSpec], *, uid: int = 0, limit: float = LIMIT) -> dict[str, ProbeResult]:
    """Run probes on a host as `uid`, and wait for them."""
    return start_probes(host, specs, uid=uid, limit=limit).collect()


def seen_on_wire(spec: ProbeSpec, frames: Iterable[Frame]) -> bool:
    """Whether a frame of this probe came out of the client, even with a rewritten destination."""
    return not unseen_probes([spec], frames)


def unseen_probes(specs: Iterable[ProbeSpec], frames: Iterable[Frame]) -> list[ProbeSpec]:
    """The probes without a frame outside. With the lock that should be all; without it (positive control) none."""
    tokens: set[bytes] = set()
    ports: set[tuple[int, int, int]] = set()
    for frame in frames:
        if not frame.from_client:
            continue
        tokens.update(_TOKEN.findall(frame.data))
        packet = decode_ip(frame.data)
        if packet is not None:
            ports.add((packet.version, packet.protocol, packet.source_port))

    def is_seen(spec: ProbeSpec) -> bool:
        if spec.token.encode() in tokens:
            return True
        protocol = 6 if spec.kind in (TCP, DNS_TCP) else 17
        return spec.kind != ICMP and (spec.family, protocol, spec.source_port) in ports

    return [spec for spec in specs if not is_seen(spec)]
