# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock in the kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from psiphon_vpn.diagnose.facts import OPEN, Facts
from psiphon_vpn.diagnose.kernel_rules import parse_chains
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip
from psiphon_vpn.i18n import _
from psiphon_vpn.linux.frame_guard import explain_step
from psiphon_vpn.linux.traffic import Standing, explain_cut_off, explain_filter
from psiphon_vpn.network.uplink import find_cards, find_odd_wires, find_wires
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import FRAMES
from psiphon_vpn.policy.simulate import Packet, application_packets, lets_out
from psiphon_vpn.policy.values import show_name
from psiphon_vpn.system import layout as places

RESTART: Final = mark("Close it again: sudo psiphon-vpn start")
GUARD: Final = mark("Start its holder: sudo systemctl reload-or-restart psiphon-guard")
FRAME_GUARD: Final = mark("Load it for the present cards: sudo systemctl reload-or-restart psiphon-guard")
LOCKED_STATES: Final = ("LOCKED", "FAILED")
HOOKS: Final = ("output", "input", "forward", "postrouting")


def forwarded_packets(loopback: str = "lo") -> tuple[Packet, ...]:
    """Sample packets of a container or a virtual machine: like an application's, but without a socket.

    Args:
        loopback: name of the loopback interface.
    """
    tun = frozenset[int | str]({names.TUN_NAME})
    return tuple(
        replace(
            packet,
            values={key: value for key, value in packet.values.items() if key != "meta skuid"}
            | {"ct direction": "original"},
            never={**packet.never, "meta iifname": tun, "meta iif": tun | {loopback}},
        )
        for packet in application_packets(loopback)
        if packet.values.get("meta skuid") == 0
    )


@check(
    "lock.readable",
    mark("The rules can be read"),
    mark("Install the package 'nftables', and run this as root."),
)
def readable(facts: Facts) -> Outcome:
    """Is nft installed, and does it answer?"""
    if not facts.rules.has_program:
        return fail(_("nft is not installed: rules can neither be read nor loaded"))
    facts.rules.ask("list", "tables")
    return ok(facts.rules.version or "")


@check(
    "lock.samples",
    mark("No packet of an application can leave past the tunnel"),
    mark("Close it at once: sudo psiphon-vpn start. Then read the checks below."),
    decides=True,
)
def samples(facts: Facts) -> Outcome:
    """Run sample packets through each table of the kernel's own rules by itself."""
    packets = application_packets(facts.network.loopback, facts.rules.find_bridges())
    base, guard = facts.rules.read_base(), facts.rules.read_guard("output")
    stops = [
        name
        for name, objects in ((names.BASE_TABLE, base), (names.GUARD_TABLE, guard))
        if objects is not None and not any(lets_out(objects, packet) for packet in packets)
    ]
    if stops:
        text = _("{count} sample packets, refused by {tables}")
        return ok(text.format(count=len(packets), tables=_(" and by ").join(stops)))
    return fail(_("OPEN: no rule of the lock stops them"), is_open=True)


@check(
    "lock.forwarded",
    mark("No packet of a container or virtual machine can leave past the tunnel"),
    RESTART,
    decides=True,
)
def forwarded(facts: Facts) -> Outcome:
    """The same for forwarded packets."""
    base, guard = facts.rules.read_base(), facts.rules.read_guard("forward")
    packets = forwarded_packets(facts.network.loopback)
    for name, objects in ((names.BASE_TABLE, base), (names.GUARD_TABLE, guard)):
        if objects is not None and not any(lets_out(objects, packet, hooks=("forward",)) for packet in packets):
            return ok(_("{count} sample packets, refused by {tables}").format(count=len(packets), tables=name))
    if facts.read_sysctl("net/ipv4/ip_forward") == "0" and facts.read_sysctl("net/ipv6/conf/all/forwarding") != "1":
        return fail(_("no rule stops them, but this machine forwards nothing at present"))
    return fail(_("OPEN: no rule of the lock stops them, and this machine forwards"), is_open=True)


@check("lock.base-table", mark("The base table stands"), RESTART)
def base_table(facts: Facts) -> Outcome:
    """Is table inet psiphon_filter there?"""
    if facts.rules.read_table("inet", names.BASE_TABLE) is None:
        return fail(_("there is no table inet {name}").format(name=names.BASE_TABLE))
    return ok(f"table inet {names.BASE_TABLE}")


@check("lock.base-policies", mark("The base table drops what no rule accepts"), RESTART)
def base_policies(facts: Facts) -> Outcome:
    """Has each of its chains the policy drop?"""
    wrong = _accepting(facts.rules.need_table("inet", names.BASE_TABLE))
    return fail(_("not so: {names}").format(names=", ".join(wrong))) if wrong else ok(", ".join(HOOKS))


def _accepting(text: str) -> list[str]:
    chains = parse_chains(text)
    found = {hook: {c.policy for c in chains if c.name == hook and c.kind == "filter"} for hook in HOOKS}
    return [hook for hook, policies in found.items() if policies != {"drop"}]


