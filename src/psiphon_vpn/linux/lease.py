# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lease in the kernel: set elements that time out, taken and renewed with a proof, and withdrawn at once.

What is closed while something is being opened stays closed: every `close` makes the proofs from before it void.
"""

import errno
import logging
import time
from dataclasses import replace

from psiphon_vpn.linux.lock import Cover, NoLease, Proof
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.nfnetlink import Element, GenerationChanged, NftSocket
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.tasks import describe

log = logging.getLogger(__name__)

CATCH_UPS = 200
"""How often a renewal is tried beside programs whose commits cannot change a rule. A try takes a tenth of the time
between two commits at 1,000 a second."""
LEASE_SETS = (names.LEASE_SET, names.LEASE_SET_IPV6)


def read_boot_seconds() -> float:
    """Seconds since boot, sleep included (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def holds_lease(netlink: NftSocket) -> bool:
    """Whether the kernel itself holds the lease now: the set has the TUN, and its time has not run out.

    Raises:
        OSError: the kernel does not answer.
    """
    return netlink.holds(Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME))


class Lease:
    """The lease as this daemon has taken it. The kernel may hold less: it runs out without notice.

    Args:
        netlink: by which it is taken.
        tables: the tables that the proofs are about.
    """

    def __init__(self, netlink: NftSocket, tables: Tables) -> None:
        self._netlink = netlink
        self._tables = tables
        self._renewed_at = 0.0
        self.cover: Cover | None = None
        """What it covers; None if it is not taken."""
        self.closings = 0
        """How often it was closed: an earlier proof is void."""

    @property
    def ran_out(self) -> bool:
        """Whether it was taken, and the kernel's elements have timed out since."""
        return self.cover is not None and read_boot_seconds() - self._renewed_at > names.LEASE_SECONDS

    def void(self) -> None:
        """Make every proof so far void."""
        self.closings += 1
        self.cover = None

    def close(self) -> None:
        """Close at once: every proof is void, and the lease is taken out of the kernel. Never fails."""
        # Elements that may have timed out do not count.
        held = self.cover is not None and read_boot_seconds() - self._renewed_at < names.LEASE_SECONDS - 1
        self.void()
        try:
            self._tables.withdraw(LEASE_SETS, held=held)
        except OSError as error:
            # Without the table there is no lease. After any other error the lease runs out by itself.
            if error.errno != errno.ENOENT:
                log.error("the lease could not be withdrawn and will run out by itself: %s", error)
        except Exception as error:  # noqa: BLE001  the caller goes on to report why it closed: nothing may interrupt that
            log.error("the lease could not be withdrawn and will run out by itself: %s", describe(error))

    def prove(self, generation: int, closings: int) -> Proof:
        """A proof, for `Reader.read_back` alone.

        Args:
            generation: of the ruleset in which everything was just found right.
            closings: how often it had been closed when that reading began.
        """
        return Proof(generation=generation, closings=closings, made_at=read_boot_seconds(), fresh=True)

    def check(self, proof: Proof) -> None:
        """Whether a proof is still good.

        Raises:
            NoLease: it was closed since, or the kernel's elements have timed out meanwhile.
        """
        if proof.closings != self.closings:
            raise NoLease("it was closed since it was read back")
        if read_boot_seconds() - proof.made_at > names.LEASE_SECONDS:
            # The daemon was stopped, starved or asleep: what was verified then says nothing about now.
            raise NoLease("the lease ran out", expired=True)

    def renew(self, proof: Proof, cover: Cover) -> Proof:
        """Take it, or renew it.

        Args:
            proof: what it rests on. Where that was read back in this moment, it does not matter what others do to
                tables of their own meanwhile.
            cover: what it opens besides the TUN's IPv4.

        Returns:
            The proof for the next time.

        Raises:
            NoLease: the proof is void.
            GenerationChanged: somebody committed something that may have changed a rule.
            OSError: the kernel refused it.
        """
        self.check(proof)
        elements = [Element(names.BASE_TABLE, names.LEASE_SET, names.TUN_NAME)]
        if cover.proxy and (loopback := InterfaceName.of(name_loopback())) is not None:
            elements.append(Element(names.BASE_TABLE, names.LEASE_SET, loopback))
        if cover.ipv6:
            elements.append(Element(names.BASE_TABLE, names.LEASE_SET_IPV6, names.TUN_NAME))
        generation = proof.generation
        for _ in range(CATCH_UPS):
            asked_at = read_boot_seconds()  # the kernel counts from somewhere within the call
            try:
                generation = self._netlink.renew(tuple(elements), names.LEASE_SECONDS * 1000, generation=generation)
                break
            except GenerationChanged:
                # The kernel has announced all that was committed before it refused.
                newer = self._tables.catch_up(generation, fresh=proof.fresh)
                if newer == generation:
                    raise
                generation = newer
        else:
            raise GenerationChanged
        self._tables.adopt(generation)
        self.cover, self._renewed_at = cover, asked_at
        return replace(proof, generation=generation, made_at=self._renewed_at, fresh=False)
