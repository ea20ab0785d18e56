# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A healthy machine to break: real rules and routes in a network namespace, real files in a scratch root, and a system
that can be told what else to say. What is slow to read of a healthy kernel is read once and given again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.integration.kernel import Kernel, open_kernel

from psiphon_lab.namespace import PATIENCE
from psiphon_lab.waiting import wait_until
from psiphon_vpn.accounts import User
from psiphon_vpn.config import Settings, parse_settings
from psiphon_vpn.diagnose.checks.dns import ASK_AS_PROGRAMS_DO
from psiphon_vpn.diagnose.checks.routes import BONDS
from psiphon_vpn.diagnose.engine import run_once
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Result, Verdict
from psiphon_vpn.diagnose.network import Network
from psiphon_vpn.diagnose.registry import CHECKS
from psiphon_vpn.diagnose.system import Answer, RealSystem, Service
from psiphon_vpn.errors import UserError
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.reading import Reading
from psiphon_vpn.linux.routes import apply_routes, apply_rules
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.sysctl import apply_sysctls
from psiphon_vpn.linux.traffic import NetlinkTraffic, Traffic
from psiphon_vpn.linux.tun import ensure_tun
from psiphon_vpn.network.uplink import find_neighbourhood
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table, build_drop_only
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard, build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Identity, Links, Policy, State
from psiphon_vpn.policy.onlink import OnLink
from psiphon_vpn.policy.own_tables import FRAMES, GUARD
from psiphon_vpn.policy.plumbing import LINK_LOCAL
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.policy.traffic_control import Filter
from psiphon_vpn.policy.values import InterfaceName, parse_addresses, parse_names
from psiphon_vpn.system import layout as places
from psiphon_vpn.system.layout import Layout

UID = 64190
IDENTITY = Identity(uid=UID, gid=UID, network_manager_uids=(0,))
DAEMON_PID, CORE_PID = 4_100_001, 4_100_002  # above pid_max: no process can have them
NOW = 1_790_000_000.0
CAPS = "0000000000003400"
EMPTY = "0000000000000000"
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x3e\x00" + b"a tunnel core"


def render_process(caps: str, bounding: str, *, parent: int = 1) -> bytes:
    lines = {
        "Uid": "\t".join([str(UID)] * 4),
        "Gid": "\t".join([str(UID)] * 4),
        "CapInh": caps,
        "CapPrm": caps,
        "CapEff": caps,
        "CapBnd": bounding,
    }
    lines |= {"CapAmb": caps, "NoNewPrivs": "1", "PPid": str(parent), "Name": "a-program"}
    return "".join(f"{key}:\t{value}\n" for key, value in lines.items()).encode()


def healthy_units() -> dict[str, dict[str, str]]:
    killswitch = places.KILLSWITCH_UNIT
    common = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success"}
    common |= {"DropInPaths": "", "NeedDaemonReload": "no"}
    units = {
        name: {**common, "Id": name, "FragmentPath": f"/usr/lib/systemd/system/{name}"} for name in places.UNIT_FILES
    }
    units[killswitch] |= {"SubState": "exited", "Before": "sysinit.target network-pre.target"}
    units[killswitch] |= {"Wants": "network-pre.target", "WantedBy": "sysinit.target"}
    units[killswitch]["ActiveEnterTimestampMonotonic"] = "1500000"
    units[places.KILLSWITCH_FAILED_UNIT] |= {"ActiveState": "inactive", "SubState": "dead"}
    units[places.GUARD_UNIT]["WantedBy"] = "sysinit.target"
    units[places.SERVICE_UNIT] |= {"WantedBy": "multi-user.target", "Restart": "always", "WatchdogUSec": "20s"}
    units[places.SLEEP_UNIT] |= {"ActiveState": "inactive", "SubState": "dead", "WantedBy": "sleep.target"}
    units[places.SERVERS_UNIT] |= {"ActiveState": "inactive", "SubState": "dead"}
    units[places.SERVERS_TIMER] |= {"SubState": "waiting", "WantedBy": "timers.target"}
    units["NetworkManager.service"] = {
        **common, "Requires": f"{killswitch} dbus.service", "After": f"{killswitch} network-pre.target",
        "ExecMainStartTimestampMonotonic": "2500000",
    }  # fmt: skip
    units["systemd-resolved.service"] = dict(common)
    return units