@check("lock.base-text", mark("The base table is what the policy says"), RESTART)
def base_text(facts: Facts) -> Outcome:
    """Compare it with every text that the policy may give now, as this kernel and nft print them."""
    text = facts.rules.need_table("inet", names.BASE_TABLE)
    if _accepting(text):
        raise Skip(_("its chains lack the policy drop"))
    if facts.rules.compare(text, facts.rules.list_references("drop")):
        return fail(_("the emergency rules are loaded: the policy's own could not be, so everything is dropped"))
    references = facts.rules.list_references("base:")
    state = facts.state
    if state is not None:
        allowed = LOCKED_STATES if state in LOCKED_STATES else (state,)
        references = [entry for entry in references if entry[0].removeprefix("base:") in allowed]
    found = facts.rules.compare(text, references)
    if found is not None:
        return ok(_("as for {state}").format(state=found.removeprefix("base:")))
    if state is None:
        return fail(_("it is not a text that the policy makes"))
    return fail(_("it is not the text that the policy makes for {state}").format(state=state))


@check("lock.wire-guard", mark("The wire guard stands"), GUARD)
def wire_guard(facts: Facts) -> Outcome:
    """Is it there, and is it what the policy says?"""
    text = facts.rules.read_table("inet", names.GUARD_TABLE)
    if text is None:
        if not facts.features.owner_flag:
            raise Skip(_("this kernel or nft has no owned tables (Linux 5.12)"))
        return fail(_("there is no table inet {name}").format(name=names.GUARD_TABLE))
    if facts.rules.compare(text, facts.rules.list_references("guard")) is None:
        return fail(_("it is not what the policy says"))
    return ok(f"table inet {names.GUARD_TABLE}")


@check("lock.wire-guard-owner", mark("The wire guard has an owner, so nobody else can flush it"), GUARD)
def wire_guard_owner(facts: Facts) -> Outcome:
    """Does the table have an owner? It goes with its holder, so its presence shows that the holder lives."""
    text = facts.rules.need_table("inet", names.GUARD_TABLE)
    if not _is_owned(text):
        return fail(_("the table has no owner: 'nft flush ruleset' would remove it"))
    _table, _hash, progname = text.splitlines()[0].partition("# progname ")
    return ok(_("held by {program}").format(program=progname.strip() or _("another process")))


def _is_owned(text: str) -> bool:
    """Whether a table has the flag owner: only its owner can change it."""
    flags = text.partition("\n")[2].partition("\n")[0].split()
    return flags[:1] == ["flags"] and any(flag.rstrip(",") == "owner" for flag in flags[1:])


@check("lock.frame-guard", mark("The frame guard stops raw frames before the service starts"), FRAME_GUARD)
def frame_guard(facts: Facts) -> Outcome:
    """Is it there, with an owner, on every card, and is it what the policy says?"""
    cards = find_cards(facts.network.snapshot)
    text = facts.rules.read_table(*FRAMES.address)
    guarded = facts.rules.list_guarded_cards()
    if not cards and not guarded:
        raise Skip(_("this machine has no card of its own"))
    if text is None:
        if not facts.features.owner_flag:
            raise Skip(_("this kernel or nft has no owned tables (Linux 5.12)"))
        if not facts.features.egress_hook:
            raise Skip(_("this kernel or nft has no egress hook (Linux 5.16)"))
        told = _("there is no table {table}: root's raw frames can leave before the service starts")
        return fail(told.format(table=FRAMES))
    if not _is_owned(text):
        return fail(_("the table has no owner: 'nft flush ruleset' would remove it"))
    if bare := [name for name in cards if name not in guarded]:
        told = _("it is not on {names}: root's raw frames can leave there before the service starts")
        return fail(told.format(names=", ".join(map(show_name, bare))), explain_step(bare))
    if facts.rules.compare(text, facts.rules.list_references("frames")) is None:
        return fail(_("it is not what the policy says"))
    return ok(_("on {names}").format(names=", ".join(map(show_name, guarded))))


@check("lock.egress-guard", mark("The egress guard stops raw frames"), RESTART)
def egress_guard(facts: Facts) -> Outcome:
    """Is it there, and is it what the policy says?"""
    if not find_wires(facts.network.snapshot):
        raise Skip(_("there is no interface that leads out"))
    text = facts.rules.read_table("netdev", names.EGRESS_TABLE)
    if text is None:
        if not facts.features.egress_hook:
            raise Skip(_("this kernel or nft has no egress hook (Linux 5.16)"))
        return fail(_("there is no table netdev {name}: root's raw frames can leave").format(name=names.EGRESS_TABLE))
    if missing := _unguarded(facts, text):
        raise Skip(_("it does not cover {names}").format(names=", ".join(missing)))
    if facts.rules.compare(text, facts.rules.list_references("egress")) is None:
        return fail(_("it is not what the policy says"))
    return ok(f"table netdev {names.EGRESS_TABLE}")


def _unguarded(facts: Facts, text: str) -> list[str]:
    guarded = {device for chain in parse_chains(text) if chain.policy == "drop" for device in chain.devices}
    return [name for name in find_wires(facts.network.snapshot) if name not in guarded]


