# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Names: the firewall provides isolation, the tunnel function."""

from __future__ import annotations

import sys
from typing import Final

from psiphon_vpn.diagnose.facts import OPEN, Facts
from psiphon_vpn.diagnose.model import RESTORE, Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.name_path import WAYS_OUT, Asked, find_asked, list_servers, may_be_asked
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.i18n import _
from psiphon_vpn.network.uplink import find_wires
from psiphon_vpn.policy import names
from psiphon_vpn.policy.simulate import Packet, lets_out

RESOLVED: Final = "systemd-resolved.service"
QUERY_PORTS: Final = (53, 853, 5353, 5355, 137)
RESOLVED_DIRECTORIES: Final = ("etc", "run", "usr/local/lib", "usr/lib")
"""Places of resolved.conf.d; of files with the same name only the first counts (resolved.conf(5))."""


def query_packets(uid: int, gid: int, wires: tuple[str, ...], loopback: str = "lo") -> tuple[Packet, ...]:
    """Sample DNS queries, as psiphon-user itself would send them.

    Args:
        uid: psiphon-user's.
        gid: psiphon-group's.
        wires: names of the interfaces that it would leave by.
        loopback: name of the loopback interface: nft prints it for the index in the rules.
    """
    samples = []
    for family, word, absent, source, target in (
        (2, "ip", "ip6", "192.0.2.100", "192.0.2.53"),
        (10, "ip6", "ip", "2001:db8:100::1", "2001:db8:200::53"),
    ):
        for wire in wires:
            for protocol, name in ((6, "tcp"), (17, "udp")):
                for port in QUERY_PORTS:
                    ports = {f"{prefix} {side}": number for prefix in (name, "th") for side, number in
                             (("sport", 40000), ("dport", port))}  # fmt: skip
                    values: dict[str, int | str] = {
                        "meta skuid": uid,
                        "meta skgid": gid,
                        "meta l4proto": protocol,
                        "meta nfproto": family,
                        "meta oifname": str(wire),
                        f"{word} saddr": source,
                        f"{word} daddr": target,
                        **ports,
                    }
                    gone = frozenset({absent, *({"tcp", "udp", "icmp", "icmpv6"} - {name})})
                    samples.append(Packet(values=values, absent=gone, never={"meta oif": frozenset({loopback})}))
    return tuple(samples)


@check(
    "dns.wire",
    mark("No name is looked up in clear, not even by the service"),
    mark("Load the rules again: sudo systemctl restart psiphon-vpn"),
)
def wire(facts: Facts) -> Outcome:
    """Run sample queries of psiphon-user through the kernel's own rules."""
    base = facts.rules.read_base()
    if base is None:
        raise Skip(_("there is no table {name}").format(name=names.BASE_TABLE))
    wires = find_wires(facts.network.snapshot)
    packets = query_packets(facts.identity.uid, facts.identity.gid, wires, facts.network.loopback)
    if any(lets_out(base, packet) for packet in packets):
        return fail(_("OPEN: the rules let psiphon-user look names up in clear"), is_open=True)
    return ok(_("{count} sample queries, refused").format(count=len(packets)))


@check(
    "dns.bootstrap",
    mark("The configuration allows no resolver outside the tunnel"),
    mark("If you do not need it, empty bootstrap_dns in config.toml: whoever watches your network sees these queries."),
)
def bootstrap(facts: Facts) -> Outcome:
    """Is bootstrap_dns empty?"""
    count = len(facts.settings_or_default.bootstrap_dns)
    if count:
        return warn(_("the tunnel program may ask {count} resolvers outside the tunnel").format(count=count))
    return ok(_("none"))


@check(
    "dns.answers",
    mark("Names resolve inside the tunnel"),
    mark("Connect again: sudo psiphon-vpn restart"),
)
def answers(facts: Facts) -> Outcome:
    """The service's own question through the TUN. Only while open."""
    if facts.state != OPEN:
        raise Skip(_("the tunnel is not open"))
    try:
        answered = facts.system.ask_resolver()
    except OSError as error:
        raise Unknowable(str(error)) from error
    return ok(_("the resolver in the tunnel answers")) if answered else fail(_("no answer comes through the tunnel"))


ASK_AS_PROGRAMS_DO: Final = (
    "import socket, sys\n"
    "try:\n"
    "    socket.getaddrinfo('a.root-servers.net', None, socket.AF_INET)\n"
    "except socket.gaierror:\n"
    "    sys.exit(3)\n"
)
"""Looks up a name that always exists. nss-resolve(8) also reports EAI_NONAME for a refused query of systemd-resolved,
so "no such name" does not count as an answer."""
PROGRAM_SECONDS: Final = 8.0