@dataclass
class Recording:
    """What a healthy kernel says."""

    answers: dict[str, Any] = field(default_factory=dict)


ASK = " ".join([sys.executable, "-I", "-c", ASK_AS_PROGRAMS_DO])


class SceneSystem(RealSystem):
    """The real system, but for what a scene says of users, units, processes and time."""

    def __init__(self, recording: Recording | None = None) -> None:
        self.recording = recording
        self.replaying = recording is not None and bool(recording.answers)
        self.units = healthy_units()
        self.commands: dict[str, Answer] = {
            "resolvectl --no-pager dns": Answer(code=0, out="Global: 10.200.3.2\nLink 2 (eth0): 192.0.2.1\n"),
            "resolvectl --no-pager domain": Answer(code=0, out="Global: ~.\nLink 2 (eth0): lan\n"),
            "resolvectl --no-pager llmnr": Answer(code=0, out="Global: no\nLink 2 (eth0): yes\n"),
            "resolvectl --no-pager mdns": Answer(code=0, out="Global: no\nLink 2 (eth0): yes\n"),
            ASK: Answer(code=0),
            "timedatectl show --property=NTPSynchronized --value": Answer(code=0, out="yes\n"),
        }
        self.files: dict[str, bytes] = {
            f"/proc/{DAEMON_PID}/status": render_process(CAPS, CAPS),
            f"/proc/{CORE_PID}/status": render_process(EMPTY, CAPS, parent=DAEMON_PID),
            **{f"/proc/{pid}/cgroup": b"0::/system.slice/psiphon-vpn.service\n" for pid in (DAEMON_PID, CORE_PID)},
            "/sys/class/rtc/rtc0/since_epoch": b"%d\n" % NOW,
            "/proc/uptime": b"3600.00 7200.00\n",
            "/proc/modules": b"nf_tables 311296 0 - Live 0x0\n",
            "/proc/thread-self/net/ip_tables_names": b"",
            "/proc/thread-self/net/ip6_tables_names": b"",
        }
        self.links: dict[str, Path] = {}
        self.shell, self.user = "/usr/sbin/nologin", True
        self.now, self.machine, self.answered = NOW, "x86_64", True
        self.status: dict[str, Any] = {
            "state": "OPEN", "reason": "open", "next_step": None, "since": "2026-01-02T03:04:05+00:00",
            "locked": True, "intent": "connected", "ipv6": False, "core_pid": CORE_PID,
            "moved_away": [],
            "servers": {"known": 3, "tried": 1, "protocols": ["OSSH"]}, "region_wanted": "CA",
            "regions_available": ["CA", "DE"],
            "layers": {"base": {"state": "ok", "detail": ""}},
        }  # fmt: skip
        self.down: UserError | None = None
        self.features: Features | None = None
        self.network: Callable[[Network], Network] = lambda network: network
        self.space: Callable[[Path, os.statvfs_result], Any] = lambda _path, space: space

    cards: tuple[str, ...] = ("eth0",)

    def _make_cards(self, network: Network) -> Network:
        """To the kernel the pairs that stand for cards here are none."""
        links = tuple(replace(link, card=link.name in self.cards) for link in network.snapshot.interfaces)
        return replace(network, snapshot=replace(network.snapshot, interfaces=links))

    def _recorded(self, key: str, read: Callable[[], Any]) -> Any:
        """Read it, or what the healthy kernel said. References are kept whatever the order in which they are asked."""
        if self.recording is None:
            return read()
        if key not in self.recording.answers:
            assert not self.replaying, f"the healthy machine was not asked for {key}"
            self.recording.answers[key] = read()
        return self.recording.answers[key]

    def run(self, argv: Sequence[str], *, timeout: float = 5.0) -> Answer:
        line = " ".join(argv)
        if line in self.commands:
            return self.commands[line]
        if argv[:2] == ["systemctl", "show"]:
            blocks = []
            for name in argv[4:]:
                unit = self.units.get(name, {"Id": name, "LoadState": "not-found", "ActiveState": "inactive"})
                blocks.append("".join(f"{key}={value}\n" for key, value in unit.items()))
            return Answer(code=0, out="\n".join(blocks))
        assert argv[0] == "nft", argv
        answer: Answer = self._recorded(line, lambda: RealSystem.run(self, argv, timeout=PATIENCE))
        return answer

    def read(self, path: Path) -> bytes:
        if str(path) in self.files:
            return self.files[str(path)]
        if str(path).startswith(("/proc/sys/net", "/proc/thread-self")):
            data: bytes | OSError = self._recorded(str(path), lambda: _or_error(lambda: RealSystem.read(self, path)))
            if isinstance(data, OSError):
                raise data
            return data
        return super().read(path)

    def parse_settings(self, content: bytes, path: Path) -> Settings:
        return parse_settings(content, path=path)  # here: a process for each of hundreds of scenes takes minutes

    def list_directory(self, path: Path) -> tuple[str, ...]:
        if path == Path("/proc"):
            return tuple(name.split("/")[2] for name in self.files if name.endswith("/status"))
        if names := [Path(name).name for name in self.files if Path(name).parent == path == BONDS]:
            return tuple(names)
        return super().list_directory(path)

    def read_link(self, path: Path) -> str:
        return "net:[1]" if path.name == "net" and path.parts[1] == "proc" else super().read_link(path)

    def hash(self, path: Path) -> str:
        return super().hash(self.links.get(str(path), path))

    def stat(self, path: Path, *, follow: bool = False) -> os.stat_result:
        return super().stat(self.links.get(str(path), path), follow=follow)

    def read_space(self, path: Path) -> Any:
        return self.space(path, super().read_space(path))

    def find_user(self, name: str) -> User | None:
        if not self.user:
            return None
        return User(name=name, uid=UID, gid=UID, login=self.shell)

    def find_group(self, name: str) -> int | None:
        return UID

    def find_network_managers(self) -> tuple[int, ...]:
        return IDENTITY.network_manager_uids

    def read_network(self) -> Network:
        return self.network(self._recorded("network", lambda: self._make_cards(RealSystem.read_network(self))))

    def read_features(self) -> Features:
        found: Features = self._recorded("features", lambda: RealSystem.read_features(self))
        return self.features or found

    def read_references(self, tables: Sequence[Table], links: Sequence[tuple[str, int]]) -> tuple[Reading | None, ...]:
        found: tuple[Reading | None, ...] = self._recorded(
            "references", lambda: RealSystem.read_references(self, tables, links)
        )
        return found

    def ask_service(self, runtime_dir: Path) -> Service:
        if self.down is not None:
            raise self.down
        return Service(status=self.status, pid=DAEMON_PID, uid=UID)

    def ask_resolver(self) -> bool:
        return self.answered

    def read_time(self) -> float:
        return self.now

    def read_machine(self) -> str:
        return self.machine


