# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A world: all hosts of the laboratory, connected, with a capture on each wire of the client.

    container -- ctr0 [client] eth0 ===*== provider A == backbone == internet
                          eth1         |                  |    |
                            |      neighbour              |  server
                            +===*=========== provider B ==+

The stars are captures: on the providers' ends of the client's cables, outside the machine under test.

Each world has its own namespaces, so any number of worlds can exist at the same time with the same addresses.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B, Lan, Place
from psiphon_lab.capture import Capture
from psiphon_lab.frames import Frame
from psiphon_lab.namespace import Host, LabError, begin_host, finish_host
from psiphon_lab.topology import (
    add_address,
    add_cable,
    add_route,
    add_server_host,
    find_link,
    wait_operational,
    wire_up,
)
from psiphon_lab.waiting import wait_ready, wait_until

__all__ = ["World", "add_address", "add_cable", "add_route", "find_link", "wait_ready", "wait_until"]

HOST_NAMES = ("client", "provider_a", "provider_b", "backbone", "server", "internet", "neighbour", "container")
# The host whose process removes the world's files: one that lives as long as the world, unlike the client.
_LAST_HOST = "backbone"
RT_PROTO_DHCP = 16
RT_PROTO_RA = 9
UPLINK_METRIC = 100
_Service = tuple[Host, str, str, list[str]]
"""Host, role, the resolver's mark, the addresses to listen on."""


