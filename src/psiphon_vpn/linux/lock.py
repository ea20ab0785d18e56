"""What the service knows of the kernel's side of the lock: one interface, which `Enforcer` is behind.

How a table is put back fast, what is compared with what, and by which socket, is no business of those above.
"""

from dataclasses import dataclass
from typing import Protocol

from psiphon_vpn.linux.ipv6 import Ipv6
from psiphon_vpn.linux.traffic import Standing
from psiphon_vpn.linux.tun import Tun
from psiphon_vpn.policy.model import Policy


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
    """All that is ours is in force, and yet what programs send is not sent into the tunnel."""


@dataclass(frozen=True)
class Trouble:
    """What a look at rules, routes and TUN found wrong.

    Attributes:
        tun_gone: the TUN is not the device that was made; a core that holds the old one is of no use.
    """

    detail: str
    tun_gone: bool = False


class Lock(Protocol):
    """A policy in force, and the lease that is open only while it was just found to be in force.

    Every method that may fail raises `EnforcementError`, with the lease closed, unless it says otherwise.
    """

    # -- what is so now ---------------------------------------------------------------------------------------------

    routing_trouble: str | None
    """What the last look at rules, routes and TUN found wrong."""
    odd_wires: tuple[str, ...]
    """Wires whose names stand in no rule: a filter of traffic control knows its card by index."""
    ipv6: Ipv6
    """What the TUN had of IPv6 when the policy in force was made."""

    @property
    def tun(self) -> Tun | None:
        """The TUN that was made, if any."""

    @property
    def unguarded(self) -> tuple[str, ...]:
        """The wires of the policy in force without an egress guard, where this kernel knows one."""

    @property
    def leased(self) -> bool:
        """Whether the lease was taken and not given up since."""

    @property
    def ran_out(self) -> bool:
        """Whether the lease was taken, and its time is over: nobody renewed it, and the kernel has forgotten it."""

    @property
    def ipv6_open(self) -> bool:
        """Whether the lease covers IPv6."""

    def read_lease(self) -> bool:
        """Whether the kernel itself holds the lease now.

        Raises:
            OSError: the kernel does not say.
        """

    # -- close: never fails, and waits for nothing --------------------------------------------------------------------

    def close(self) -> None:
        """Close at once: what was found is worth nothing any more, and the lease is taken out of the kernel."""

    # -- load -------------------------------------------------------------------------------------------------------

    async def ensure_tun(self) -> Tun:
        """Make the TUN or put it right. Raises TunError."""

    def doubt_tun(self) -> None:
        """Have the TUN made anew by the next `ensure_tun`."""

    async def apply(self, policy: Policy) -> None:
        """Put a policy into force, closed, and read it back."""

    async def amend(self, policy: Policy) -> bool:
        """Put a policy into force that differs in single rules, with the lease as it is. False: it takes `apply`."""

    async def rehearse(self, policy: Policy) -> None:
        """Have at hand what a policy that comes soon is compared with."""

    # -- read back, open and renew ------------------------------------------------------------------------------------

    async def verify(self) -> object:
        """Read rules, routes and TUN back."""

    async def open(self, *, proxy: bool = True) -> None:
        """Take the lease, after one more look at everything."""

    async def renew(self) -> None:
        """Renew the lease if nothing changed since the last look; look again if something did. Raises NoLease too."""

    async def open_ipv6(self) -> None:
        """IPv6 as well: the tunnel was found to carry it."""

    # -- what others changed: found, and put back ---------------------------------------------------------------------

    def is_own(self, port: int) -> bool:
        """Whether a change of routes was made by us."""

    def is_own_commit(self, port: int) -> bool:
        """Whether a commit of rules was made by us."""

    def is_own_look(self, port: int) -> bool:
        """Whether what looks like a change of traffic control is a reading of ours."""

    async def check_routes(self) -> Trouble | None:
        """Why rules, routes or the TUN are not as they should be. Never fails."""

    async def check_rules(self) -> str | None:
        """Why the tables are not as they were loaded. Never fails."""

    @property
    def filters(self) -> tuple[tuple[str, Standing], ...]:
        """What stood at the traffic control of each wire when it was last looked at."""

    def doubt_filters(self, index: int | None = None) -> bool:
        """Somebody changed traffic control at an interface, or nobody knows where; whether that may concern ours."""

    async def check_filters(self) -> bool:
        """Look at the filters of traffic control, and put them back. Whether anything had to be done."""

    async def clear_tun(self) -> str | None:
        """The tunnel carries nothing: take away what others put before the TUN. What it was. Never fails."""

    def put_rules_back_now(self) -> bool:
        """If somebody changed the tables: close and make them anew in the same breath. Whether that was done."""

    async def put_rules_back(self) -> bool:
        """Do the same in its turn, also where it takes longer. Whether there was anything to put back."""

    def put_network_back(self) -> bool:
        """Put back what is missing of rules, routes and TUN, and close. Whether the TUN was made again."""

    def shut_down(self) -> None:
        """End what is ours alone. What stands in the kernel stays."""
