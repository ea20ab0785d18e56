# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other firewalls and VPNs. None of them opens the lock; some can break the tunnel."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.kernel_rules import BaseChain
from psiphon_vpn.diagnose.model import Outcome, check, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip
from psiphon_vpn.i18n import _
from psiphon_vpn.network.bridges import BridgeStatus, explain_bridge_status
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import OWN_NAMES

PROGRAMS: Final = ("firewalld.service", "ufw.service", "docker.service", "libvirtd.service")
DIRECT_SENDERS: Final = frozenset({"netconsole", "pktgen"})
VPN_KINDS: Final = frozenset({"wireguard", "tun", "ppp", "ipip", "sit", "gre", "gretap", "vti", "xfrm", "l2tp", "ovpn"})


def _foreign(facts: Facts) -> list[BaseChain]:
    return [chain for chain in facts.rules.read_chains() if chain.table not in OWN_NAMES]


def _name(chains: list[BaseChain]) -> str:
    tables = sorted({f"{chain.family} {chain.table}" for chain in chains})
    return ", ".join(tables[:6])


@check(
    "firewalls.programs",
    mark("No other program manages the firewall"),
    mark("They may stay: what either firewall refuses is refused. Containers use the tunnel."),
)
def programs(facts: Facts) -> Outcome:
    """firewalld, ufw, docker, libvirt."""
    found = [name.removesuffix(".service") for name in PROGRAMS if facts.units.is_active(name)]
    return warn(_("also running: {names}").format(names=", ".join(found))) if found else ok(_("none runs"))


@check(
    "firewalls.flush",
    mark("No service flushes all rules"),
    mark("If you have no rules of your own in /etc/nftables.conf: sudo systemctl disable nftables"),
)
def flush(facts: Facts) -> Outcome:
    """nftables.service: its usual file begins with `flush ruleset`."""
    unit = facts.units.read("nftables.service")
    if unit.get("LoadState") != "loaded" or not (
        unit.get("ActiveState") == "active" or unit.get("UnitFileState") == "enabled"
    ):
        return ok(_("nftables.service is not in use"))
    for name in ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf"):
        if "flush ruleset" in (facts.find_text(facts.at(name)) or ""):
            return warn(_("nftables.service flushes all rules when it starts; the wire guard survives"))
    return ok(_("nftables.service flushes nothing"))


@check(
    "firewalls.rerouting",
    mark("No other table redirects packets"),
    mark("See what it does: sudo nft list ruleset. The lock checks after it, so nothing leaves because of it."),
)
def rerouting(facts: Facts) -> Outcome:
    """Chains of type route or nat at output: they may change a packet's route after the output chain saw it."""
    found = [chain for chain in _foreign(facts) if chain.hook == "output" and chain.kind in {"route", "nat"}]
    return warn(_("at output: {names}").format(names=_name(found))) if found else ok(_("none"))


@check(
    "firewalls.filters",
    mark("No other table can refuse what the tunnel needs"),
    mark("If there is no connection, see what it refuses: sudo nft list ruleset"),
)
def filters(facts: Facts) -> Outcome:
    """Other programs' base chains with the policy drop."""
    found = [
        chain
        for chain in _foreign(facts)
        if chain.kind == "filter" and chain.hook in {"output", "input", "egress"} and chain.policy == "drop"
    ]
    return warn(_("they drop by default: {names}").format(names=_name(found))) if found else ok(_("none"))


@check(
    "firewalls.legacy",
    mark("There are no rules of the old iptables"),
    mark("See them: sudo iptables-legacy-save. They cannot open the lock; they can refuse what the tunnel needs."),
)
def legacy(facts: Facts) -> Outcome:
    """Tables of x_tables in use; nft does not show them."""
    found = []
    for name in ("ip_tables_names", "ip6_tables_names"):
        found += (facts.find_text(PROC / "thread-self" / "net" / name) or "").split()
    return warn(_("in use: {names}").format(names=", ".join(sorted(set(found))))) if found else ok(_("none"))


