# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""For each check, the one thing to break. `also` names what else must then be wrong, because it is the same thing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.diagnose.scene import (
    ASK,
    CAPS,
    CORE_PID,
    DAEMON_PID,
    EMPTY,
    IDENTITY,
    HealthyKernel,
    Scene,
    render_process,
    write,
)

from psiphon_lab.waiting import wait_until
from psiphon_vpn.diagnose.system import Answer
from psiphon_vpn.errors import DaemonDownError
from psiphon_vpn.network.uplink import Interface
from psiphon_vpn.policy.guards import build_egress_guard, build_wire_guard
from psiphon_vpn.policy.own_tables import FRAMES
from psiphon_vpn.policy.values import parse_names
from psiphon_vpn.system import layout as places

Act = Callable[[Scene], None]


@dataclass(frozen=True, kw_only=True)
class Break:
    """How to break what a check looks at. kernel: it takes a real namespace. opens: exit code 2."""

    act: Act
    kernel: bool = False
    also: frozenset[str] = frozenset()
    opens: bool = False


def kernel(act: Callable[[HealthyKernel], object], *also: str, opens: bool = False) -> Break:
    def inside(scene: Scene) -> None:
        assert scene.kernel is not None
        act(scene.kernel)

    return Break(act=inside, kernel=True, also=frozenset(also), opens=opens)


def system(act: Callable[[Any], object], *also: str, opens: bool = False) -> Break:
    return Break(act=lambda scene: _ignore(act(scene.system)), also=frozenset(also), opens=opens)


def files(act: Callable[[Any], object], *also: str) -> Break:
    return Break(act=lambda scene: _ignore(act(scene.layout)), also=frozenset(also))


def _ignore(_value: object) -> None:
    pass


def unit(name: str, **properties: str) -> Break:
    return system(lambda it: it.units.setdefault(name, {}).update(properties))


def status(*also: str, opens: bool = False, **values: object) -> Break:
    return system(lambda it: it.status.update(values), *also, opens=opens)


def feature(name: str) -> Break:
    def act(it: Any) -> None:
        it.features = replace(it.recording.answers["features"], **{name: False})

    return system(act)


def change_tun(**changes: Any) -> Break:
    def act(it: Any) -> None:
        it.network = lambda network: replace(network, tun=replace(network.tun, **changes))

    return system(act)


def _share_tun(it: Any) -> None:
    def change(network: Any) -> Any:
        return replace(network, tun=replace(network.tun, attributes={**network.tun.attributes, "GROUP": 0}))

    it.network = change


def change_links(change: Callable[[tuple[Interface, ...]], tuple[Interface, ...]]) -> Break:
    def act(it: Any) -> None:
        it.network = lambda network: replace(
            network, snapshot=replace(network.snapshot, interfaces=change(network.snapshot.interfaces))
        )

    return system(act)


def space(place: str, **changes: int) -> Break:
    fields = [name for name in dir(os.statvfs("/")) if name.startswith("f_")]

    def act(scene: Scene) -> None:
        def change(path: Path, found: os.statvfs_result) -> Any:
            if not path.is_relative_to(scene.layout.root / place):
                return found
            return SimpleNamespace(**{**{name: getattr(found, name) for name in fields}, **changes})

        scene.system.space = change

    return Break(act=act)


def _open_all(it: HealthyKernel) -> None:
    it.nft("insert rule inet psiphon_filter output meta skuid != 64190 accept\n")
    it.release_guard()


def _share_number(it: Any) -> None:
    write(it.root / "etc/passwd", f"somebody:x:{IDENTITY.uid}:1000::/home/somebody:/bin/sh\n".encode())


def _open_forward(it: HealthyKernel) -> None:
    it.nft("insert rule inet psiphon_filter forward accept\n")
    it.release_guard()
    it.host.set_sysctls({"ipv4/ip_forward": 1})


def _unown(it: HealthyKernel) -> None:
    it.release_guard()
    it.nft(build_wire_guard(IDENTITY).render(flags=""))


def guard_lo_only(it: HealthyKernel) -> None:
    table = build_egress_guard(IDENTITY, parse_names("lo"))
    assert table is not None
    it.nft(table.render_replacement())


def _listen(it: HealthyKernel) -> None:
    it.listener = it.host.call(lambda: socket.create_server(("0.0.0.0", 1081)))


def _chmod(path: Path, mode: int) -> None:
    path.chmod(mode)


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _edit_rules(path: Path) -> None:
    path.write_text(path.read_text().replace("policy drop", "policy accept", 1))