@check(
    "dns.programs",
    mark("Programs resolve names, by this machine's own resolver"),
    mark(
        "The first resolver that this machine asks is refused or silent; the check names it, and what to change. In "
        "general: send every query to an IPv4 server, bound to no interface."
    ),
)
def programs(facts: Facts) -> Outcome:
    """Resolve a name the way a program does: nsswitch.conf, resolv.conf, and what they lead to. Only while open."""
    if facts.state != OPEN:
        raise Skip(_("the tunnel is not open"))
    answer = facts.system.run([sys.executable, "-I", "-c", ASK_AS_PROGRAMS_DO], timeout=PROGRAM_SECONDS)
    if answer.good:
        return ok(_("they do"))
    asked = find_asked(
        nsswitch=facts.find_text(facts.at("/etc/nsswitch.conf")),
        resolv_conf=facts.find_text(facts.at("/etc/resolv.conf")),
        resolved=facts.exists(facts.at("/run/systemd/system")) and facts.units.is_active(RESOLVED),
    )
    if answer.code is None:
        return fail(_("no answer came within {seconds:g} seconds").format(seconds=PROGRAM_SECONDS), _(WAYS_OUT[asked]))
    return fail(_("no resolver answers them"), _(WAYS_OUT[asked]))


@check("dns.resolv-conf", mark("Programs can ask an IPv4 resolver"), WAYS_OUT[Asked.NONE])
def resolv_conf(facts: Facts) -> Outcome:
    """Outside IPv6 resolvers are refused, so a resolv.conf with only those resolves nothing."""
    text = facts.find_text(facts.at("/etc/resolv.conf"))
    if text is None:
        return warn(_("there is no /etc/resolv.conf"))
    servers = list_servers(text)
    if not servers:
        return ok(_("none is named: programs ask 127.0.0.1"))
    if not any(may_be_asked(server) for server in servers):
        return warn(_("all resolvers in it are IPv6, which are refused: no name resolves"))
    return ok(_("IPv4") if any("." in server for server in servers) else _("on this machine"))


def _need_resolved(facts: Facts) -> None:
    facts.need_installed()
    if not facts.units.is_active(RESOLVED):
        raise Skip(_("systemd-resolved does not run"))


@check("dns.resolved-file", mark("systemd-resolved is configured to use the tunnel's resolver"), RESTORE)
def resolved_file(facts: Facts) -> Outcome:
    """Is the drop-in there?"""
    _need_resolved(facts)
    seen: set[str] = set()
    for place in RESOLVED_DIRECTORIES:
        directory = facts.at(place) / "systemd" / "resolved.conf.d"
        for name in sorted(set(facts.list_names(directory)) - seen):
            seen.add(name)
            if name.endswith(".conf") and names.RESOLVER_IPV4 in (facts.find_text(directory / name) or ""):
                return ok(f"/{place}/systemd/resolved.conf.d/{name}")
    mask = next(
        (
            place
            for place in RESOLVED_DIRECTORIES[:-1]
            if facts.layout.resolved_dropin.name in facts.list_names(facts.at(place) / "systemd" / "resolved.conf.d")
        ),
        None,
    )
    if mask is not None:
        path = f"/{mask}/systemd/resolved.conf.d/{facts.layout.resolved_dropin.name}"
        return fail(
            _("{path} replaces this service's drop-in").format(path=path),
            _("Remove {path}. Then: sudo systemctl restart systemd-resolved").format(path=path),
        )
    return fail(_("there is no drop-in that names {address}").format(address=names.RESOLVER_IPV4))


def _ask_resolved(facts: Facts, what: str) -> str:
    """The global answer of resolvectl, without links."""
    _need_resolved(facts)
    answer = facts.once(f"resolvectl {what}", lambda: facts.system.run(["resolvectl", "--no-pager", what]))
    if not answer.good:
        raise Unknowable(_("resolvectl does not answer ({reason})").format(reason=answer.trouble or answer.err))
    return next((line.partition(":")[2].strip() for line in answer.out.splitlines() if line.startswith("Global:")), "")


@check(
    "dns.resolved",
    mark("systemd-resolved uses the tunnel's resolver"),
    WAYS_OUT[Asked.RESOLVED],
)
def resolved(facts: Facts) -> Outcome:
    """The settings in force, not those in a file."""
    servers, domains = _ask_resolved(facts, "dns"), _ask_resolved(facts, "domain")
    if names.RESOLVER_IPV4 not in servers.split():
        return fail(_("it asks other resolvers, which are refused"))
    return ok(f"{names.RESOLVER_IPV4} ~.") if "~." in domains.split() else fail(_("it does not use it for every name"))


@check(
    "dns.multicast",
    mark("systemd-resolved asks nobody on the local network"),
    mark("Have it read its configuration: sudo systemctl restart systemd-resolved. The lock refuses such queries."),
)
def multicast(facts: Facts) -> Outcome:
    """LLMNR and mDNS off?"""
    found = {what: _ask_resolved(facts, what) for what in ("llmnr", "mdns")}
    on = [what for what, value in found.items() if value != "no"]
    return fail(_("on: {names}").format(names=", ".join(on))) if on else ok(_("LLMNR and mDNS are off"))


CHECKS: Final = (wire, bootstrap, answers, programs, resolv_conf, resolved_file, resolved, multicast)