class World:
    """The laboratory's network. Use as a context manager; everything ends with it or with this process.

    directory: for records, captures and server files; None for a temporary one. forwarding: whether the client forwards
    for its container. expose: paths that ordinary users on the hosts must reach although they are below a private
    directory (a core's binary below /root, for example). captures: whether to capture the client's wires, from before
    they are up.
    """

    host_names: Sequence[str] = HOST_NAMES
    """The hosts that this process opens."""

    client: Host
    provider_a: Host
    provider_b: Host
    backbone: Host
    server: Host
    internet: Host
    neighbour: Host
    container: Host

    def __init__(
        self,
        *,
        directory: Path | None = None,
        forwarding: bool = True,
        expose: Sequence[Path] = (),
        captures: bool = True,
    ) -> None:
        self._wanted_directory = directory
        self._forwarding = forwarding
        self._expose = tuple(expose)
        self._captures = captures
        self._stack = contextlib.ExitStack()
        self._kept = False
        self._remove: Path | None = None
        self.hosts: dict[str, Host] = {}
        self.captures: dict[str, Capture] = {}
        self.uplink: Lan = LAN_A
        self.directory = Path()

    @property
    def shared(self) -> Path:
        """A directory that hosts outside the client have under the same path."""
        return self.directory

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = self._make_directory(stack)
            stack.callback(self._close_hosts)
            self._open_hosts()
            self.prepare_hosts()
            wire_up(self._own_hosts(), forwarding=self._forwarding)
            self._start_services(self._own_services())
            if self._captures:
                for lan in (LAN_A, LAN_B):
                    pcap = self.directory / f"{lan.name}.pcap"
                    self.captures[lan.name] = Capture(self.hosts[lan.name], lan.port, wire=lan.name, pcap=pcap)
                    stack.callback(self.captures[lan.name].stop)
            self._connect_client()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def prepare_hosts(self) -> None:
        """What a world with other hosts does before they are connected."""

    def _connect_client(self) -> None:
        self.client.set_resolv_conf(f"nameserver {LAN_A.router4}\nnameserver {LAN_A.router6}\n")
        self.connect_uplink(LAN_A)

    def keep(self) -> None:
        """Let the hosts outlive this process; `look_around` returns the commands that enter and end them."""
        self._kept = True
        for host in self.hosts.values():
            host.keep()

    def look_around(self) -> dict[str, str]:
        """For each host a command that opens a shell on it; under the key "end" a command that ends the world."""
        commands = {name: f"nsenter -t {host.pid} -n -m -u" for name, host in self.hosts.items()}
        return {**commands, "end": f"kill {' '.join(str(host.pid) for host in self.hosts.values())}"}

    def _make_directory(self, stack: contextlib.ExitStack) -> Path:
        if self._wanted_directory is not None:
            directory = self._wanted_directory
            directory.mkdir(parents=True, exist_ok=True)
        else:
            directory = Path(tempfile.mkdtemp(prefix="psiphon-lab-"))
            stack.callback(self._remove_directory, directory)
            self._remove = directory
        directory.chmod(0o755)  # ordinary users on the hosts read resolv.conf and the client's files here
        return directory

    def _remove_directory(self, directory: Path) -> None:
        if not self._kept:
            shutil.rmtree(directory, ignore_errors=True)

    def _open_hosts(self) -> None:
        expose = (self.directory, *self._expose)
        for name in self.host_names:
            remove = self._remove if name == _LAST_HOST else None
            own = self.directory / "hosts" / name
            self.hosts[name] = begin_host(name, directory=own, expose=expose, remove=remove)
        for name, host in self.hosts.items():
            setattr(self, name, finish_host(host))

    def _own_hosts(self) -> dict[str, Host]:
        """The hosts to connect and configure."""
        return self.hosts

    def _close_hosts(self) -> None:
        for host in self.hosts.values():
            host.begin_close()
        for host in self.hosts.values():
            host.close()

    def add_server_host(self, place: Place) -> Host:
        """Another host for a tunnel server, with its resolver and pages; it ends with the world."""
        own = self.directory / "hosts" / place.host
        host = finish_host(begin_host(place.host, directory=own, expose=(self.directory, *self._expose)))
        self.hosts[place.host] = host
        add_server_host(host, self.backbone, place)
        self._start_services(self._server_services(host, place))
        return host

    # -- services -------------------------------------------------------------------------------------------------

    def record_path(self, name: str) -> Path:
        """The file into which the services of host `name` write one JSON line for each request."""
        return self.directory / f"{name}.services.jsonl"

    def read_record(self, name: str) -> list[dict[str, Any]]:
        """The requests to the services of host `name` so far."""
        path = self.record_path(name)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _server_services(self, host: Host, place: Place) -> list[_Service]:
        host.set_resolv_conf(f"nameserver {plan.SERVER_RESOLVER4}\n")
        bind = [plan.SERVER_RESOLVER4, plan.SERVER_RESOLVER6, place.address4, place.address6]
        return [(host, "internet", plan.MARK_TUNNEL, bind)]

    def _own_services(self) -> list[_Service]:
        return [
            (self.internet, "internet", plan.MARK_INTERNET, []),
            (self.provider_a, "resolver", plan.MARK_LAN, [LAN_A.router4, LAN_A.router6]),
            (self.provider_b, "resolver", plan.MARK_LAN, [LAN_B.router4, LAN_B.router6]),
            (self.neighbour, "internet", plan.MARK_LAN, []),
            *self._server_services(self.server, plan.FIRST_PLACE),
        ]

    def _start_services(self, wanted: Sequence[_Service]) -> None:
        started = []
        for host, role, mark, bind in wanted:
            argv = ["--role", role, "--mark", mark, "--record", str(self.record_path(host.name))]
            for address in bind:
                argv += ["--bind", address]
            child = host.spawn_module("psiphon_lab.host_services", *argv, stdout=subprocess.PIPE)
            started.append((f"services on {host.name}", child))
        for what, child in started:
            wait_ready(child, what)

    # -- the client's uplinks -----------------------------------------------------------------------------------

    def connect_uplink(self, lan: Lan, *, metric: int = UPLINK_METRIC) -> None:
        """Connect the client to a provider as a network manager would: link, carrier, addresses, default routes."""

        def inside(ipr: Any) -> None:
            index = find_link(ipr, lan.interface)
            ipr.link("set", index=index, state="up")
            wait_operational(ipr, lan.interface)
            add_address(ipr, lan.interface, f"{lan.client4}/{lan.prefix4}", f"{lan.client6}/{lan.prefix6}")
            add_route(ipr, "default", lan.router4, proto=RT_PROTO_DHCP, oif=index, priority=metric)
            add_route(ipr, "default", lan.router6, proto=RT_PROTO_RA, oif=index, priority=metric)

        self.set_carrier(lan, up=True)
        self.client.netlink(inside)
        self._wait_port(lan)
        self.uplink = lan

    def _wait_port(self, lan: Lan) -> None:
        self.hosts[lan.name].netlink(lambda ipr: wait_operational(ipr, lan.port))

    def disconnect_uplink(self, lan: Lan) -> None:
        """Disconnect the client from a provider: carrier lost, then link down, which removes addresses and routes."""

        def inside(ipr: Any) -> None:
            index = find_link(ipr, lan.interface)
            ipr.link("set", index=index, state="down")
            ipr.flush_addr(index=index)

        self.set_carrier(lan, up=False)
        self.client.netlink(inside)

    def set_carrier(self, lan: Lan, *, up: bool) -> None:
        """Switch the carrier of the client's cable on or off, at the provider's end."""

        def inside(ipr: Any) -> None:
            ipr.link("set", index=find_link(ipr, lan.port), state="up" if up else "down")

        self.hosts[lan.name].netlink(inside)

    def plug_b(self) -> None:
        """Plug in provider B's cable beside A's, with a better route, as with a dock or a second interface."""
        self.connect_uplink(LAN_B, metric=UPLINK_METRIC // 2)

    def unplug_b(self) -> None:
        """Unplug provider B's cable again, so that A's remains."""
        self.disconnect_uplink(LAN_B)
        self.uplink = LAN_A

    def move_to_provider_b(self) -> None:
        """Move the uplink: unplug A's cable, then plug in B's."""
        self.disconnect_uplink(LAN_A)
        self.connect_uplink(LAN_B)

    def move_to_provider_a(self) -> None:
        """Move the uplink back."""
        self.disconnect_uplink(LAN_B)
        self.connect_uplink(LAN_A)

    def renew_client(self, *, directory: Path) -> None:
        """Give the client new, empty namespaces and move its cables there: for the network, this is a power cycle.

        Everything on the old client ends. The cables are unplugged and lose their addresses, and the cable to the
        container is not moved. directory: for the new client's files.
        """
        old = self.client
        new = finish_host(begin_host("client", directory=directory, expose=(self.directory, *self._expose)))

        def move(ipr: Any) -> None:
            for lan in (LAN_A, LAN_B):
                ipr.link("set", index=find_link(ipr, lan.interface), net_ns_fd=new.netns_path)

        try:
            old.netlink(move)
        except BaseException:
            new.close()
            raise
        self.client = self.hosts["client"] = new
        old.close()

    # -- evidence ---------------------------------------------------------------------------------------------------

    def mark(self) -> dict[str, int]:
        """A point in all captures, for `frames_since`."""
        return {wire: capture.mark() for wire, capture in self.captures.items()}

    def frames_since(self, mark: dict[str, int] | None = None) -> list[Frame]:
        """Frames from the client after `mark`, on all wires, by time. Raises LabError if a capture lost frames."""
        frames: list[Frame] = []
        for wire, capture in self.captures.items():
            frames += capture.frames_since(0 if mark is None else mark[wire])
            if capture.dropped or not capture.alive:
                raise LabError(f"the capture on {wire} lost frames: nothing can be concluded from it")
        return sorted((frame for frame in frames if frame.from_client), key=lambda frame: frame.time)