@check(
    "firewalls.drivers",
    mark("Nothing hands frames to a card's driver past every rule"),
    mark(
        "Unload it: sudo modprobe -r NAME. What it sends meets no rule of the kernel, and leaves in clear at any time."
    ),
)
def drivers(facts: Facts) -> Outcome:
    """Modules that send by the driver itself: netconsole, which sends the kernel's log, and pktgen."""
    loaded = {line.partition(" ")[0] for line in (facts.find_text(PROC / "modules") or "").splitlines()}
    if found := sorted(loaded & DIRECT_SENDERS):
        return warn(_("loaded: {names}").format(names=", ".join(found)))
    return ok(_("none is loaded"))


@check(
    "firewalls.vpns",
    mark("No other VPN is up"),
    mark("Switch it off: the lock refuses what it sends, and its routes may cut the tunnel off."),
)
def vpns(facts: Facts) -> Outcome:
    """Interfaces of other tunnels."""
    found = [
        link.name
        for link in facts.network.snapshot.interfaces
        if link.kind in VPN_KINDS and link.name not in {names.TUN_NAME, "sit0", "gre0", "tunl0", "gretap0", "ip_vti0"}
    ]
    return warn(_("interfaces: {names}").format(names=", ".join(found))) if found else ok(_("none"))


@check(
    "firewalls.containers",
    mark("Containers use the tunnel or nothing"),
    mark("Nothing to do: what they send is refused while the tunnel is closed."),
)
def containers(facts: Facts) -> Outcome:
    """Does this machine forward at all?"""
    ipv4 = facts.read_sysctl("net/ipv4/ip_forward")
    ipv6 = facts.read_sysctl("net/ipv6/conf/all/forwarding")
    if ipv4 is None and ipv6 is None:
        raise Skip(_("this kernel does not forward"))
    shown = ", ".join(name for name, value in (("IPv4", ipv4), ("IPv6", ipv6)) if value == "1")
    if shown and names.BASE_TABLE not in {
        chain.table for chain in facts.rules.read_chains() if chain.hook == "forward"
    }:
        return warn(_("this machine forwards {names}, and the lock's forward chain is missing").format(names=shown))
    return ok(_("forwarding for {names}").format(names=shown) if shown else _("nothing is forwarded"))


@check(
    "firewalls.guests",
    mark("No container or virtual machine needs to reach this computer"),
    mark(
        "Refused unless you allow it for a bridge: sudo psiphon-vpn bridge allow NAME. Or give a virtual machine a "
        "fixed address of the bridge's network, the bridge's address as its gateway and any public resolver: its pages "
        "and names then go through the tunnel."
    ),
)
def guests(facts: Facts) -> Outcome:
    """Bridges with an address of this machine that do not lead to an uplink: libvirt's, Docker's, LXD's, etc."""
    snapshot = facts.network.snapshot
    leading = {route.index for route in snapshot.defaults}
    allowed = {item.name for item in facts.rules.list_allowed_bridges()}
    found = [
        link.name
        for link in snapshot.interfaces
        if link.kind == "bridge" and link.addresses and link.index not in leading and link.name not in allowed
    ]
    if found:
        return warn(
            _("this computer and the guests on these bridges do not reach each other: {names}").format(
                names=", ".join(found)
            )
        )
    return ok(_("there is no such bridge"))


@check(
    "firewalls.bridges",
    mark("Every allowed bridge is in force"),
    mark("See the state of each: psiphon-vpn bridge list"),
)
def bridges(facts: Facts) -> Outcome:
    """Root's list, compared with what is on each bridge now."""
    allowed = facts.rules.list_allowed_bridges()
    if not allowed:
        return ok(_("none is allowed"))
    shown = "; ".join(f"{item.name}: {explain_bridge_status(item)[0]}" for item in allowed)
    return ok(shown) if all(item.status is BridgeStatus.IN_FORCE for item in allowed) else warn(shown)


CHECKS: Final = (programs, flush, rerouting, filters, legacy, drivers, vpns, containers, guests, bridges)