def _or_error(read: Callable[[], bytes]) -> bytes | OSError:
    try:
        return read()
    except OSError as error:
        return error


# -- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes | str, *, mode: int = 0o644, uid: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


def make_installation(root: Path) -> Layout:
    """Files as an installation leaves them, below a scratch root."""
    layout = Layout(root=root)
    boot = build_base_table(Policy(state=State.LOCKED, identity=IDENTITY))
    guard = build_wire_guard(IDENTITY).render()
    frames = build_frame_guard(IDENTITY)
    drop = build_drop_only(boot).render_replacement()
    rules = (
        (layout.boot_rules, boot.render_replacement()),
        (layout.guard_rules, guard),
        (layout.frame_rules, frames.render_replacement()),
        (layout.drop_rules, drop),
    )
    for path, text in rules:
        write(path, text)
    payload = [
        write(layout.python_dir / "psiphon_vpn" / "__init__.py", "version = 1\n"),
        write(layout.command, "#!/bin/sh\n", mode=0o755),
        write(layout.daemon, "#!/bin/sh\n", mode=0o755),
        *(write(layout.unit_dir / name, f"# {name}\n") for name in places.UNIT_FILES),
    ]
    write_manifest(layout, payload)
    write(layout.config, "socks_port = 1081\n", mode=0o600, uid=UID)
    layout.data_dir.mkdir(parents=True)
    for directory, mode in ((layout.state_dir, 0o700), (layout.runtime_dir, 0o755)):
        directory.mkdir(parents=True)
        directory.chmod(mode)
        os.chown(directory, UID, UID)
    write(layout.state_dir / "intent", "connected\n", mode=0o600, uid=UID)
    write(layout.install_journal, "{}\n", mode=0o600)
    os.utime(layout.install_journal, (NOW - 86400, NOW - 86400))
    make_core(layout)
    # By its place's descriptor: the name of a socket has at most 107 bytes (unix(7)), and pytest's are long.
    place = os.open(layout.runtime_dir, os.O_PATH)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"/proc/self/fd/{place}/control.sock")
    os.close(place)
    (layout.runtime_dir / "control.sock").chmod(0o660)
    os.chown(layout.runtime_dir / "control.sock", UID, UID)
    write(root / "etc/resolv.conf", "nameserver 192.0.2.1\n")
    write(root / "etc/systemd/resolved.conf.d/psiphon-vpn.conf", "[Resolve]\nDNS=10.200.3.2\n")
    write(root / "etc/shadow", "psiphon-user:!*:20000::::::\n", mode=0o600)
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "dev/net").mkdir(parents=True)
    os.mknod(root / "dev/net/tun", stat.S_IFCHR | 0o666, os.makedev(10, 200))
    return layout