def _drop_in(scene: Scene) -> None:
    path = "/etc/systemd/system/psiphon-vpn.service.d/override.conf"
    write(scene.layout.root / path.lstrip("/"), "[Service]\nUser=root\n")
    scene.system.units[places.SERVICE_UNIT]["DropInPaths"] = path


def drop_in_sandbox(scene: Scene) -> None:
    path = scene.layout.unit_dir / "psiphon-guard.service.d/extra.conf"
    write(path, "# harmless?\n[Service]\nTimeoutStartSec=5\nReadWritePaths=/\n")
    scene.system.units[places.GUARD_UNIT]["DropInPaths"] = "/" + str(path.relative_to(scene.layout.root))


def _flush_at_boot(scene: Scene) -> None:
    scene.system.units["nftables.service"] = {
        "LoadState": "loaded",
        "UnitFileState": "enabled",
        "ActiveState": "active",
    }
    write(scene.layout.root / "etc/nftables.conf", "flush ruleset\n")


def _forward_without_chain(it: Any) -> None:
    it.files["/proc/sys/net/ipv4/ip_forward"] = b"1\n"
    it.commands["nft list chains"] = Answer(code=0, out="table inet other {\n}\n")


def _uninstall(scene: Scene) -> None:
    import shutil

    for path in (scene.layout.program_dir, scene.layout.unit_dir):
        shutil.rmtree(path)


def _forget_revision(it: Any) -> None:
    it.core_record.write_text(it.core_record.read_text().replace('"24b8381cc3"', "null"))


def _move_core(scene: Scene) -> None:
    other = write(scene.layout.root / "tmp/other-core", "another")
    scene.system.links[f"/proc/{CORE_PID}/exe"] = other


def _delete_base(scene: Scene) -> None:
    assert scene.kernel is not None
    scene.lease = False
    scene.kernel.nft("delete table inet psiphon_filter\n")


def _set_back(scene: Scene) -> None:
    scene.system.now = 1e9
    scene.system.files["/sys/class/rtc/rtc0/since_epoch"] = b"1000000000\n"


def delete_frames(it: HealthyKernel) -> None:
    it.tell_holder(f"delete table {FRAMES}\n")
    wait_until(lambda: not it.has_table(*FRAMES.address), "the end of the frame guard")


HELD = ("lock.wire-guard", "lock.frame-guard")
"""What goes with the holder."""
ALL_CAPS = "000001ffffffffff"
KILLSWITCH = places.KILLSWITCH_UNIT

