# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures how soon the service restores what another program removed: `python -m psiphon_lab.heal_figures`, as root.

A time runs from the kernel's announcement of the removal to its announcement of the restoration. The laboratory
receives both itself.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from psiphon_lab.bench.sides import open_product
from psiphon_lab.heal_watch import ADDRESSES, LINK, HealWatch, Piece, routes, rules, table
from psiphon_lab.machine import Machine
from psiphon_lab.service_adapter import names
from psiphon_lab.waiting import wait_until

ROUNDS = 20
PACE_SECONDS = 1.0
"""Seconds between two removals. The service deliberately slows down when many follow each other: that is a fight."""
BASE, EGRESS = table(names.BASE_TABLE), table(names.EGRESS_TABLE)
PRIVATE = str(names.ROUTE_TABLE)


@dataclass(frozen=True)
class Kind:
    """One kind of removal: a command on the client, and the pieces that must return."""

    name: str
    argv: tuple[str, ...]
    pieces: Callable[[Machine], frozenset[Piece]]


def _always(*pieces: Piece) -> Callable[[Machine], frozenset[Piece]]:
    return lambda _machine: frozenset(pieces)


def _rules_of(version: int) -> Callable[[Machine], frozenset[Piece]]:
    return lambda machine: frozenset(piece for piece in rules(machine.identity) if piece[1] == version)


def _routes_of(version: int) -> Callable[[Machine], frozenset[Piece]]:
    return lambda _machine: frozenset(piece for piece in routes(tun=False) if piece[1] == version)


def _tun(*more: Piece) -> Callable[[Machine], frozenset[Piece]]:
    return lambda _machine: frozenset({LINK, *routes(tun=True), *more})


KINDS = (
    Kind("ruleset flushed", ("nft", "flush", "ruleset"), _always(BASE, EGRESS)),
    Kind("base table deleted", ("nft", "delete", "table", "inet", names.BASE_TABLE), _always(BASE)),
    Kind("egress guard deleted", ("nft", "delete", "table", "netdev", names.EGRESS_TABLE), _always(EGRESS)),
    Kind("IPv4 rules flushed", ("ip", "rule", "flush"), _rules_of(4)),
    Kind("IPv6 rules flushed", ("ip", "-6", "rule", "flush"), _rules_of(6)),
    Kind("IPv4 table flushed", ("ip", "route", "flush", "table", PRIVATE), _routes_of(4)),
    Kind("IPv6 table flushed", ("ip", "-6", "route", "flush", "table", PRIVATE), _routes_of(6)),
    Kind("TUN set down", ("ip", "link", "set", names.TUN_NAME, "down"), _tun(("address", 6))),
    Kind("TUN deleted", ("ip", "link", "del", names.TUN_NAME), _tun(*ADDRESSES)),
)


@dataclass
class Heals:
    """Milliseconds by kind of removal: until everything was restored, and until the tunnel was open again."""

    back: dict[str, list[float]] = field(default_factory=dict)
    reopened: dict[str, list[float]] = field(default_factory=dict)

    def render(self) -> Iterator[str]:
        """A line for each kind."""
        for name, values in self.back.items():
            ordered = sorted(values)
            late = ordered[int(len(ordered) * 0.95)]
            yield (
                f"{name:<22} {len(ordered)} rounds, restored: median {statistics.median(ordered):6.1f} ms, minimum "
                f"{ordered[0]:5.1f}, 95th percentile {late:6.1f}; reopened: median "
                f"{statistics.median(self.reopened[name]):6.1f} ms"
            )


def _is_open(machine: Machine) -> bool:
    return (machine.read_status() or {}).get("state") == "OPEN" and machine.lease_remains()


def measure_heal(machine: Machine, kind: Kind) -> tuple[float, float]:
    """Remove something from a machine that is open. Milliseconds until it was restored, and until open again."""
    machine.wait_for(lambda: _is_open(machine), "an open tunnel")
    time.sleep(0.3)  # for what follows an opening
    index = int(machine.client.run(["cat", f"/sys/class/net/{names.TUN_NAME}/ifindex"]).stdout)
    wanted = kind.pieces(machine)
    with HealWatch(machine.client, tun=index) as watch:
        child = machine.client.spawn(list(kind.argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child.wait(timeout=60)

        def times() -> tuple[float, float] | None:
            return watch.measure(wanted)

        wait_until(lambda: times() is not None, f"restored: {kind.name}")
        time.sleep(0.05)  # a flush that was still running may have removed it again
        wait_until(lambda: times() is not None, f"restored: {kind.name}")
        found = times()
        machine.wait_for(lambda: _is_open(machine), "an open tunnel")
        opened = time.monotonic()
    assert found is not None
    return (found[1] - found[0]) * 1000, (opened - found[0]) * 1000


def restore_kernel_rules(machine: Machine) -> None:
    """Restore the kernel's own rules, which a flush removes too."""
    for family in ("-4", "-6"):
        machine.client.run(["ip", family, "rule", "add", "lookup", "main", "priority", "32766"], check=False)
    machine.client.run(["ip", "rule", "add", "lookup", "default", "priority", "32767"], check=False)


def measure(machine: Machine, *, rounds: int, kinds: tuple[Kind, ...] = KINDS, say: bool = False) -> Heals:
    """Measure each kind `rounds` times, in turns."""
    heals = Heals()
    for number in range(rounds):
        for kind in kinds:
            begin = time.monotonic()
            back, reopened = measure_heal(machine, kind)
            heals.back.setdefault(kind.name, []).append(back)
            heals.reopened.setdefault(kind.name, []).append(reopened)
            if "rule" in kind.argv:
                restore_kernel_rules(machine)
            time.sleep(max(0.0, begin + PACE_SECONDS - time.monotonic()))
        if say:
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return heals


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="heal_figures", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kind", action="append")  # part of a kind's name; may be given more than once
    parser.add_argument("--log", type=Path)  # a file for the daemon's log
    options = parser.parse_args()
    kinds = tuple(kind for kind in KINDS if not options.kind or any(part in kind.name for part in options.kind))
    with open_product(None, load=False) as product:
        machine = product.machine
        try:
            heals = measure(machine, rounds=options.rounds, kinds=kinds, say=True)
        finally:
            if options.log is not None:
                options.log.write_text(machine.read_log(), encoding="utf-8")
        resident = machine.read_resident_kib()
    sys.stdout.write("\n".join(heals.render()) + f"\nresident {resident} KiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
