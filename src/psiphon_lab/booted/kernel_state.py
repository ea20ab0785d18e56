"""What a kernel's network namespace holds, as text: is it as after power-on, or as before an installation?"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from psiphon_lab.namespace import Host

# rule(8): what every kernel begins with.
_FIRST_RULES = (
    "0:\tfrom all lookup local",
    "32766:\tfrom all lookup main",
    "32767:\tfrom all lookup default",
)
# Counters, keys and the like, which change by themselves; settings of one interface go and come with it.
_RESTLESS = ("ipv4/route/", "ipv6/route/", "ipv4/tcp_fastopen_key", "netfilter/nf_conntrack_count", "neigh/", "/conf/")
# What a network manager and advertisements set differently from time to time for the same route or address.
_RENEWED = re.compile(r" (?:expires|metric|mtu|pref|hoplimit) \S+")


@dataclass(frozen=True, kw_only=True)
class KernelState:
    """Rulesets, routing and interfaces in iproute2's and nft's words; settings below /proc/sys/net by path."""

    ruleset: str
    rules: tuple[str, ...]
    routes: tuple[str, ...]
    links: tuple[str, ...]
    addresses: tuple[str, ...]
    filters: tuple[str, ...]
    """Places for filters of traffic control: `clsact` and `ingress`."""
    settings: tuple[tuple[str, str], ...]

    @property
    def is_pristine(self) -> bool:
        """Whether it is as a kernel has it at power-on: no table, route, address or connection that anybody made."""
        own = [route for route in self.routes if " dev lo table local " not in f"{route} "]
        addresses = [line for line in self.addresses if len(line.split()) > 2 and not line.startswith("lo ")]
        virtual = [link for link in self.links if link not in {"lo", "eth0", "eth1"}]
        unfiltered = not self.ruleset and not self.filters
        return unfiltered and set(self.rules) <= set(_FIRST_RULES) and not own and not addresses and not virtual

    def list_differences(self, other: KernelState) -> list[str]:
        """What the other has otherwise, a line each; "-" is ours, "+" the other's."""
        lines: list[str] = []
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "ruleset":
                ours, theirs = ours.splitlines(), theirs.splitlines()
            lines += [f"- {field.name}: {item}" for item in ours if item not in theirs]
            lines += [f"+ {field.name}: {item}" for item in theirs if item not in ours]
        return lines


def read_kernel_state(host: Host) -> KernelState:
    """Read it from a host's network namespace. Raises LabError if that is not possible."""

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
    found = []
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        name = str(path.relative_to("/proc/sys/net"))
        kept = "/conf/all/" in name or "/conf/default/" in name or not any(part in f"{name}/" for part in _RESTLESS)
        if not kept or not path.is_file():
            continue
        try:
            found.append((name, path.read_text().strip()))
        except OSError:  # some can only be written
            continue
    return tuple(found)