BREAKS: dict[str, Break] = {
    "lock.readable": Break(
        act=lambda scene: scene.system.commands.update({"nft --version": Answer(code=None, trouble="no nft")}),
        also=frozenset({"kernel.versions"}),
        opens=True,
    ),
    "lock.samples": kernel(_open_all, "lock.base-text", *HELD, opens=True),
    "lock.forwarded": kernel(_open_forward, "lock.base-text", *HELD, opens=True),
    "lock.base-table": Break(act=_delete_base, kernel=True),
    "lock.base-policies": kernel(lambda it: it.nft("chain inet psiphon_filter input { policy accept; }\n")),
    "lock.base-text": kernel(lambda it: it.nft("add rule inet psiphon_filter input counter\n")),
    "lock.wire-guard": kernel(lambda it: it.release_guard(), "lock.frame-guard"),
    "lock.wire-guard-owner": kernel(_unown, "lock.frame-guard"),
    "lock.frame-guard": kernel(delete_frames),
    "lock.egress-guard": kernel(lambda it: it.nft("insert rule netdev psiphon_egress frames accept\n")),
    "lock.egress-wires": kernel(guard_lo_only),
    "lock.traffic-control": kernel(lambda it: it.host.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"])),
    "lock.arp-table": kernel(lambda it: it.nft("delete table arp psiphon_arp\n")),
    "lock.lease": kernel(lambda it: it.nft('add element inet psiphon_filter tunnel_open_ipv6 { "PsiphonTUN" }\n')),
    "lock.released": files(lambda it: write(it.release_record, "{}")),
    "lock.emergency": files(lambda it: it.boot_lock_failure.mkdir(parents=True)),
    "routes.rules": kernel(lambda it: it.ip("rule", "del", "priority", "5073")),
    "routes.strangers": kernel(
        lambda it: it.ip("rule", "add", "from", "192.0.2.10", "lookup", "main", "priority", "5074")
    ),
    "routes.private-table": kernel(lambda it: it.ip("route", "add", "203.0.113.0/24", "dev", "eth0", "table", "20595")),
    "routes.default": kernel(lambda it: it.ip("route", "del", "default", "dev", "PsiphonTUN", "table", "20595")),
    "routes.main-table": kernel(lambda it: it.ip("route", "add", "203.0.113.0/24", "dev", "PsiphonTUN")),
    "routes.reverse-path": kernel(lambda it: it.host.set_sysctls({"ipv4/conf/all/src_valid_mark": 0})),
    "routes.arp": kernel(lambda it: it.host.set_sysctls({"ipv4/conf/all/arp_ignore": 0})),
    "routes.redirects": kernel(lambda it: it.host.set_sysctls({"ipv6/conf/default/accept_redirects": 1})),
    "routes.loopback": kernel(lambda it: it.host.set_sysctls({"ipv4/conf/all/route_localnet": 1})),
    "routes.own-networks": change_links(
        lambda links: tuple(replace(link, addresses=(*link.addresses, (4, "10.200.3.57"))) for link in links)
    ),
    "routes.uplink": change_links(lambda links: tuple(replace(link, up=False) for link in links)),
    "routes.lacp": system(
        lambda it: it.files.update(
            {
                "/proc/net/bonding/bond0": b"Ethernet Channel Bonding Driver: v6.1.0\n\n"
                b"Bonding Mode: IEEE 802.3ad Dynamic link aggregation\nTransmit Hash Policy: layer2 (0)\n"
            }
        )
    ),
    "routes.ipv6": status(ipv6=True),
    "routes.login": system(
        lambda it: it.files.update(
            {
                "/proc/4100003/status": b"Name:\twpa_supplicant\nUid:\t991\t991\t991\t991\n",
                "/proc/4100003/cmdline": b"wpa_supplicant\0-i\0eth0\0-Dwired\0-c\0wired.conf\0",
            }
        )
    ),
    "tunnel.daemon": system(lambda it: setattr(it, "down", DaemonDownError("it is not running"))),
    "tunnel.state": status("lock.base-text", "lock.lease", "routes.default", state="CONNECTING"),
    "tunnel.servers": status(servers={"known": 0, "tried": 0, "protocols": []}),
    "tunnel.locked": status(locked=False, opens=True),
    "tunnel.moved": status(moved_away=["eth0"]),
    "tunnel.layers": status(layers={"routing": {"state": "broken", "detail": ""}}),
    "tunnel.daemon-privileges": system(
        lambda it: it.files.update({f"/proc/{DAEMON_PID}/status": render_process(ALL_CAPS, ALL_CAPS)})
    ),
    "tunnel.core-privileges": system(
        lambda it: it.files.update(
            {f"/proc/{CORE_PID}/status": render_process("0000000000001000", ALL_CAPS, parent=DAEMON_PID)}
        )
    ),
    "tunnel.device": system(_share_tun),
    "tunnel.mtu": kernel(lambda it: it.ip("link", "set", "PsiphonTUN", "mtu", "9000")),
    "tunnel.addresses": kernel(lambda it: it.ip("address", "add", "10.200.3.9/32", "dev", "PsiphonTUN")),
    "tunnel.up": change_tun(up=False),
    "tunnel.settings": kernel(lambda it: it.host.set_sysctls({"ipv6/conf/PsiphonTUN/router_solicitations": 3})),
    "tunnel.socket": files(lambda it: _chmod(it.runtime_dir / "control.sock", 0o666)),
    "tunnel.intent": files(lambda it: (it.state_dir / "intent").write_text("perhaps\n")),
    "tunnel.socks": kernel(_listen),
    "dns.wire": kernel(
        lambda it: it.nft(f"insert rule inet psiphon_filter to_wire meta skuid {IDENTITY.uid} accept\n"),
        "lock.base-text",
        opens=True,
    ),
    "dns.bootstrap": files(lambda it: it.config.write_text('bootstrap_dns = ["9.9.9.9"]\n')),
    "dns.answers": system(lambda it: setattr(it, "answered", False)),
    "dns.programs": system(lambda it: it.commands.update({ASK: Answer(code=3)})),
    "dns.resolv-conf": files(lambda it: (it.root / "etc/resolv.conf").write_text("nameserver 2001:db8::1\n")),
    "dns.resolved-file": files(lambda it: (it.root / "etc/systemd/resolved.conf.d/psiphon-vpn.conf").unlink()),
    "dns.resolved": system(
        lambda it: it.commands.update({"resolvectl --no-pager dns": Answer(code=0, out="Global: 9.9.9.9\n")})
    ),
    "dns.multicast": system(
        lambda it: it.commands.update({"resolvectl --no-pager llmnr": Answer(code=0, out="Global: yes\n")})
    ),
    "core.present": files(lambda it: it.core_current.unlink()),
    "core.record": files(lambda it: it.core_record.unlink()),
    "core.checksum": files(lambda it: _append(it.core_binary, "x")),
    "core.architecture": system(lambda it: setattr(it, "machine", "aarch64")),
    "core.owner": files(lambda it: _chmod(it.core_binary, 0o777)),
    "core.running": Break(act=_move_core),
    "core.known": files(_forget_revision),
    "core.strangers": system(lambda it: it.files.update({"/proc/4100003/status": render_process(EMPTY, CAPS)})),
    "core.numbers": files(_share_number),
    "files.installed": Break(act=_uninstall),
    "files.owners": files(lambda it: _chmod(it.state_dir, 0o755)),
    "files.trust": files(lambda it: _chmod(it.root / "usr/lib", 0o777)),
    "files.manifest": files(lambda it: write(it.python_dir / "psiphon_vpn" / "extra.py", "evil")),
    "files.config": files(lambda it: it.config.write_text("socks_port = nonsense\n")),
    "files.config-mode": files(lambda it: _chmod(it.config, 0o644)),
    "files.boot-rules": files(lambda it: _edit_rules(it.boot_rules)),
    "files.drop-rules": files(lambda it: _edit_rules(it.drop_rules)),
    "files.guard-rules": files(lambda it: _edit_rules(it.guard_rules)),
    "files.user": system(lambda it: setattr(it, "shell", "/bin/bash")),
    "units.killswitch": unit(KILLSWITCH, ActiveState="failed", SubState="failed", Result="exit-code"),
    "units.guard": unit(places.GUARD_UNIT, ActiveState="activating", SubState="auto-restart"),
    "units.service": unit(places.SERVICE_UNIT, LoadState="masked"),
    "units.wanted": unit(places.SERVICE_UNIT, WantedBy=""),
    "units.order": unit(KILLSWITCH, Before="sysinit.target"),
    "units.boot": unit("NetworkManager.service", ExecMainStartTimestampMonotonic="900000"),
    "units.managers": unit("NetworkManager.service", Requires="dbus.service"),
    "units.dropins": Break(act=_drop_in),
    "units.override": unit(places.GUARD_UNIT, FragmentPath="/etc/systemd/system/psiphon-guard.service"),
    "units.reload": unit(places.SERVICE_UNIT, NeedDaemonReload="yes"),
    "units.watchdog": unit(places.SERVICE_UNIT, Restart="no"),
    "kernel.nftables": feature("nftables"),
    "kernel.timeouts": feature("set_timeout"),
    "kernel.route-chains": feature("type_route"),
    "kernel.owned-tables": feature("owner_flag"),
    "kernel.parts": feature("nat"),
    "kernel.egress-hook": feature("egress_hook"),
    "kernel.traffic-filters": feature("traffic_filters"),
    "kernel.tun": files(lambda it: (it.root / "dev/net/tun").unlink()),
    "kernel.versions": system(lambda it: it.files.update({"/proc/sys/kernel/osrelease": b"4.19.0\n"})),
    "firewalls.programs": unit("docker.service", LoadState="loaded", ActiveState="active"),
    "firewalls.flush": Break(act=_flush_at_boot),
    "firewalls.rerouting": kernel(
        lambda it: it.nft("table ip nat { chain o { type nat hook output priority -100; }\n}\n")
    ),
    "firewalls.filters": kernel(
        lambda it: it.nft("table inet fw { chain i { type filter hook input priority 0; policy drop; }\n}\n")
    ),
    "firewalls.legacy": system(lambda it: it.files.update({"/proc/thread-self/net/ip_tables_names": b"nat\nfilter\n"})),
    "firewalls.drivers": system(lambda it: it.files.update({"/proc/modules": b"netconsole 20480 0 - Live 0x0\n"})),
    "firewalls.vpns": change_links(lambda links: (*links, Interface(index=99, name="tun0", up=True, kind="tun"))),
    "firewalls.containers": system(_forward_without_chain),
    "firewalls.guests": change_links(
        lambda links: (
            *links,
            Interface(index=99, name="virbr0", up=True, kind="bridge", addresses=((4, "192.168.122.1"),)),
        )
    ),
    "firewalls.bridges": files(lambda it: write(it.bridges, "virbr0\n")),
    "clock.past": Break(act=_set_back),
    "clock.hardware": system(lambda it: it.files.update({"/sys/class/rtc/rtc0/since_epoch": b"1790000400\n"})),
    "clock.synchronised": system(
        lambda it: it.commands.update(
            {"timedatectl show --property=NTPSynchronized --value": Answer(code=0, out="no\n")}
        )
    ),
    "disk.data": space("var", f_bavail=1),
    "disk.inodes": space("var", f_files=1000, f_favail=3),
    "disk.run": space("run", f_bavail=0),
    "disk.writable": space("var", f_flag=os.ST_RDONLY),
}
