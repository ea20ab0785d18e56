# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A slow and lossy line behind a provider, with real packets: everything that the provider forwards waits, or is lost.

The provider's routes lead each forwarded packet of IPv4 into a TUN, whose reader gives it back after a while, or not at
all. So no kernel module is needed (tc-netem(8) is one that small kernels lack).
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import os
import random
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from psiphon_lab.namespace import Host
from psiphon_lab.tun_device import attach_tun
from psiphon_lab.waiting import wait_ready

DEVICE = "slow"
TABLE = 77
_LARGEST = 65536


def carry(*, delay: float, loss: float, seed: int) -> None:
    """Read packets for ever, and give each back `delay` seconds later, except a fraction `loss` of them."""
    chance = random.Random(seed)  # noqa: S311  no secret
    device = attach_tun(DEVICE)
    waiting: list[tuple[float, int, bytes]] = []
    numbers = itertools.count()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        select.select([device], [], [], left)
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(device, _LARGEST)
                if chance.random() >= loss:
                    heapq.heappush(waiting, (time.monotonic() + delay, next(numbers), data))
        while waiting and waiting[0][0] <= time.monotonic():
            with contextlib.suppress(OSError):  # its route is gone
                os.write(device, heapq.heappop(waiting)[2])


class SlowLine:
    """The line, while the block runs.

    Args:
        provider: a router of the world, with the interfaces "lan" and "wan".
        delay: seconds that each packet waits, in each direction.
        loss: fraction of the packets of each direction that is lost.
        seed: of the random choice of lost packets.
    """

    def __init__(self, provider: Host, *, delay: float = 0.0, loss: float = 0.0, seed: int = 1) -> None:
        self._provider = provider
        self._arguments = ["--delay", str(delay), "--loss", str(loss), "--seed", str(seed)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            child = self._provider.spawn_module("psiphon_lab.slow_line", *self._arguments, stdout=subprocess.PIPE)
            stack.callback(child.wait)
            stack.callback(child.kill)
            wait_ready(child, "the slow line")
            self._provider.run(["ip", "link", "set", DEVICE, "up"])
            # A packet that comes back has a source that is routed elsewhere.
            self._provider.set_sysctls({"ipv4/conf/all/rp_filter": 0, f"ipv4/conf/{DEVICE}/rp_filter": 0})
            self._provider.run(["ip", "route", "add", "default", "dev", DEVICE, "table", str(TABLE)])
            for interface in ("lan", "wan"):
                rule = ["iif", interface, "lookup", str(TABLE)]
                self._provider.run(["ip", "rule", "add", "priority", str(TABLE), *rule])
                stack.callback(self._provider.run, ["ip", "rule", "del", "priority", str(TABLE), *rule])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def main() -> None:
    """Carry packets until the end of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    carry(delay=options.delay, loss=options.loss, seed=options.seed)


if __name__ == "__main__":
    main()
