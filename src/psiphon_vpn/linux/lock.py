# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's side of the lock as the service sees it: five verbs, and one value that says what is held now.

    configuration, network, state
              |  derive (policy/derive.py)
              v
            load  ->  kernel  ->  read_back  ->  Proof  ->  renew  ->  the lease: open for five seconds
                        ^                                     |
              restore --+---------------- close --------------+

How a table is put back fast, what is compared with what, and by which socket, is private to `linux/`. Each part of the
service takes the smallest of the protocols below that it can work with. Besides the five verbs there are three methods,
for these reasons:

* `amend` is the one load that closes nothing, and may refuse. One method with two contracts would hide which of them
  the caller relies on.
* `rehearse` runs beside the connecting core. As a part of `load` it would delay the start of the core.
* `restore_now` works in the call that receives the announcement of a change, so it cannot wait for anything. `restore`
  waits for its turn, and may take as long as nft takes.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.traffic import Standing
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.policy.ruleset import Table


class EnforcementError(Exception):
    """The kernel does not hold the policy. Whatever it holds instead lets no application out."""


class NoLease(EnforcementError):
    """There is no lease to renew: it was closed, or its time was over before anybody renewed it.

    Attributes:
        expired: its time was over, by a clock that counts sleep too.
    """

    def __init__(self, detail: str, *, expired: bool = False) -> None:
        super().__init__(detail)
        self.expired = expired


class LedAround(EnforcementError):
    """Everything that was loaded is in force, and yet packets of programs do not go into the tunnel."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Rules, routes and TUN were just found as the policy in force says. Only `Lock.read_back` makes one.

    It is good for one generation of the ruleset (the kernel itself refuses the renewal otherwise), until the next
    `close`, and for as long as a lease lasts.

    Attributes:
        generation: the generation of the ruleset in which everything was right.
        closings: how often the lock had been closed when the reading began.
        made_at: when, in seconds since boot, sleep included.
        fresh: read back, not carried over from one renewal to the next.
    """

    generation: int
    closings: int
    made_at: float
    fresh: bool


@dataclass(frozen=True, kw_only=True)
class Cover:
    """What the lease opens besides the TUN's IPv4.

    Attributes:
        proxy: loopback too, since the core listens on the SOCKS port. Otherwise another program may listen there.
        ipv6: the TUN's IPv6 too, since the tunnel was found to carry it.
    """

    proxy: bool = False
    ipv6: bool = False


class Area(enum.Enum):
    """What other programs can change of the lock, by what it takes to put it back."""

    RULES = "rules"
    """The tables of nftables."""
    NETWORK = "network"
    """Routing rules, routes, and the TUN."""
    FILTERS = "filters"
    """The filters at the interfaces' traffic control. They open nothing, so nothing is closed for them."""
    GUARDS = "guards"
    """The egress guard on wires for which it did not load. Nothing is closed for it."""
    QUEUE = "queue"
    """What other programs put before the TUN. It may let packets through: left alone while the tunnel carries."""


