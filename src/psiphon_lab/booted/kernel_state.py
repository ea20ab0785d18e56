# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a network namespace as text, to compare it with that after power-on or before an installation."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from psiphon_lab.namespace import Host

# ip-rule(8): the rules of every new network namespace.
_FIRST_RULES = (
    "0:\tfrom all lookup local",
    "32766:\tfrom all lookup main",
    "32767:\tfrom all lookup default",
)
# Counters, keys and others that change by themselves, and settings of single interfaces.
_RESTLESS = ("ipv4/route/", "ipv6/route/", "ipv4/tcp_fastopen_key", "netfilter/nf_conntrack_count", "neigh/", "/conf/")
# Properties of routes and addresses that network managers and advertisements renew.
_RENEWED = re.compile(r" (?:expires|metric|mtu|pref|hoplimit) \S+")


@dataclass(frozen=True, kw_only=True)
class KernelState:
    """Rules, routing and interfaces as nft and iproute2 print them; settings below /proc/sys/net by path."""

    ruleset: str
    rules: tuple[str, ...]
    routes: tuple[str, ...]
    links: tuple[str, ...]
    addresses: tuple[str, ...]
    filters: tuple[str, ...]
    """Queueing disciplines that hold filters of traffic control: `clsact` and `ingress`."""
    settings: tuple[tuple[str, str], ...]

    @property
    def is_pristine(self) -> bool:
        """Whether it is the state at power-on: no table, route or address that a program has added."""
        own = [route for route in self.routes if " dev lo table local " not in f"{route} "]
        addresses = [line for line in self.addresses if len(line.split()) > 2 and not line.startswith("lo ")]
        virtual = [link for link in self.links if link not in {"lo", "eth0", "eth1"}]
        unfiltered = not self.ruleset and not self.filters
        return unfiltered and set(self.rules) <= set(_FIRST_RULES) and not own and not addresses and not virtual

    def list_differences(self, other: KernelState) -> list[str]:
        """The differences from another state, one per line: "-" for this one, "+" for the other."""
        lines: list[str] = []
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "ruleset":
                ours, theirs = ours.splitlines(), theirs.splitlines()
            lines += [f"- {field.name}: {item}" for item in ours if item not in theirs]
            lines += [f"+ {field.name}: {item}" for item in theirs if item not in ours]
        return lines


def read_kernel_state(host: Host) -> KernelState:
    """Read the state of a host's network namespace. Raises LabError if that fails."""

    def routes(family: str) -> tuple[str, ...]:
        listed = lines("ip", family, "route", "show", "table", "all")
        return tuple(sorted({_RENEWED.sub("", route) for route in listed}))

    def lines(*argv: str) -> tuple[str, ...]:
        return tuple(sorted(line.strip() for line in host.run(argv).stdout.splitlines() if line.strip()))

    links = lines("ip", "-br", "link")
    return KernelState(
        ruleset=host.run(["nft", "-s", "list", "ruleset"]).stdout.strip(),
        rules=lines("ip", "-4", "rule") + lines("ip", "-6", "rule"),
        routes=routes("-4") + routes("-6"),
        links=tuple(line.split()[0].partition("@")[0] for line in links),
        addresses=tuple(_RENEWED.sub("", line) for line in lines("ip", "-br", "address", "show", "scope", "global")),
        filters=tuple(line for line in lines("tc", "qdisc", "show") if " ffff: " in line),
        settings=host.call(_read_settings),
    )


def _read_settings() -> tuple[tuple[str, str], ...]:
    settings = []
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        name = str(path.relative_to("/proc/sys/net"))
        kept = "/conf/all/" in name or "/conf/default/" in name or not any(part in f"{name}/" for part in _RESTLESS)
        if not kept or not path.is_file():
            continue
        try:
            settings.append((name, path.read_text().strip()))
        except OSError:  # some are write-only
            continue
    return tuple(settings)
