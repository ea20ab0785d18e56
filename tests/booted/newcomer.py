# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A newcomer's computer: nothing is configured, and its provider leads to an internet like the real one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.booted.session import RealLike, open_real_like
from psiphon_lab.tunnel_ends import RealPrograms

NOBODY = 65534
REAL = [(tree, "real programs") for tree in ("debian12", "debian13")]
"""Parameters (`tree` and `real` of conftest.py) that need --core and --server."""
_PAGE = f"""
import json, time, urllib.request
while True:
    try:
        with urllib.request.urlopen("http://{plan.ECHO_NAME}/", timeout=1) as page:
            print(json.loads(page.read())["address"])
        break
    except OSError:
        time.sleep(0.05)
"""


@contextlib.contextmanager
def start(tree: Path, wheels: Path, real: RealPrograms | None) -> Iterator[RealLike]:
    """The computer is on and has addresses; every probe was seen outside."""
    with open_real_like(tree, wheels, real=real) as real_like:
        session = real_like.session
        session.name += ", stand-ins" if real is None else ", real programs"
        session.computer.power_on()
        session.computer.wait_address()
        assert not session.control(), "without a lock, every probe must be seen outside"
        yield real_like


def fetch_page(real_like: RealLike) -> str | None:
    """Wait until an ordinary user gets a page by its name; returns the region that the page saw."""
    computer = real_like.session.computer
    done = computer.run(["python3", "-c", _PAGE], uid=NOBODY, gid=NOBODY, timeout=120)
    return real_like.internet.find_region(done.stdout.strip())