@dataclass(frozen=True)
class Trouble:
    """What is not as it should be.

    Attributes:
        tun_gone: the TUN is not the device that was made; a core that holds the old one is of no use.
    """

    detail: str
    tun_gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was put back, and what is still wrong.

    Attributes:
        rules: the tables were put back, and the lease is closed. They are not read back yet.
        tun: the TUN was made again.
        filters: a filter was put back.
        guards: a wire for which the egress guard did not load has it now.
        queue: the kinds of what was removed from before the TUN, for people; empty where there was nothing.
        trouble: what was found wrong and could not be put back here.
    """

    rules: bool = False
    tun: bool = False
    filters: bool = False
    guards: bool = False
    queue: str = ""
    trouble: Trouble | None = None


@dataclass(frozen=True, kw_only=True)
class LockView:
    """What this daemon holds in the kernel, as far as it knows, at one moment.

    Attributes:
        tun: the TUN that was made.
        ipv6: what the TUN had of IPv6 when the policy in force was made.
        cover: what the lease covers; None if it is not taken, or was closed. The kernel may hold less: it runs out.
        ran_out: the lease was taken, and its time is over: nobody renewed it, and the kernel has forgotten it.
        routing_trouble: what the last check of rules, routes and TUN found wrong.
        wires: names of the interfaces that need an egress guard; none where this kernel knows no egress hook.
        guards: the tables beside the base table.
        refused_for: seconds until the egress guard is tried again on a wire for which it did not load; None for never.
        cards: names of the interfaces that should have a filter of traffic control, by index.
        standings: what stood at the traffic control of each when it was last read, by index.
    """

    tun: Tun | None = None
    ipv6: Ipv6 = Ipv6.ON
    cover: Cover | None = None
    ran_out: bool = False
    routing_trouble: str | None = None
    wires: tuple[str, ...] = ()
    guards: tuple[Table, ...] = ()
    refused_for: float | None = None
    cards: Mapping[int, str] = field(default_factory=dict)
    standings: Mapping[int, Standing] = field(default_factory=dict)

    @property
    def leased(self) -> bool:
        """Whether the lease was taken and not given up since."""
        return self.cover is not None

    @property
    def ipv6_open(self) -> bool:
        """Whether the lease covers IPv6."""
        return self.cover is not None and self.cover.ipv6

    @property
    def unguarded(self) -> tuple[str, ...]:
        """The wires without an egress guard, where this kernel knows one."""
        guarded = {device for table in self.guards for device in table.devices}
        return tuple(name for name in self.wires if name not in guarded)

    @property
    def filters(self) -> tuple[tuple[str, Standing], ...]:
        """What stood at the traffic control of each interface, by name."""
        return tuple((name, self.standings.get(index, Standing())) for index, name in self.cards.items())


class Viewed(Protocol):
    """Whatever says what the lock holds."""

    @property
    def view(self) -> LockView:
        """What is held now. Costs nothing: the kernel is not asked."""


class Loader(Protocol):
    """Puts policies into force."""

    async def load(
        self, policy_for: Callable[[Tun | None], Policy], *, odd_wires: tuple[str, ...] = (), replace_tun: bool = False
    ) -> None:
        """Close, make the TUN or put it right, and put the policy for it into force; read the rules back.

        Args:
            policy_for: the policy with that TUN, or with none.
            odd_wires: names of wires that no rule can name: a filter of traffic control knows them by index.
            replace_tun: make a new TUN, however right the present one looks. A core that holds it must have ended.

        Raises:
            TunError: the TUN cannot be made, or another program set it down. The policy without one is in force.
            EnforcementError: the rules or routes could not be made so. If it is the rules, everything is dropped.
        """

    async def amend(self, policy: Policy, *, odd_wires: tuple[str, ...] = ()) -> bool:
        """Put a policy into force that differs in single rules. The lease stays; its next renewal reads all back.

        Returns:
            Whether that was done. If not, it takes `load`; where the kernel holds something else, the lease is closed.
        """

    async def rehearse(self, policy: Policy) -> None:
        """Learn what a policy that comes soon will be compared with. Changes nothing, and may be left out."""


class Prover(Protocol):
    """Opens, and only on the strength of what was just read back."""

    async def read_back(self) -> Proof:
        """Read rules, routes, TUN and settings back, and compare them with the policy in force.

        Raises:
            EnforcementError: something is not as it should be; why. The lease is closed.
        """

    async def renew(self, proof: Proof, cover: Cover) -> Proof:
        """Take the lease, or renew it. If anything was committed since the proof, everything is read back first.

        Returns:
            The proof for the next renewal.

        Raises:
            NoLease: it was closed since the proof was made, or the proof is older than a lease lasts.
            EnforcementError: something is not as it should be, or the policy in force does not open.
                In both cases the lease is closed.
        """

    def close(self) -> None:
        """Close at once: every proof is void, and the lease is taken out of the kernel. Never fails or waits."""


class Restorer(Protocol):
    """Puts back what other programs change."""

    def restore_now(self, area: Literal[Area.RULES, Area.NETWORK]) -> Restored:
        """Another program changed it: close, and put it back at once, without reading anything. Never fails.

        Does nothing while a change of our own is under way; then it takes `restore`. Rules are put back only if they
        did change.
        """

    async def restore(self, area: Area, *, changed: bool = False) -> Restored:
        """Do the same in turn, by nft if needed, and check.

        Args:
            area: what to put back and check.
            changed: another program did change it. Then rules are closed for and put back, and the next call checks
                them; filters are read even if nothing else suggests a change.
        """


class Lock(Loader, Prover, Restorer, Viewed, Protocol):
    """All of it."""