def make_core(layout: Layout) -> None:
    directory = layout.core_dir / "0123abcd"
    write(directory / "psiphon-tunnel-core", ELF, mode=0o755, uid=UID)
    record = {"sha256": hashlib.sha256(ELF).hexdigest(), "size": len(ELF), "revision": "24b8381cc3", "blob": "b"}
    record |= {"architecture": "x86_64", "source": "/core", "installed_at": "2026-02-03T04:05:06+00:00"}
    write(directory / "record.json", json.dumps(record))
    layout.core_current.symlink_to(directory.name)


def write_manifest(layout: Layout, files: Sequence[Path]) -> None:
    entries = [
        {
            "path": "/" + str(path.relative_to(layout.root)),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "mode": f"{stat.S_IMODE(path.stat().st_mode):04o}",
            "owner": "root",
            "group": "root",
        }
        for path in files
    ]
    write(layout.program_manifest, json.dumps({"version": "1.2.3", "files": entries}))


# -- the kernel -------------------------------------------------------------------------------------------------------


class HealthyKernel(Kernel):
    """A namespace with an uplink, the TUN, and everything that the service puts there while it is open."""

    directory: Path
    """Where its holder is given what to load."""
    holder: subprocess.Popen[bytes] | None = None
    renewals: int = 0
    """How often the lease was taken."""
    listener: socket.socket | None = None

    def build(self, *, loopback: str = "lo") -> None:
        if loopback != "lo":
            self.ip("link", "set", "lo", "down", "name", loopback)
        self.ip("link", "set", loopback, "up")
        self.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        self.ip("link", "set", "far0", "up")
        self.ip("address", "add", "192.0.2.10/25", "dev", "eth0")
        self.ip("-6", "address", "add", "2001:db8:a::10/64", "dev", "eth0", "nodad")
        self.ip("link", "set", "eth0", "up")
        self.ip("route", "add", "default", "via", "192.0.2.1", "dev", "eth0")
        self.ip("-6", "route", "add", "default", "via", "2001:db8:a::1", "dev", "eth0")
        tun = self.with_routes(lambda ipr: ensure_tun(ipr, uid=UID))
        self.links = Links(
            tun_index=tun.index,
            uplink=InterfaceName("eth0"),
            wires=parse_names("eth0"),
            dhcp_servers=parse_addresses(["192.0.2.1"]),
            gateways=parse_addresses(["192.0.2.1", "2001:db8:a::1"]),
            on_link=self.read_on_link(),
        )
        settings = Settings()
        probes = parse_addresses(settings.ipv6_probe)
        self.policy = Policy(state=State.OPEN, identity=IDENTITY, links=self.links, ipv6_probe=probes)
        egress = build_egress_guard(IDENTITY, self.links.wires, self.links.dhcp_servers, on_link=self.links.on_link)
        assert egress is not None
        self.nft(build_base_table(self.policy).render_replacement())
        self.nft(egress.render_replacement())
        self.nft(build_arp_table().render_replacement())
        self.put_filter()
        self.hold_guard()
        self.with_routes(lambda ipr: apply_rules(ipr, build_rules(IDENTITY, loopback=loopback)))
        routes = build_routes(tun=True, open_ipv4=True, open_ipv6=False, ipv6_probe=settings.ipv6_probe)
        self.with_routes(lambda ipr: apply_routes(ipr, routes, tun.index))
        assert not self.host.call(lambda: apply_sysctls(GLOBAL_SYSCTLS))
        self.host.set_sysctls({"ipv4/ip_forward": 0, "ipv6/conf/all/forwarding": 0})

    def put_filter(self) -> None:
        index = int(self.host.run(["cat", "/sys/class/net/eth0/ifindex"]).stdout)

        async def work(ipr: RouteSocket) -> None:
            await Traffic(NetlinkTraffic(ipr)).fit({index: Filter.MARKED})

        self.with_routes(work)

    def read_on_link(self) -> OnLink:
        for _ in range(500):
            found = find_neighbourhood(self.with_routes(lambda _: read_snapshot()))
            if LINK_LOCAL in found.networks_ipv6:  # the kernel gives it once there is a carrier
                return found
            time.sleep(0.01)
        raise AssertionError("no link-local address came")

    def hold_guard(self) -> None:
        self.holder = self.host.spawn(
            ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.tell_holder(
            build_wire_guard(IDENTITY).render() + build_frame_guard(IDENTITY, parse_names("eth0")).render()
        )
        wait_until(lambda: self.has_table(*GUARD.address) and self.has_table(*FRAMES.address), "the guards")

    def tell_holder(self, text: str) -> None:
        """Have the holder carry out what only it may."""
        assert self.holder is not None
        assert self.holder.stdin is not None
        path = self.directory / f"order{len(list(self.directory.iterdir()))}.nft"
        path.write_text(text)
        self.holder.stdin.write(f'include "{path}"\n'.encode())
        self.holder.stdin.flush()

    def has_table(self, family: str, name: str) -> bool:
        return self.host.run(["nft", "list", "table", family, name], check=False).returncode == 0

    def release_guard(self) -> None:
        assert self.holder is not None
        self.holder.kill()
        self.holder.wait(timeout=60)
        wait_until(lambda: not self.has_table(*GUARD.address), "the end of the guards")

    def take_lease(self) -> None:
        place = f"inet {names.BASE_TABLE} {names.LEASE_SET}"
        elements = ", ".join(f'"{name}" timeout 5s' for name in (names.TUN_NAME, "lo"))
        self.nft(f"flush set {place}\nadd element {place} {{ {elements} }}\n")
        self.renewals += 1

    @contextlib.contextmanager
    def renewed_lease(self) -> Iterator[None]:
        """Renew the lease until the end of the block, as the service does: a look may take longer than one."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(names.LEASE_RENEW_SECONDS):
                self.take_lease()

        self.take_lease()
        thread = threading.Thread(target=renew, name="lease")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@contextlib.contextmanager
def open_healthy_kernel(*, loopback: str = "lo") -> Iterator[HealthyKernel]:
    with tempfile.TemporaryDirectory(prefix="psiphon-holder-") as directory, open_kernel() as bare:
        kernel = HealthyKernel(bare.host)
        kernel.directory = Path(directory)
        kernel.build(loopback=loopback)
        try:
            yield kernel
        finally:
            if kernel.listener is not None:
                kernel.listener.close()


@dataclass
class Scene:
    """A machine, and a way to diagnose it."""

    layout: Layout
    system: SceneSystem
    kernel: HealthyKernel | None = None

    def diagnose(self) -> dict[str, Result]:
        """One look; results by id."""

        def look() -> tuple[Result, ...]:
            return run_once(CHECKS, Facts(self.system, self.layout), seconds=PATIENCE)

        if self.kernel is not None:
            with self.kernel.renewed_lease() if self.lease else contextlib.nullcontext():
                return {result.check.id: result for result in self.kernel.host.call(look)}
        return {result.check.id: result for result in look()}

    lease: bool = True


def find_troubles(results: dict[str, Result]) -> set[str]:
    """Ids of what is not well: neither ok nor not applicable."""
    return {name for name, result in results.items() if result.verdict not in {Verdict.OK, Verdict.SKIPPED}}
