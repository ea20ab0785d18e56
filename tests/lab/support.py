# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the stand-ins' tests need: a TUN with private routing on the client, and a core to start."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab import addresses as plan
from psiphon_lab.dns_message import TXT
from psiphon_lab.judge import Flow
from psiphon_lab.namespace import PATIENCE, LabError
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.tun_device import make_persistent_tun
from psiphon_lab.world import World, add_address, find_link

CORE_UID = 23456
TUN = "PsiphonTUN"
FETCH = """
import json, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(json.load(opener.open(sys.argv[1], timeout=30))["address"])
"""
ASK = """
import socket, sys
from psiphon_lab.dns_message import encode_query, read_answers
server, name, kind = sys.argv[1], sys.argv[2], int(sys.argv[3])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(float(sys.argv[4]))
sock.sendto(encode_query(7, name, kind), (server, 53))
print(",".join(read_answers(sock.recv(4096))[2]))
"""


SILENT = """
import socket, sys
from psiphon_lab.dns_message import encode_query
target, source, port, then, then_port = sys.argv[1:]
def ask(address, source, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(60)
    sock.bind((source, 0))
    sock.sendto(encode_query(7, "www.lab.example", 1) if port == 53 else b"hello", (address, port))
    return sock
silent = ask(target, source, int(port))
ask(then, "", int(then_port)).recv(4096)
silent.setblocking(False)
try:
    print("answered", silent.recv(4096))
except BlockingIOError:
    print("silent")
"""


class CoreProcess:
    """A running core and its notices."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.raw = b""

    def read(self, timeout: float) -> bool:
        """Read more of standard error; False at its end, or if nothing comes for `timeout` seconds."""
        assert self.child.stderr is not None
        if not select.select([self.child.stderr], [], [], timeout)[0]:
            return False
        chunk = os.read(self.child.stderr.fileno(), 1 << 20)
        self.raw += chunk
        return bool(chunk)

    def notices(self, kind: str) -> list[dict[str, Any]]:
        """The data of all well-formed notices of a kind, so far."""
        found = []
        for line in self.raw.split(b"\n")[:-1]:
            try:
                notice = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(notice, dict) and notice.get("noticeType") == kind:
                found.append(notice["data"])
        return found

    def wait_for(self, kind: str, data: dict[str, Any] | None = None, *, at_least: int = 1) -> float:
        """Read until there are notices of that kind (and data); returns the seconds that took."""
        start = time.monotonic()
        while True:
            found = [item for item in self.notices(kind) if data is None or item == data]
            if len(found) >= at_least:
                return time.monotonic() - start
            if time.monotonic() - start > PATIENCE:
                raise LabError(f"no {kind}: {self.raw[-2000:]!r}")
            if not self.read(0.2):
                assert self.child.poll() is None, (kind, self.child.returncode, self.raw[-2000:])

    def read_to_end(self) -> None:
        """Read to the end, when no process has the other end open any more."""
        assert self.child.stderr is not None
        while self.read(PATIENCE):
            pass
        assert select.select([self.child.stderr], [], [], 0)[0], "the core did not end"

    def is_pending(self, number: signal.Signals, *, which: str) -> bool:
        """Whether a signal is blocked ("SigBlk") or pending ("ShdPnd"); see /proc/PID/status in proc(5)."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:"))
        return bool(int(mask, 16) & 1 << number - 1)

    def finish(self) -> int:
        """Read until the process ends; returns its exit code, negative for a signal."""
        deadline = time.monotonic() + PATIENCE
        while self.read(0.05) or self.child.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"no end: {self.raw[-2000:]!r}")
        return self.child.wait()


