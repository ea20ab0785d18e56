# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules in the kernel, from nft, and the rules that the policy would load."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psiphon_vpn.diagnose.basic_facts import PROC, BasicFacts
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.linux.reading import DORMANT, Reading, parse_listing
from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import BRIDGES, FRAMES

if TYPE_CHECKING:
    from psiphon_vpn.linux.features import Features
    from psiphon_vpn.network.bridges import AllowedBridge
    from psiphon_vpn.policy.model import Policy
    from psiphon_vpn.policy.ruleset import Table
    from psiphon_vpn.policy.values import ControlGroup

SOCKET_GROUP = "socket cgroupv2"
NFT_CHAIN = re.compile(
    r"type (?P<kind>\S+) hook (?P<hook>\S+)(?: devices? =? ?(?P<devices>\{[^}]*\}|\"[^\"]*\"|\S+))? "
    r"priority (?P<priority>[^;]+); policy (?P<policy>\w+);"
)


@dataclass(frozen=True, kw_only=True)
class BaseChain:
    """A chain that is attached to a hook, of any table."""

    family: str
    table: str
    name: str
    kind: str
    hook: str
    policy: str
    devices: tuple[str, ...] = ()


def parse_chains(text: str) -> tuple[BaseChain, ...]:
    """The base chains in the output of `nft list chains` or `nft list table`."""
    chains, family, table, chain = [], "", "", ""
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        if len(words) > 2 and words[0] == "table":
            family, table = words[1], words[2]
        elif len(words) > 1 and words[0] == "chain":
            chain = words[1]
        elif found := NFT_CHAIN.match(line):
            devices = tuple(re.findall(r"[^\s{},\"]+", found["devices"] or ""))
            chains.append(
                BaseChain(
                    family=family,
                    table=table,
                    name=chain,
                    kind=found["kind"],
                    hook=found["hook"],
                    policy=found["policy"],
                    devices=devices,
                )
            )
    return tuple(chains)


