"""The lease in the kernel: set elements that time out, taken and renewed with a proof, and withdrawn at once.

A proof is good for one generation of the ruleset (the kernel itself refuses the renewal otherwise) and until the next
`close`: what is closed while something is being opened stays closed.
"""

import errno
import logging
import time
from dataclasses import dataclass, replace

from psiphon_vpn.linux.lock import EnforcementError
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.nfnetlink import Element, GenerationChanged, NftSocket
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.tasks import describe

log = logging.getLogger(__name__)

CATCH_UPS = 200
"""So often a renewal is tried against programs that commit what cannot change a rule: it takes a tenth of the time that
1,000 of these a second leave between two."""
LEASE_SETS = (names.LEASE_SET, names.LEASE_SET_IPV6)


@dataclass(frozen=True)
class Proof:
    """That rules, routes and TUN were just found as the policy in force says. Made by `Enforcer.verify` alone.

    Attributes:
        generation: of the ruleset, in which they were.
        closings: how often it had been closed by then.
    """

    generation: int
    closings: int


def _boot_seconds() -> float:
    """Seconds since boot, sleep included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """What of the lease this daemon has taken. What the kernel holds of it may be less: it runs out without a word."""

    def __init__(self, netlink: NftSocket, tables: Tables) -> None:
        self._netlink = netlink
        self._tables = tables
        self._proof: Proof | None = None
        self._renewed_at = 0.0
        self._proxy = False
        self._ipv6 = False
        self.closings = 0
        """How often it was closed: a proof from before the last time is void."""

    @property
    def proof(self) -> Proof | None:
        """What it rests on; None while there is none."""
        return self._proof

    @property
    def ipv6(self) -> bool:
        """Whether it covers IPv6."""
        return self._proof is not None and self._ipv6

    @property
    def ran_out(self) -> bool:
        """Whether the kernel's elements have timed out: we were stopped, starved or asleep."""
        return _boot_seconds() - self._renewed_at > names.LEASE_SECONDS

    def read(self) -> bool:
        """Whether the kernel itself holds the lease now: the set has the TUN, and its time has not run out.

        Raises:
            OSError: the kernel does not say.
        """
        return self._netlink.holds(Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME))

    def void(self) -> None:
        """Every proof is void from here on."""
        self.closings += 1
        self._proof = None
        self._ipv6 = False

    def close(self) -> None:
        """Close at once: every proof is void, and the lease is taken out of the kernel. Never fails."""
        # Elements that may have timed out count as none.
        held = self._proof is not None and _boot_seconds() - self._renewed_at < names.LEASE_SECONDS - 1
        self.void()
        try:
            self._tables.withdraw(LEASE_SETS, held=held)
        except OSError as error:
            # Without the table there is no lease either. Anything else: the lease runs out by itself.
            if error.errno != errno.ENOENT:
                log.error("the lease could not be withdrawn and will run out by itself: %s", error)
        except Exception as error:  # noqa: BLE001  whoever closes goes on to say why: nothing may come between
            log.error("the lease could not be withdrawn and will run out by itself: %s", describe(error))

    def take(self, proof: Proof, *, proxy: bool) -> None:
        """Take it on the strength of a proof that was made in this moment.

        Args:
            proof: what was just found.
            proxy: the core listens on the SOCKS port, so it is open too.

        Raises:
            EnforcementError: it was closed since.
            GenerationChanged: somebody committed something that may have changed a rule.
            OSError: the kernel refused it.
        """
        self._proxy = proxy
        self.renew(proof, fresh=True)

    def cover_ipv6(self) -> None:
        """With the next renewal."""
        self._ipv6 = True

    def renew(self, proof: Proof, *, fresh: bool = False) -> None:
        """Renew it.

        Args:
            proof: what it rests on.
            fresh: that was read back in this moment, so that what others do to tables of their own meanwhile is no
                matter.

        Raises:
            EnforcementError: it was closed since.
            GenerationChanged: somebody committed something that may have changed a rule.
            OSError: the kernel refused it.
        """
        if proof.closings != self.closings:
            raise EnforcementError("closed meanwhile")
        elements = [Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME)]
        if self._proxy and (loopback := InterfaceName.of(name_loopback())) is not None:
            elements.append(Element(names.BASE_TABLE, names.LEASE_SET, loopback))
        if self._ipv6:
            elements.append(Element(names.BASE_TABLE, names.LEASE_SET_IPV6, names.TUN_NAME))
        generation = proof.generation
        for _ in range(CATCH_UPS):
            # The kernel counts from somewhere within the call.
            asked_at = _boot_seconds()
            try:
                generation = self._netlink.renew(tuple(elements), names.LEASE_SECONDS * 1000, generation=generation)
                break
            except GenerationChanged:
                # The kernel has announced all that was committed before it refused.
                newer = self._tables.catch_up(generation, fresh=fresh)
                if newer == generation:
                    raise
                generation = newer
        else:
            raise GenerationChanged
        self._tables.adopt(generation)
        self._proof = replace(proof, generation=generation)
        self._renewed_at = asked_at
