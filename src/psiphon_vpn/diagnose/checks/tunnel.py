# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The TUN, the service and the processes."""

from __future__ import annotations

import stat
from typing import Final

from psiphon_vpn.client import SOCKET_NAME
from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts, describe_mode
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _, ngettext
from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import TUN_SYSCTLS
from psiphon_vpn.service.events import Intent
from psiphon_vpn.system import layout as places

RESTART: Final = mark("Make it again: sudo systemctl restart psiphon-vpn")
LOG: Final = mark("Read the log: journalctl -u psiphon-vpn")
IFF_TUN: Final = 1
NET_BIND_SERVICE, NET_ADMIN, NET_RAW = 10, 12, 13
DAEMON_CAPABILITIES: Final = 1 << NET_BIND_SERVICE | 1 << NET_ADMIN | 1 << NET_RAW
SOCKET_MODE: Final = 0o660
LISTENING: Final = "0A"
"""TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""
LOOPBACK: Final = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


@check(
    "tunnel.daemon",
    mark("The service answers"),
    mark("Start it: sudo psiphon-vpn start. Why it ended: sudo psiphon-vpn log"),
)
def daemon(facts: Facts) -> Outcome:
    """Does the control socket answer?"""
    found = facts.service_or_reason
    if isinstance(found, UserError):
        return fail(found.why)
    return ok(_("process {pid}").format(pid=found.pid))


@check("tunnel.state", mark("The service is in the state that the user wants"), LOG)
def state(facts: Facts) -> Outcome:
    """Is it open when it should be?"""
    status = facts.service.status
    state, reason, step = (str(status.get(key) or "") for key in ("state", "reason", "next_step"))
    since = str(status.get("since") or "")[:19].replace("T", " ")
    text = _("{state} since {since} UTC: {reason}").format(state=state, since=since, reason=reason)
    if state != "OPEN" and status.get("intent") != Intent.STOPPED:
        # Also one that is on its way: a machine without a tunnel is not well.
        return fail(text, step or None)
    return ok(text)


@check(
    "tunnel.servers",
    mark("There are Psiphon servers that the tunnel program may use"),
    mark("Bring a list from another computer: sudo psiphon-vpn servers import FILE. Why: psiphon-vpn status"),
)
def servers(facts: Facts) -> Outcome:
    """What the tunnel program said of its servers, and of the chosen country."""
    status = facts.service.status
    found = status.get("servers")
    known = found.get("known") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(known, int):
        raise Skip(_("the tunnel program has not said how many it knows"))
    if known == 0:
        return fail(_("it knows none"))
    regions, wanted = status.get("regions_available"), status.get("region_wanted")
    if wanted and isinstance(regions, list) and regions and wanted not in regions:
        text = _("none of {count} is in {region}, which you chose; there are some in {regions}")
        return fail(
            text.format(count=known, region=wanted, regions=", ".join(map(str, regions))),
            _("Choose another: sudo psiphon-vpn region, or let the service choose: sudo psiphon-vpn region best"),
        )
    return ok(ngettext("{count} known", "{count} known", known).format(count=known))


@check("tunnel.locked", mark("The service and the kernel agree about the lock"), LOG)
def locked(facts: Facts) -> Outcome:
    """Does the daemon call the machine locked?"""
    if facts.service.status.get("locked") is not True:
        return fail(_("the service itself says that the machine is not locked"), is_open=True)
    return ok(_("it says that the machine is locked"))


@check("tunnel.layers", mark("No layer of the service is missing"), LOG)
def layers(facts: Facts) -> Outcome:
    """The daemon's report about its layers."""
    found = facts.service.status.get("layers")
    if not isinstance(found, dict):
        raise Unknowable(_("the service does not report it"))
    broken = [name for name, layer in found.items() if isinstance(layer, dict) and layer.get("state") == "broken"]
    return fail(_("broken: {names}").format(names=", ".join(broken))) if broken else ok(_("none is broken"))


