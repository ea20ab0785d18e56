"""A world: all the hosts of the laboratory, wired up, with a capture on every wire of the client.

    container -- ctr0 [client] eth0 ===*== provider A == backbone == internet
                          eth1         |                  |    |
                            |      neighbour              |  server
                            +===*=========== provider B ==+

The stars are captures: on the providers' ends of the client's cables, outside the machine under test.

Every world lives in namespaces of its own, so any number of them stand side by side with the same addresses.
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
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.capture import Capture
from psiphon_lab.frames import Frame
from psiphon_lab.namespace import Host, LabError, begin_host, finish_host
from psiphon_lab.topology import add_address, add_cable, add_route, find_link, wait_operational, wire_up
from psiphon_lab.waiting import wait_ready, wait_until

__all__ = ["World", "add_address", "add_cable", "add_route", "find_link", "wait_ready", "wait_until"]

HOST_NAMES = ("client", "provider_a", "provider_b", "backbone", "server", "internet", "neighbour", "container")
# The host whose anchor removes the world's files: one that lives as long as the world, as the client may not.
_KEEPER = "backbone"
RT_PROTO_DHCP = 16
RT_PROTO_RA = 9
UPLINK_METRIC = 100


class World:
    """The laboratory's network. Use as a context manager; everything ends with it or with this process.

    directory: for records, captures and server files; None makes a temporary one that is removed again.
    forwarding: whether the client forwards for its container. expose: paths that ordinary users on the hosts must
    reach although they lie below a private directory (a core's binary under /root, say). captures: whether the
    client's wires are captured from before they are up.
    """

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

    # -- life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self.directory = self._make_directory(stack)
            stack.callback(self._close_hosts)
            self._open_hosts()
            wire_up(self.hosts, forwarding=self._forwarding)
            self._start_services()
            if self._captures:
                for lan in (LAN_A, LAN_B):
                    pcap = self.directory / f"{lan.name}.pcap"
                    self.captures[lan.name] = Capture(self.hosts[lan.name], lan.port, wire=lan.name, pcap=pcap)
                    stack.callback(self.captures[lan.name].stop)
            self.client.set_resolv_conf(f"nameserver {LAN_A.router4}\nnameserver {LAN_A.router6}\n")
            self.connect_uplink(LAN_A)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def keep(self) -> None:
        """Let the hosts outlive this process; `look_around` says how to reach and how to end them."""
        self._kept = True
        for host in self.hosts.values():
            host.keep()

    def look_around(self) -> dict[str, str]:
        """A command for each host that opens a shell on it, and one under the key "end" that ends the world."""
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
        directory.chmod(0o755)  # ordinary users on the hosts read their resolv.conf and the client's files here
        return directory

    def _remove_directory(self, directory: Path) -> None:
        if not self._kept:
            shutil.rmtree(directory, ignore_errors=True)

    def _open_hosts(self) -> None:
        expose = (self.directory, *self._expose)
        for name in HOST_NAMES:
            remove = self._remove if name == _KEEPER else None
            own = self.directory / "hosts" / name
            self.hosts[name] = begin_host(name, directory=own, expose=expose, remove=remove)
        for name, host in self.hosts.items():
            setattr(self, name, finish_host(host))

    def _close_hosts(self) -> None:
        for host in self.hosts.values():
            host.begin_close()
        for host in self.hosts.values():
            host.close()

    # -- services -------------------------------------------------------------------------------------------------

    def record_path(self, name: str) -> Path:
        """The file into which the services of host `name` write one JSON line for each caller."""
        return self.directory / f"{name}.services.jsonl"

    def read_record(self, name: str) -> list[dict[str, Any]]:
        """What the services of host `name` have seen so far."""
        path = self.record_path(name)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _start_services(self) -> None:
        server_addresses = [plan.SERVER_RESOLVER4, plan.SERVER_RESOLVER6, plan.SERVER4, plan.SERVER6]
        wanted: list[tuple[Host, str, str, list[str]]] = [
            (self.internet, "internet", plan.MARK_INTERNET, []),
            (self.provider_a, "resolver", plan.MARK_LAN, [LAN_A.router4, LAN_A.router6]),
            (self.provider_b, "resolver", plan.MARK_LAN, [LAN_B.router4, LAN_B.router6]),
            (self.neighbour, "internet", plan.MARK_LAN, []),
            (self.server, "internet", plan.MARK_TUNNEL, server_addresses),
        ]
        self.server.set_resolv_conf(f"nameserver {plan.SERVER_RESOLVER4}\n")
        started = []
        for host, role, mark, bind in wanted:
            argv = ["--role", role, "--mark", mark, "--record", str(self.record_path(host.name))]
            for address in bind:
                argv += ["--bind", address]
            child = host.spawn_module("psiphon_lab.services", *argv, stdout=subprocess.PIPE)
            started.append((f"services on {host.name}", child))
        for what, child in started:
            wait_ready(child, what)

    # -- the client's uplinks -----------------------------------------------------------------------------------

    def connect_uplink(self, lan: Lan, *, metric: int = UPLINK_METRIC) -> None:
        """Plug the client into a provider as a network manager would: link, carrier, addresses, default routes."""

        def inside(ipr: Any) -> None:
            index = find_link(ipr, lan.interface)
            ipr.link("set", index=index, state="up")
            wait_operational(ipr, lan.interface)
            add_address(ipr, lan.interface, f"{lan.client4}/{lan.prefix4}", f"{lan.client6}/{lan.prefix6}")
            add_route(ipr, "default", lan.router4, proto=RT_PROTO_DHCP, oif=index, priority=metric)
            add_route(ipr, "default", lan.router6, proto=RT_PROTO_RA, oif=index, priority=metric)

        self.set_carrier(lan, up=True)
        self.client.netlink(inside)
        self.hosts[lan.name].netlink(lambda ipr: wait_operational(ipr, lan.port))
        self.uplink = lan

    def disconnect_uplink(self, lan: Lan) -> None:
        """Unplug the client from a provider: carrier lost, then link down; its addresses and routes go with it."""

        def inside(ipr: Any) -> None:
            index = find_link(ipr, lan.interface)
            ipr.link("set", index=index, state="down")
            ipr.flush_addr(index=index)

        self.set_carrier(lan, up=False)
        self.client.netlink(inside)

    def set_carrier(self, lan: Lan, *, up: bool) -> None:
        """Give or take the carrier of the client's cable, from the provider's end."""

        def inside(ipr: Any) -> None:
            ipr.link("set", index=find_link(ipr, lan.port), state="up" if up else "down")

        self.hosts[lan.name].netlink(inside)

    def plug_b(self) -> None:
        """Provider B's cable comes up beside A's, with a better route, as with a dock or a second interface."""
        self.connect_uplink(LAN_B, metric=UPLINK_METRIC // 2)

    def unplug_b(self) -> None:
        """Provider B's cable goes again; A's, if it was there, is what is left."""
        self.disconnect_uplink(LAN_B)
        self.uplink = LAN_A

    def move_to_provider_b(self) -> None:
        """The uplink moves: A's cable is pulled, then B's plugged."""
        self.disconnect_uplink(LAN_A)
        self.connect_uplink(LAN_B)

    def move_to_provider_a(self) -> None:
        """The uplink moves back."""
        self.disconnect_uplink(LAN_B)
        self.connect_uplink(LAN_A)

    def renew_client(self, *, directory: Path) -> None:
        """Give the client new, empty namespaces and move its cables there, as power-off and power-on do to a kernel.

        Everything on the old client ends. Cables are unplugged on the way, and have no addresses. The cable to the
        container stays behind. directory: for the new client's files.
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
        """What came out of the client after `mark`, on all wires, by time. Raises LabError if evidence was lost."""
        frames: list[Frame] = []
        for wire, capture in self.captures.items():
            frames += capture.frames_since(0 if mark is None else mark[wire])
            if capture.dropped or not capture.alive:
                raise LabError(f"the capture on {wire} lost frames: nothing can be concluded from it")
        return sorted((frame for frame in frames if frame.from_client), key=lambda frame: frame.time)