class KernelRules:
    """Readings of nft, each made once. Each raises Unknowable if nft cannot be run."""

    def __init__(self, facts: BasicFacts) -> None:
        self._facts = facts

    @property
    def version(self) -> str | None:
        """The output of `nft --version`; None if nft is not installed."""
        answer = self._facts.once("nft --version", lambda: self._facts.system.run(["nft", "--version"]))
        return answer.out.strip() if answer.good else None

    @property
    def has_program(self) -> bool:
        """Whether nft is installed."""
        return self.version is not None

    @property
    def features(self) -> Features:
        """The features of kernel and nft."""
        return self._facts.once("features", self._read_features)

    def _read_features(self) -> Features:
        if not self.has_program:
            raise Skip(_("nft is not installed"))
        try:
            return self._facts.system.read_features()
        except (OSError, UserError) as error:
            raise Unknowable(str(error)) from error

    def ask(self, *arguments: str) -> str | None:
        """The output of an nft command; None if the listed thing does not exist."""
        return self._facts.once(" ".join(("nft", *arguments)), lambda: self._ask(*arguments))

    def _ask(self, *arguments: str) -> str | None:
        if not self.has_program:
            raise Skip(_("nft is not installed"))
        answer = self._facts.system.run(["nft", *arguments])
        if answer.good:
            return answer.out
        if answer.code is not None and "No such file" in answer.err:
            return None
        raise Unknowable(
            _("nft does not answer ({reason})").format(reason=" ".join((answer.trouble or answer.err).split())[:200])
        )

    def read_table(self, family: str, name: str) -> str | None:
        """The text of a table, without the values of counters."""
        return self.ask("-s", "list", "table", family, name)

    def need_table(self, family: str, name: str) -> str:
        """The same; skips if the table does not exist."""
        text = self.read_table(family, name)
        if text is None:
            raise Skip(_("there is no table {name}").format(name=name))
        return text

    def read_objects(self, *what: str) -> list[Any] | None:
        """The output of nft in JSON."""
        text = self.ask("-j", "list", *what)
        if text is None:
            return None
        try:
            objects: list[Any] = json.loads(text)["nftables"]
        except (ValueError, KeyError, TypeError) as error:
            raise Unknowable(_("the output of nft cannot be parsed")) from error
        return objects

    def is_dormant(self, family: str, name: str) -> bool:
        """Whether the table exists and is dormant."""
        text = self.read_table(family, name)
        try:
            return text is not None and DORMANT in parse_listing(text).lines
        except ValueError as error:
            raise Unknowable(_("the output of nft cannot be parsed")) from error

    def read_base(self) -> list[Any] | None:
        """The base table in JSON; empty if it is dormant, so that no packet meets it."""
        if self.is_dormant("inet", names.BASE_TABLE):
            return []
        return self.read_objects("table", "inet", names.BASE_TABLE)

    def read_guard(self, chain: str) -> list[Any] | None:
        """A chain of the wire guard. Not the table: nft 1.0.6 prints uninitialised memory as its flags in JSON."""
        if self.is_dormant("inet", names.GUARD_TABLE):
            return []
        objects = self.read_objects("chain", "inet", names.GUARD_TABLE, chain)
        return None if objects is None else [entry for entry in objects if "table" not in entry]

    def read_chains(self) -> tuple[BaseChain, ...]:
        """All base chains of all tables."""
        return parse_chains(self.ask("list", "chains") or "")

    def read_lease(self, name: str = names.LEASE_SET) -> list[tuple[str, float | None]]:
        """The elements of a lease set: the interface, and the seconds that remain; None for one without an end."""
        found: list[tuple[str, float | None]] = []
        for entry in self.read_objects("set", "inet", names.BASE_TABLE, name) or ():
            for element in entry.get("set", {}).get("elem", ()):
                if isinstance(element, dict) and isinstance(element.get("elem"), dict):
                    inner = element["elem"]
                    found.append((str(inner.get("val")), inner.get("expires")))
                else:
                    found.append((str(element), None))
        return found

    # -- bridges ----------------------------------------------------------------------------------------------------

    def _find_outbound(self) -> frozenset[int]:
        """Interfaces that lead out or once did: the service remembers them; here their egress guard shows them."""
        from psiphon_vpn.network.uplink import find_outbound

        snapshot = self._facts.network.snapshot
        guarded = {
            device
            for chain in parse_chains(self.read_table("netdev", names.EGRESS_TABLE) or "")
            for device in chain.devices
        }
        return find_outbound(snapshot, frozenset(link.index for link in snapshot.interfaces if link.name in guarded))

    @property
    def bridge_guarded(self) -> bool:
        """Whether the bridge guard stands and has an owner."""
        return "flags owner" in (self.read_table(*BRIDGES.address) or "")

    def list_allowed_bridges(self) -> tuple[AllowedBridge, ...]:
        """Root's list, and the state of each bridge."""
        from psiphon_vpn.network.bridges import judge_bridges, parse_bridges

        facts = self._facts
        listed = parse_bridges((facts.find_text(facts.layout.bridges) or "").encode())
        if not listed:
            return ()
        return judge_bridges(
            facts.network.snapshot, listed, outbound=self._find_outbound(), guarded=self.bridge_guarded
        )

    def find_bridges(self) -> frozenset[str] | None:
        """Names of all bridges while their guard stands (`simulate.application_packets`)."""
        if not self.bridge_guarded:
            return None
        return frozenset(link.name for link in self._facts.network.snapshot.interfaces if link.kind == "bridge")

    # -- what the policy says ---------------------------------------------------------------------------------------

    def list_candidates(self) -> list[tuple[str, Policy]]:
        """Every policy that the base table may follow now, with its name."""
        from psiphon_vpn.network.observed import observe
        from psiphon_vpn.policy.derive import Situation, WithoutTun, build_situation, derive
        from psiphon_vpn.policy.model import Policy, State

        facts = self._facts
        uplink, tun = facts.uplink, facts.network.tun
        seen = observe(facts.network.snapshot, outbound=self._find_outbound(), bridges=self.list_allowed_bridges())
        in_group = SOCKET_GROUP in (self.read_table("inet", names.BASE_TABLE) or "")
        situations: list[tuple[State, Situation]] = []
        if tun is not None:
            chosen = uplink.facts if uplink else None
            # Whatever the service says: without a way out only the lock may be loaded.
            situations += [
                (state, build_situation(state if chosen else State.LOCKED, tun=tun.index, uplink=chosen))
                for state in State
                if state is not State.FAILED
            ]
            situations.append((State.LOCKED, build_situation(State.LOCKED, tun=tun.index, uplink=None)))
        situations.append((State.LOCKED, WithoutTun()))
        found = [("boot", Policy(state=State.LOCKED, identity=facts.identity))]
        for state, situation in situations:
            policy = derive(
                situation,
                facts.identity,
                facts.settings_or_default,
                seen.network,
                control_group=self._find_control_group() if in_group else None,
            )
            found.append((str(state), policy))
        return found

    def _find_control_group(self) -> ControlGroup | None:
        """The control group of the service that answers."""
        from psiphon_vpn.linux.controlgroup import parse_control_group

        found = self._facts.service_or_reason
        if isinstance(found, UserError):
            return None
        return parse_control_group(self._facts.find_text(PROC / str(found.pid) / "cgroup") or "")

    def list_guarded_cards(self) -> tuple[str, ...]:
        """The devices of the frame guard, in its order."""
        chains = parse_chains(self.read_table(*FRAMES.address) or "")
        return tuple(device for chain in chains if chain.policy == "drop" for device in chain.devices)

    def list_expected(self) -> list[tuple[str, Table]]:
        """The tables that may be loaded now, by purpose: "base:OPEN", "guard", "egress", "frames", "arp"."""
        from psiphon_vpn.policy.base import build_base_table, build_drop_only
        from psiphon_vpn.policy.guards import (
            build_arp_table,
            build_egress_guard,
            build_frame_guard,
            build_wire_guard,
        )
        from psiphon_vpn.policy.missing_parts import do_without
        from psiphon_vpn.policy.values import InterfaceName, parse_addresses

        candidates = self.list_candidates()
        lacking = self.features.lacking
        tables = [(f"base:{name}", do_without(build_base_table(policy), lacking)) for name, policy in candidates]
        tables.append(("drop", build_drop_only(tables[0][1])))
        identity = self._facts.identity
        # Both are loaded in one transaction, or neither.
        allowed = tuple(item.name for item in self.list_allowed_bridges()) if self.bridge_guarded else ()
        tables += [("guard", build_wire_guard(identity, bridges=allowed)), ("arp", build_arp_table())]
        guarded = tuple(name for name in map(InterfaceName.of, self.list_guarded_cards()) if name is not None)
        headerless = {link.name for link in self._facts.network.snapshot.interfaces if link.headerless}
        # Its text depends on the cards at the time of its loading.
        without = tuple(name for name in guarded if name in headerless)
        tables.append(("frames", build_frame_guard(identity, guarded, headerless=without)))
        links = candidates[-1][1].links
        # With the gateways of the uplink, and without for a service that knows none yet.
        uplink = self._facts.uplink
        for servers in (parse_addresses(uplink.gateways) if uplink else (), ()):
            egress = build_egress_guard(
                identity, links.wires, servers, headerless=links.headerless, on_link=links.on_link
            )
            tables += [("egress", egress)] if egress is not None else []
        return tables

    def _read_references(self) -> list[tuple[str, Reading | None]]:
        expected = self.list_expected()
        network = self._facts.network
        links = [(link.name, link.index) for link in network.snapshot.interfaces]
        try:
            readings = self._facts.system.read_references([table for _, table in expected], links)
        except (OSError, UserError) as error:
            raise Unknowable(str(error)) from error
        return list(zip((name for name, _ in expected), readings, strict=True))

    def list_references(self, prefix: str) -> list[tuple[str, Reading]]:
        """How this kernel prints the tables that may be loaded. Raises Unknowable if none of them loads."""
        references = self._facts.once("references", self._read_references)
        found = [(name, reading) for name, reading in references if name.startswith(prefix) and reading is not None]
        if not found:
            raise Unknowable(_("this nft does not load the policy's own text, so a comparison is impossible"))
        return found

    def compare(self, text: str, references: Sequence[tuple[str, Reading]]) -> str | None:
        """The name of the reference that a table's text equals; None if there is none."""
        try:
            reading = parse_listing(text)
        except ValueError as error:
            raise Unknowable(_("the output of nft cannot be parsed")) from error
        return next((name for name, reference in references if reference == reading), None)