@check(
    "tunnel.moved",
    mark("No card was moved into another network namespace"),
    mark("Take it back from the container that has it: the lock covers only this machine's own network namespace."),
)
def moved(facts: Facts) -> Outcome:
    """Cards that the daemon saw move to another network namespace, and not return."""
    found = facts.service.status.get("moved_away")
    if not isinstance(found, list):
        raise Unknowable(_("the service does not report it"))
    return fail(_("moved: {names}").format(names=", ".join(map(str, found)))) if found else ok(_("none"))


@check("tunnel.daemon-privileges", mark("The service runs with three capabilities and no more"), LOG)
def daemon_privileges(facts: Facts) -> Outcome:
    """Uid and capability sets from /proc/PID/status."""
    process = facts.read_process(facts.service.pid)
    wrong = [name for name in ("CapPrm", "CapEff", "CapBnd") if int(process.get(name, "0"), 16) != DAEMON_CAPABILITIES]
    if int(process.get("CapAmb", "0"), 16) & ~DAEMON_CAPABILITIES:
        wrong.append("CapAmb")
    return _judge_process(facts, process, wrong)


@check("tunnel.core-privileges", mark("The tunnel program runs without any capability"), LOG)
def core_privileges(facts: Facts) -> Outcome:
    """Uid and capability sets from /proc/PID/status."""
    process = facts.read_process(facts.core_pid)
    sets = ("CapPrm", "CapEff", "CapInh", "CapAmb")
    return _judge_process(facts, process, [name for name in sets if int(process.get(name, "1"), 16) != 0])


def _judge_process(facts: Facts, process: dict[str, str], wrong: list[str]) -> Outcome:
    if set(process.get("Uid", "").split()) != {str(facts.identity.uid)}:
        return fail(_("it does not run as {name}").format(name=places.USER))
    if wrong:
        return fail(_("unexpected capabilities: {names}").format(names=", ".join(wrong)))
    if process.get("NoNewPrivs") != "1":
        return fail(_("it may gain privileges (no_new_privs is not set)"))
    return ok(_("{name}, no new privileges").format(name=places.USER))


@check("tunnel.device", mark("The TUN is the one that the service made"), RESTART)
def device(facts: Facts) -> Outcome:
    """A persistent TUN of psiphon-user, of no group, with a single queue?"""
    found = facts.network.tun
    if found is None:
        if facts.state is None:
            raise Skip(_("there is no {name}, and no service to make it").format(name=names.TUN_NAME))
        return fail(_("there is no {name}").format(name=names.TUN_NAME))
    tun = found.attributes
    if found.kind != "tun" or tun.get("TYPE") != IFF_TUN:
        return fail(_("another kind of device has its name: {kind}").format(kind=found.kind))
    if tun.get("OWNER") != facts.identity.uid or tun.get("GROUP") is not None:
        return fail(_("it does not belong to {name} alone").format(name=places.USER))
    if not tun.get("PERSIST") or any(tun.get(name) for name in ("PI", "VNET_HDR", "MULTI_QUEUE")):
        return fail(_("it was not made as the service makes it"))
    return ok(_("index {index}").format(index=found.index))


@check("tunnel.mtu", mark("The TUN accepts no packet that the tunnel program would truncate"), RESTART)
def mtu(facts: Facts) -> Outcome:
    """At most 1500 bytes."""
    found = facts.tun.mtu
    return ok(str(found)) if found <= names.TUN_MTU else fail(_("its MTU is {mtu}").format(mtu=found))


@check("tunnel.addresses", mark("The TUN has its two addresses and no other"), RESTART)
def addresses(facts: Facts) -> Outcome:
    """Another address would be another source, and the server answers to the first that it sees."""
    wanted = {f"{names.TUN_IPV4}/24", f"{names.TUN_IPV6}/64"}
    found = set(facts.tun.addresses)
    if found == wanted:
        return ok(", ".join(sorted(found)))
    changes = [f"-{text}" for text in sorted(wanted - found)] + [f"+{text}" for text in sorted(found - wanted)]
    return fail(_("not as expected: {names}").format(names=", ".join(changes)))


