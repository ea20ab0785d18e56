# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the service or the bare core on a network that censors, and measures how long it takes until the next page."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from psiphon_lab.bare_core import BareCore
from psiphon_lab.internet import Internet, open_internet
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.provider_censor import AfterBytes, ByAddress, ByPort, ByProtocol, ByReset, ProviderCensor
from psiphon_lab.service_adapter import names
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

PATIENCE = 90.0
"""Time limit for what may need several attempts of a core, each with its own time limit."""
PAGES_UNTOUCHED = 400
"""150 pages pass 40 kB through one connection, and a busy machine may replace that in between."""
_WRAPPER = """#!/bin/sh
# The laboratory's: a core that already knows servers.
exec {core} "$@" -serverList {servers}
"""

Fetch = Callable[[], str | None]
Strike = Callable[[str], None]


class Untouched(LabError):
    """The censor does not stop the protocol in use: QUIC knows no resets, and meek looks like TLS."""


@dataclass(frozen=True, kw_only=True)
class Censored:
    """A world whose provider A can censor.

    Attributes:
        core: a program that starts a core with the servers of `known`.
        plain_core: the same without any list.
        known: the file with their entries.
    """

    world: World
    internet: Internet
    censor: ProviderCensor
    core: Path
    plain_core: Path
    known: Path

    def list_addresses(self, *regions: str) -> tuple[str, ...]:
        """The addresses of the servers of these regions."""
        places = [self.internet.servers[region].place for region in regions]
        return tuple(address for place in places for address in (place.address4, place.address6))

    def know(self, *regions: str) -> None:
        """Have the core know the servers in these regions from its next start on."""
        entries = (self.internet.servers[region].entry for region in regions)
        self.known.write_text("".join(f"{entry}\n" for entry in entries), encoding="ascii")
        self.known.chmod(0o644)


@dataclass(frozen=True, kw_only=True)
class NextPage:
    """seconds: from a censor's stroke to the next page. before, after: regions of the servers that pages came by."""

    seconds: float
    before: str
    after: str


@contextlib.contextmanager
def open_censored(real: RealPrograms | None = None, *, captures: bool = True) -> Iterator[Censored]:
    """A world with an internet like the real one, without a service. Servers in NL and DE are known.

    Args:
        real: real programs instead of the stand-ins.
        captures: as for `World`.
    """
    expose = () if real is None else (real.core, real.server)
    with (
        World(expose=expose, captures=captures) as world,
        open_internet(world, program=None if real is None else real.server) as internet,
    ):
        internet.keep_core_ports()
        place = world.directory / "core"
        place.mkdir()
        place.chmod(0o755)
        core = write_core_wrapper(place) if real is None else real.core
        known, wrapper = place / "known", place / "core-that-knows"
        wrapper.write_text(_WRAPPER.format(core=shlex.quote(str(core)), servers=shlex.quote(str(known))))
        wrapper.chmod(0o755)
        censor = ProviderCensor(world.provider_a)
        made = Censored(world=world, internet=internet, censor=censor, core=wrapper, plain_core=core, known=known)
        made.know("NL", "DE")
        yield made


def wait_for_page(internet: Internet, fetch: Fetch, *, seconds: float = PATIENCE) -> str:
    """Fetch a page until that works; returns the region of the server that it used. Raises LabError if it fails."""
    seen: list[str] = []

    def ask() -> bool:
        region = internet.find_region(fetch())
        if region is not None:
            seen.append(region)
        return bool(seen)

    wait_until(ask, "a page", timeout=seconds, pause=0.05)
    return seen[-1]


@contextlib.contextmanager
def open_bare_core(censored: Censored) -> Iterator[Fetch]:
    """The core without the service, and without memory. Yields a function that fetches a page through its TUN."""
    world = censored.world
    with BareCore(world, censored.core, None) as core:
        core.start()
        yield lambda: fetch_page(world.client, interface=names.TUN_NAME)


@contextlib.contextmanager
def open_service(censored: Censored) -> Iterator[Machine]:
    """The service, locked and with its daemon running."""
    with Machine(censored.world, core=censored.core, entry=lambda: censored.internet.entry) as machine:
        machine.write_config(target=False)
        machine.boot_lock()
        machine.hold_guard()
        machine.start_daemon()
        yield machine


def list_strikes(censored: Censored) -> dict[str, Strike]:
    """Censors that leave a way out, by what they stop. Each gets the region of the server in use."""
    impose = censored.censor.impose
    return {
        "the server's address": lambda region: impose(ByAddress(censored.list_addresses(region))),
        "the server, by resets": lambda region: impose(ByReset(censored.list_addresses(region))),
        "all ports but 80 and 443": lambda _region: impose(ByPort((80, 443))),
        "what is no TLS or HTTP": lambda _region: impose(ByProtocol()),
        "what a connection carries after 40 kB": lambda _region: impose(AfterBytes(40_000)),
    }


def measure_next_page(censored: Censored, fetch: Fetch, strike: Strike) -> NextPage:
    """From a censor's stroke to the next page.

    Args:
        censored: the world, in which a page comes already.
        fetch: asks for a page.
        strike: begins to censor; it is given the region in use. What came before it counts for nothing.

    Raises:
        Untouched: it does not stop what is in use.
        LabError: no page came.
    """
    before = wait_for_page(censored.internet, fetch)
    tunnels = censored.internet.read_tunnels()
    strike(before)
    begin = time.monotonic()
    # A page that comes before the censor has stopped anything, or past it, proves nothing. A request may outlive the
    # connection that the censor stops: TCP sends it again through the next, which may be to the same server.
    met, stopped, replaced, passed = False, False, False, 0

    def ask() -> str | None:
        nonlocal met, stopped, replaced, passed
        page = fetch()
        stopped = stopped or (met and page is None)
        if stopped or replaced or (met and censored.internet.find_region(page) != before):
            return page
        replaced = met and not censored.internet.read_tunnels() <= tunnels
        met = met or censored.censor.count() > 0
        passed += page is not None
        if passed > PAGES_UNTOUCHED:
            raise Untouched("the censor does not stop the protocol in use")
        return None

    after = wait_for_page(censored.internet, ask)
    return NextPage(seconds=time.monotonic() - begin, before=before, after=after)
