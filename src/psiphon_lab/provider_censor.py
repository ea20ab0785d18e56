# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A provider that censors what it forwards, with real rules in its own namespace.

Each way to censor is a value. `ProviderCensor.impose` loads the rules for some of them and removes earlier ones; `lift`
removes all. Each rule counts what it stops, and tests wait for that count. The rules apply to everything that passes
the provider's router in both directions, so also to the neighbour's packets, which are the positive control.

iptables(8) finds names in TLS, because nft(8) cannot search a packet for a text.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from psiphon_lab.addresses import MARK_LAN
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.waiting import wait_ready, wait_until

TABLE = "lab_censor"
CHAIN = "LAB_CENSOR"
LAN = "lan"
LIAR_PORT = 5300
TEXT_SEARCHERS = ("iptables", "ip6tables")
"""Programs of one package, which the setup script brings for tests."""


class Censor(Protocol):
    """One way to censor, as rules of a chain on the forward hook."""

    def render(self) -> Iterable[str]:
        """Rules for nft."""


def _family(address: str) -> str:
    return "ip6" if ipaddress.ip_address(address).version == 6 else "ip"


@dataclass(frozen=True)
class ByAddress:
    """Silently drops everything to or from these addresses."""

    addresses: tuple[str, ...]

    def render(self) -> Iterable[str]:
        """See `Censor`."""
        for address in self.addresses:
            for side in ("saddr", "daddr"):
                yield f"{_family(address)} {side} {address} counter name stopped drop"


@dataclass(frozen=True)
class ByPort:
    """Lets only these TCP ports through, and DNS as the only UDP."""

    allowed: tuple[int, ...]

    def render(self) -> Iterable[str]:
        """See `Censor`."""
        ports = ", ".join(map(str, self.allowed))
        yield f'iifname "{LAN}" tcp dport != {{ {ports} }} counter name stopped drop'
        yield f'iifname "{LAN}" udp dport != 53 counter name stopped drop'


@dataclass(frozen=True)
class ByProtocol:
    """Lets through only what begins like TLS, HTTP or DNS. A connection that begins differently is stopped for good."""

    def render(self) -> Iterable[str]:
        """See `Censor`: the first packet of a connection with data decides, and marks the connection."""
        yield "ct mark 1 accept"
        yield "ct mark 2 counter name stopped drop"
        yield f'iifname "{LAN}" udp dport != 53 counter name stopped drop'
        # TLS: a handshake record of version 3. HTTP: GET, POST, HEAD, CONNECT. A packet without payload matches none.
        for bits, first in ((16, "0x1603"), (24, "0x474554"), (24, "0x504f53"), (24, "0x484541"), (24, "0x434f4e")):
            yield f'iifname "{LAN}" meta l4proto tcp @ih,0,{bits} {first} ct mark set 1 accept'
        yield f'iifname "{LAN}" meta l4proto tcp @ih,0,8 0-255 ct mark set 2 counter name stopped drop'


@dataclass(frozen=True)
class ByReset:
    """Answers connections to these addresses with a reset, even if they are already open."""

    addresses: tuple[str, ...]

    def render(self) -> Iterable[str]:
        """See `Censor`."""
        for address in self.addresses:
            for side in ("saddr", "daddr"):
                yield f"{_family(address)} {side} {address} meta l4proto tcp counter name stopped reject with tcp reset"


@dataclass(frozen=True)
class AfterBytes:
    """Stops a connection after a number of bytes. DNS passes."""

    limit: int

    def render(self) -> Iterable[str]:
        """See `Censor`."""
        yield f"meta l4proto {{ tcp, udp }} th dport != 53 ct bytes > {self.limit} counter name stopped drop"


@dataclass(frozen=True)
class Throttle:
    """Limits everything to and from these addresses, taken together, to a number of bytes per second."""

    addresses: tuple[str, ...]
    rate: int

    def render(self) -> Iterable[str]:
        """See `Censor`."""
        for address in self.addresses:
            limit = f"limit rate over {self.rate} bytes/second burst {self.rate} bytes"
            for side in ("saddr", "daddr"):
                yield f"{_family(address)} {side} {address} {limit} counter name stopped drop"


@dataclass(frozen=True)
class PoisonedNames:
    """Answers queries for these names, to any resolver, with a false address.

    It redirects all queries to a resolver of its own, which answers other names like the resolver of the link.
    """

    names: tuple[str, ...]
    address: str

    def render(self) -> Iterable[str]:
        """See `Censor`: nothing on the forward hook."""
        return ()