@check("tunnel.up", mark("The TUN is up"), RESTART)
def up(facts: Facts) -> Outcome:
    """Set up?"""
    return ok(_("up")) if facts.tun.up else fail(_("it was set down"))


@check("tunnel.settings", mark("The kernel sends nothing of its own on the TUN"), RESTART)
def settings(facts: Facts) -> Outcome:
    """Kernel settings of the TUN: no packets of the kernel's own."""
    facts.tun  # noqa: B018  skips when there is none
    found = {name: facts.read_sysctl(name) for name in TUN_SYSCTLS}
    wrong = [name.replace("/", ".") for name, value in found.items() if value not in {None, TUN_SYSCTLS[name]}]
    return fail(_("set by another program: {names}").format(names=", ".join(wrong))) if wrong else ok(_("as made"))


@check("tunnel.socket", mark("Only root and the group may talk to the service"), RESTART)
def socket(facts: Facts) -> Outcome:
    """Owner and mode of the control socket."""
    path = facts.runtime_dir / SOCKET_NAME
    if not facts.exists(path):
        raise Skip(_("there is no control socket"))
    status = facts.system.stat(path)
    if not stat.S_ISSOCK(status.st_mode) or stat.S_IMODE(status.st_mode) & ~SOCKET_MODE:
        return fail(_("its mode is {mode}").format(mode=describe_mode(status)))
    if status.st_uid not in {0, facts.identity.uid} or status.st_gid not in {0, facts.identity.gid}:
        return fail(_("it belongs to another user"))
    return ok(describe_mode(status))


@check(
    "tunnel.intent",
    mark("The stored intent is readable"),
    mark("Store it again: sudo psiphon-vpn start, or stop. Unreadable means connecting."),
)
def intent(facts: Facts) -> Outcome:
    """The stored intent."""
    text = facts.find_text(facts.layout.state_dir / "intent")
    if text is None:
        return ok(_("none is stored, which means connected"))
    try:
        return ok(str(Intent(text.strip())))
    except ValueError:
        return fail(_("the file contains something else"))


@check(
    "tunnel.socks",
    mark("Only this machine can use the SOCKS proxy"),
    mark(
        "Find the program that listens: sudo ss -ltnp. End it, or set another 'socks_port', then: sudo psiphon-vpn "
        "restart. The lock refuses what comes from the network."
    ),
)
def socks(facts: Facts) -> Outcome:
    """Does a program other than the core listen on its port, or any program on another address than loopback?"""
    port = facts.settings_or_default.socks_port
    addresses, owners = set(), set()
    for name in ("tcp", "tcp6"):
        for line in (facts.find_text(PROC / "thread-self" / "net" / name) or "").splitlines()[1:]:
            local, listening = line.split()[1], line.split()[3] == LISTENING
            address, _colon, number = local.partition(":")
            if listening and int(number, 16) == port:
                addresses.add(address)
                owners.add(int(line.split()[7]))
    if strangers := addresses - set(LOOPBACK):
        return fail(
            _("programs that listen on port {port} for the network: {count}").format(port=port, count=len(strangers))
        )
    if others := sorted(owners - {facts.identity.uid}):
        return fail(
            _("a program of user number {uid} listens on port {port}; the tunnel works without the proxy").format(
                uid=others[0], port=port
            )
        )
    return ok(_("port {port} on 127.0.0.1").format(port=port) if addresses else _("it does not listen now"))


CHECKS: Final = (
    daemon,
    state,
    servers,
    locked,
    layers,
    moved,
    daemon_privileges,
    core_privileges,
    device,
    mtu,
    addresses,
    up,
    settings,
    socket,
    intent,
    socks,
)