@dataclass
class Tunnel:
    """A world in which a core can run."""

    world: World
    server: ServerProcess
    faults: Path
    wrapper: Path
    data: Path
    cores: list[CoreProcess] = field(default_factory=list)
    old_flows: int = 0

    def config(self, **changes: object) -> Path:
        """Write a configuration file in the real core's form; None leaves a key out."""
        values: dict[str, object] = {
            "PropagationChannelId": "F" * 16,
            "SponsorId": "F" * 16,
            "TargetServerEntry": self.server.entry,
            "DisableRemoteServerListFetcher": True,
            "EmitDiagnosticNotices": True,
            "PacketTunnelTransparentDNSIPv4Address": plan.RESOLVER4,
            "LocalSocksProxyPort": 1081,
            "DisableLocalHTTPProxy": True,
            "EstablishTunnelTimeoutSeconds": 0,
            **changes,
        }
        path = self.world.directory / "core.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        path.chmod(0o644)
        return path

    def start_core(self, *flags: str, faults: tuple[dict[str, Any], ...] = (), **changes: object) -> CoreProcess:
        """Start the core as an ordinary user without any capability."""
        write_faults(self.faults, *faults)
        argv = [str(self.wrapper), "-config", str(self.config(**changes)), "-dataRootDirectory", str(self.data)]
        argv += ["-tunDevice", TUN, "-tunBindInterface", self.world.uplink.interface]
        argv += ["-tunDNSServers", f"{plan.RESOLVER4}", *flags]
        child = self.world.client.spawn(
            argv, uid=CORE_UID, bounding=(), no_new_privs=True, stderr=subprocess.PIPE, cwd=self.data
        )
        core = CoreProcess(child)
        self.cores.append(core)
        return core

    def connect(self, **changes: Any) -> CoreProcess:
        """Start the core and wait for its packet tunnel."""
        core = self.start_core(**changes)
        core.wait_for("Info", {"message": "DialPacketTunnelChannel: established channel"})
        return core

    def fetch(self, host: str) -> str:
        """The client's address as the laboratory's web page sees it, fetched as an ordinary user."""
        return self.python(FETCH, f"http://{host}/", uid=65534)

    def ask(self, server: str, name: str, kind: int, *, timeout: float = 30.0) -> str:
        """The answer to a DNS question over UDP."""
        return self.python(ASK, server, name, str(kind), str(timeout), uid=65534)

    def is_silent(self, target: str, source: str, port: int, *, then: tuple[str, int]) -> bool:
        """Whether a datagram stays without an answer until a later one, to `then`, is answered."""
        said = self.python(SILENT, target, source, str(port), then[0], str(then[1]), uid=65534)
        assert said == "silent" or said.startswith("answered"), said
        return said == "silent"

    def resolver_is_silent(self) -> bool:
        """Whether the in-tunnel resolver does not answer."""
        return "timed out" in self.ask(plan.RESOLVER4, plan.RESOLVER_NAME, TXT, timeout=0.4)

    def new_flows(self) -> list[Flow]:
        """The server's record since this test began. It counts: a new connection may have the ports of an old one."""
        return self.server.list_flows()[self.old_flows :]

    def begin(self) -> None:
        """Prepare for the next test: no core, no faults, no data."""
        for core in self.cores:
            if core.child.poll() is None:
                core.child.kill()
            core.child.wait()
        self.cores.clear()
        write_faults(self.faults)
        self.old_flows = len(self.server.list_flows())

    def python(self, script: str, *args: str, uid: int = 0) -> str:
        """Run a script on the client; returns what it printed, or "failed" and its last line."""
        identity: dict[str, Any] = {"uid": uid} if uid else {}
        done = self.world.client.run([sys.executable, "-c", script, *args], check=False, **identity)
        return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip().splitlines()[-1]}"


def set_up_tun(world: World) -> None:
    """Make a persistent TUN for the core's uid, and routing that sends everybody else through it."""
    world.client.call(lambda: make_persistent_tun(TUN, owner=CORE_UID))

    def inside(ipr: Any) -> None:
        add_address(ipr, TUN, "10.200.3.1/24", "fd42:42:42::1/64")
        index = find_link(ipr, TUN)
        for family in (2, 10):
            ipr.route("add", family=family, dst="default", oif=index, table=100)
            ipr.rule("add", family=family, table=254, priority=99, uid_range=f"{CORE_UID}:{CORE_UID}")
            ipr.rule("add", family=family, table=100, priority=100)

    world.client.netlink(inside)


@contextlib.contextmanager
def open_tunnel(*, ipv6: bool = True, allow_bogons: bool = True) -> Iterator[Tunnel]:
    """A world, the stand-in server, a TUN on the client, and all that a core needs."""
    with World() as world, run_server(world, ipv6=ipv6, allow_bogons=allow_bogons) as server:
        set_up_tun(world)
        data = world.directory / "data"
        data.mkdir()
        os.chown(data, CORE_UID, CORE_UID)
        faults = world.directory / "faults.json"
        yield Tunnel(
            world=world,
            server=server,
            faults=faults,
            wrapper=write_core_wrapper(world.directory, faults),
            data=data,
        )