@check("lock.egress-wires", mark("The egress guard covers every interface that leads out"), RESTART)
def egress_wires(facts: Facts) -> Outcome:
    """Is each of them in one of its chains with the policy drop?"""
    text = facts.rules.need_table("netdev", names.EGRESS_TABLE)
    odd = [show_name(name) for name in find_odd_wires(facts.network.snapshot)]
    if missing := [*_unguarded(facts, text), *odd]:
        return fail(_("not covered: {names}").format(names=", ".join(missing)))
    return ok(", ".join(find_wires(facts.network.snapshot)) or _("there is none"))


@check(
    "lock.traffic-control",
    mark("Traffic control moves nothing past the egress guard"),
    mark("Close it again: sudo psiphon-vpn start. Remove what other programs put there with those programs."),
)
def traffic_control(facts: Facts) -> Outcome:
    """Does each interface that leads out have the service's filter, and is it asked first?"""
    network = facts.network
    wires = [*find_wires(network.snapshot), *find_odd_wires(network.snapshot)]
    if not wires:
        raise Skip(_("there is no interface that leads out"))
    if network.cut_off:
        return fail(explain_cut_off(network.cut_off))
    if not facts.features.traffic_filters:
        raise Skip(_("this kernel has no BPF filters (cls_bpf, clsact)"))
    found = {name: explain_filter(network.filters.get(name, Standing())) for name in wires}
    wrong = [f"{show_name(name)}: {sentence}" for name, sentence in found.items() if sentence is not None]
    overtaken = [name for name in wires if name in (network.overtaken or ())]
    wrong += [_("{name}: a tcx program is asked before every filter").format(name=show_name(it)) for it in overtaken]
    if wrong:
        return warn("; ".join(wrong))
    unseen = _("it is unknown whether tcx programs are asked first")
    return ok(", ".join(map(show_name, wires)) + (f" ({unseen})" if network.overtaken is None else ""))


@check("lock.arp-table", mark("No neighbour learns the tunnel's address by ARP"), RESTART)
def arp_table(facts: Facts) -> Outcome:
    """Is the ARP table there, and is it what the policy says?"""
    text = facts.rules.read_table("arp", names.ARP_TABLE)
    if text is None:
        return fail(_("there is no table arp {name}").format(name=names.ARP_TABLE))
    if facts.rules.compare(text, facts.rules.list_references("arp")) is None:
        return fail(_("it is not what the policy says"))
    return ok(f"table arp {names.ARP_TABLE}")


@check(
    "lock.lease",
    mark("The tunnel is open only while the service renews its permission"),
    mark("Close the tunnel and read the log: sudo psiphon-vpn restart; journalctl -u psiphon-vpn"),
)
def lease(facts: Facts) -> Outcome:
    """Does the lease match the state, and does it run out by itself?"""
    facts.rules.need_table("inet", names.BASE_TABLE)
    elements = [*facts.rules.read_lease(), *facts.rules.read_lease(names.LEASE_SET_IPV6)]
    if any(seconds is None for _name, seconds in elements):
        return fail(_("the permission has no end: it would outlive the service"))
    longest = max((seconds or 0 for _name, seconds in elements), default=0)
    if longest > names.LEASE_SECONDS:
        return fail(
            _("the permission runs for {seconds:g} s, longer than the service ever requests").format(seconds=longest)
        )
    if facts.state == OPEN and not elements:
        return fail(_("the service says that it is open, but the kernel holds no permission"))
    if facts.state not in {OPEN, None} and elements:
        return fail(_("the kernel holds a permission although the service is not open"))
    return ok(_("{seconds:g} s remain").format(seconds=longest) if elements else _("closed: there is no permission"))


@check(
    "lock.released",
    mark("Nobody has released the lock"),
    mark("Close it again: sudo psiphon-vpn start"),
)
def released(facts: Facts) -> Outcome:
    """Is there a record of the command `release`? Only the kernel says whether the machine is open."""
    if facts.exists(facts.layout.release_record):
        return fail(_("root has released the lock until the next start or boot"))
    return ok(_("no release is on record"))


@check(
    "lock.emergency",
    mark("The boot lock loaded as it should"),
    mark("Find out why: journalctl -b -u psiphon-killswitch; then: psiphon-vpn help stranded"),
)
def emergency(facts: Facts) -> Outcome:
    """Did psiphon-killswitch-failed.service have to drop everything?"""
    unit = facts.units.need_installed(places.KILLSWITCH_FAILED_UNIT)
    if facts.exists(facts.layout.boot_lock_failure):
        return fail(_("the boot rules did not load, and everything was dropped instead"))
    if unit.get("LoadState") == "not-found":
        return warn(_("there is no unit {name}").format(name=places.KILLSWITCH_FAILED_UNIT))
    return ok(_("it was not needed"))


CHECKS: Final = (
    readable,
    samples,
    forwarded,
    base_table,
    base_policies,
    base_text,
    wire_guard,
    wire_guard_owner,
    frame_guard,
    egress_guard,
    egress_wires,
    traffic_control,
    arp_table,
    lease,
    released,
    emergency,
)