@dataclass(frozen=True)
class ByServerName:
    """Answers a TLS handshake that contains one of these names with a reset."""

    names: tuple[str, ...]

    def render(self) -> Iterable[str]:
        """See `Censor`: no rules for nft."""
        return ()


class ProviderCensor:
    """The censor of a provider. It censors nothing until `impose`."""

    def __init__(self, provider: Host) -> None:
        self._provider = provider
        self._liar: subprocess.Popen[bytes] | None = None
        self._lies = Path()
        self._searching = False

    def impose(self, *censors: Censor) -> None:
        """Censor in these ways only."""
        self.lift()
        rules = "\n".join(f"    {rule}" for censor in censors for rule in censor.render())
        poisoned = [censor for censor in censors if isinstance(censor, PoisonedNames)]
        names_chain = ""
        if poisoned:
            self._start_liar(poisoned)
            names_chain = (
                "  chain names {\n    type nat hook prerouting priority dstnat;\n"
                f'    iifname "{LAN}" udp dport 53 redirect to :{LIAR_PORT}\n  }}\n'
            )
        self._load(
            f"table inet {TABLE} {{\n  counter stopped {{ }}\n"
            f"  chain forward {{\n    type filter hook forward priority filter;\n{rules}\n  }}\n{names_chain}}}\n"
        )
        for censor in censors:
            if isinstance(censor, ByServerName):
                self._search_for(censor.names)

    def lift(self) -> None:
        """Censor nothing."""
        # "delete" alone fails if there is no table.
        self._load(f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        for command in TEXT_SEARCHERS if self._searching else ():
            for action in (["-D", "FORWARD", "-j", CHAIN], ["-F", CHAIN], ["-X", CHAIN]):
                self._provider.run([command, "-w", *action], check=False)
        self._searching = False
        if self._liar is not None:
            self._liar.kill()
            self._liar.wait()
            self._liar = None
            self._lies.unlink()

    def count(self) -> int:
        """The number of packets, queries and handshakes stopped since `impose`."""
        listing = self._provider.run(["nft", "-j", "list", "counter", "inet", TABLE, "stopped"], check=False).stdout
        items = json.loads(listing)["nftables"] if listing else []
        stopped = sum(int(item["counter"]["packets"]) for item in items if "counter" in item)
        for command in TEXT_SEARCHERS if self._searching else ():
            listing = self._provider.run([command, "-w", "-nvxL", CHAIN], check=False).stdout
            stopped += sum(int(line.split()[0]) for line in listing.splitlines()[2:])
        if self._liar is not None and self._lies.exists():
            lines = map(json.loads, self._lies.read_text(encoding="utf-8").splitlines())
            stopped += sum(bool(line["poisoned"]) for line in lines)
        return stopped

    def wait_until_it_stops_something(self) -> None:
        """Wait until the censor has stopped something."""
        wait_until(lambda: self.count() > 0, "the censor has stopped something")

    def _load(self, text: str) -> None:
        self._provider.run(["nft", "-f", "-"], input=text)

    def _start_liar(self, censors: Iterable[PoisonedNames]) -> None:
        with tempfile.NamedTemporaryFile(prefix="psiphon-lab-lies-", delete=False) as file:
            self._lies = Path(file.name)
        argv = ["--role", "resolver", "--mark", MARK_LAN, "--dns-port", str(LIAR_PORT), "--record", file.name]
        for censor in censors:
            for name in censor.names:
                argv += ["--poison", f"{name}={censor.address}"]
        self._liar = self._provider.spawn_module("psiphon_lab.host_services", *argv, stdout=subprocess.PIPE)
        wait_ready(self._liar, "the censor's resolver")

    def _search_for(self, names: Iterable[str]) -> None:
        self._searching = True
        for command in TEXT_SEARCHERS:
            try:
                self._provider.run([command, "-w", "-N", CHAIN])
                for name in names:
                    rule = ["-p", "tcp", "-m", "string", "--algo", "bm", "--string", name]
                    rule += ["-j", "REJECT", "--reject-with", "tcp-reset"]
                    self._provider.run([command, "-w", "-A", CHAIN, *rule])
                self._provider.run([command, "-w", "-I", "FORWARD", "-j", CHAIN])
            except LabError as error:
                raise LabError(f"a censor of names in TLS needs iptables with its string match: {error}") from error
