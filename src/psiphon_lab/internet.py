# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An internet like the real one: tunnel servers in several regions, with several protocols, and their list's host."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.judge import Evidence, Flow, world_evidence
from psiphon_lab.list_host import PORT as LIST_PORT
from psiphon_lab.list_host import ListHost, run_list_host
from psiphon_lab.real_server import RealServer, run_real_server
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.world import World

PLACES = (plan.FIRST_PLACE, *plan.MORE_PLACES)
Server = ServerProcess | RealServer


@dataclass(frozen=True, kw_only=True)
class Internet:
    """Servers by region, and the host with the list.

    Like a single server it has an entry and flows: the first server's entry, and the flows of all.
    """

    world: World
    servers: Mapping[str, Server]
    list_host: ListHost
    ports: Mapping[str, int]

    @property
    def entry(self) -> str:
        """The first server's entry."""
        return next(iter(self.servers.values())).entry

    def find_region(self, address: str | None) -> str | None:
        """The region of the server with that address."""
        places = (server.place for server in self.servers.values())
        return next((place.region for place in places if address in (place.address4, place.address6)), None)

    def publish(self, *regions: str) -> bytes:
        """Publish a list of the servers in these regions on the list's host; returns the signed file."""
        return self.list_host.publish(*(self.servers[region].entry for region in regions))

    def sign(self, *regions: str) -> bytes:
        """A signed list that is not published."""
        return self.list_host.signer.sign(self.servers[region].entry for region in regions)

    def read_flows(self) -> frozenset[Flow]:
        """The records of the servers and of the list's host."""
        return self.read_tunnels() | self.list_host.read_flows()

    def read_tunnels(self) -> frozenset[Flow]:
        """The records of the servers."""
        return frozenset().union(*(server.read_flows() for server in self.servers.values()))

    @contextlib.contextmanager
    def hold_servers(self) -> Iterator[None]:
        """Stop the servers' processes during the block: their kernels accept connections, but nothing answers."""
        pids = [server.pid for server in self.servers.values()]
        for pid in pids:
            os.killpg(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.killpg(pid, signal.SIGCONT)

    def keep(self) -> None:
        """Leave all of it running when the block ends."""
        for server in self.servers.values():
            server.keep()
        self.list_host.keep()

    def keep_core_ports(self) -> None:
        """Have the kernel assign the core's ports to sockets of the client that bind none. Probes bind other ports.

        So a connection that a censor has stopped, and that no server could record, is recognised by its source port.
        """
        span = f"{CORE_PORTS.start} {CORE_PORTS.stop - 1}"
        self.world.client.set_sysctls({"ipv4/ip_local_port_range": span})

    def judge_by(self) -> Evidence:
        """The current evidence. Connections from the core's ports to a server or the list's host are the core's."""
        tunnels = self.judge_tunnels()
        lists = {(plan.LIST_HOST4, LIST_PORT), (plan.LIST_HOST6, LIST_PORT)}
        return replace(tunnels, flows=self.read_flows(), servers=tunnels.servers | lists)

    def judge_tunnels(self) -> Evidence:
        """The same for a machine that may ask the list's host through the tunnel only."""
        places = [server.place for server in self.servers.values()]
        servers = {(address, port) for place in places for address in (place.address4, place.address6)
                   for port in self.ports.values()}  # fmt: skip
        return world_evidence(self.read_tunnels(), core_ports=CORE_PORTS, servers=servers)


@contextlib.contextmanager
def open_internet(world: World, *, program: Path | None = None) -> Iterator[Internet]:
    """Start servers in every region, and the list's host, without a list yet.

    Args:
        world: the world of their hosts.
        program: a real psiphond to use instead of the stand-in server.
    """
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        ports = {"OSSH": plan.SERVER_PORT, "TLS-OSSH": plan.SERVER_TLS_PORT} if program is None else plan.REAL_PORTS
        for place in PLACES:
            if place.host not in world.hosts:
                world.add_server_host(place)
            if program is None:
                servers[place.region] = stack.enter_context(run_server(world, place=place, region=None))
            else:
                servers[place.region] = stack.enter_context(run_real_server(world, program, place=place, ports=ports))
        list_host = stack.enter_context(run_list_host(world))
        yield Internet(world=world, servers=servers, list_host=list_host, ports=ports)
