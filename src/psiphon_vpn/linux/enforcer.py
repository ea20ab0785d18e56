"""The policy in force: puts it into the kernel, reads it back, and takes the lease (`lease`) with what it found."""

import asyncio
import logging
from functools import lru_cache

from psiphon_vpn.linux.card_filters import CardFilters
from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.features import Features
from psiphon_vpn.linux.ipv6 import Ipv6, read_ipv6
from psiphon_vpn.linux.lease import Lease, Proof
from psiphon_vpn.linux.lock import EnforcementError, LedAround, NoLease, Trouble
from psiphon_vpn.linux.loopback import name_loopback
from psiphon_vpn.linux.nfnetlink import GenerationChanged, NftSocket
from psiphon_vpn.linux.nft import RulesetError
from psiphon_vpn.linux.putback import NetworkMender
from psiphon_vpn.linux.queueing import find_own_port, remove_foreign
from psiphon_vpn.linux.routes import RoutingError, apply_routes, apply_rules, check_routing, find_detour
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.linux.sysctl import apply_sysctls, check_sysctls
from psiphon_vpn.linux.tables import Tables
from psiphon_vpn.linux.traffic import NetlinkTraffic, Standing
from psiphon_vpn.linux.tun import Tun, TunError, check_tun, ensure_tun, find_tun_set_down
from psiphon_vpn.linux.uplink_entries import put_entries_back
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_arp_table, build_egress_guard
from psiphon_vpn.policy.guests import list_networks
from psiphon_vpn.policy.missing_parts import do_without
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.routing import Route, build_routes, build_rules
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.policy.sysctls import SYSCTLS
from psiphon_vpn.policy.values import show_name

log = logging.getLogger(__name__)

# A table is a value, made of nothing but these arguments. One event asks for the same several times.
_build_base_table = lru_cache(maxsize=8)(build_base_table)
_build_egress_guard = lru_cache(maxsize=8)(build_egress_guard)


class Enforcer:
    """Holds the kernel's side of the policy in force."""

    def __init__(
        self, *, identity: Identity, netlink: NftSocket, features: Features, commits: Commits | None = None
    ) -> None:
        self._identity = identity
        self._netlink = netlink
        self._tables = Tables(netlink, commits)
        self._socket = RouteSocket()
        self._mender = NetworkMender(identity.uid, self._socket)
        self._features = features
        self._filters = CardFilters(NetlinkTraffic(self._socket) if features.traffic_filters else None)
        self._rules = build_rules(identity)
        self._routes: tuple[Route, ...] = ()
        self._policy: Policy | None = None
        self._tun: Tun | None = None
        # One change or look at a time: a look must not see a change half-way. `close` does not wait for it.
        self._lock = asyncio.Lock()
        self._lease = Lease(netlink, self._tables)
        self._suspect = False
        """Whether a route by the TUN was refused, or it carried nothing: it is made anew, whatever it looks like."""
        self.ipv6 = Ipv6.ON
        """What the TUN had of IPv6 when the policy in force was made."""
        self.routing_trouble: str | None = None
        """What the last look at rules, routes and TUN found wrong."""

    @property
    def tun(self) -> Tun | None:
        """The TUN that was made, if any."""
        return self._tun

    def close(self) -> None:
        """Close at once: every proof is void, and the lease is taken out of the kernel. Never fails."""
        self._lease.close()

    async def ensure_tun(self) -> Tun:
        """Make the TUN or put it right.

        Raises:
            TunError: it cannot be made.
        """
        async with self._lock:
            anew, self._suspect = self._suspect, False
            if anew:
                self._tun = None  # what is told of its end is our own doing
            try:
                self._tun = await ensure_tun(self._socket, uid=self._identity.uid, anew=anew)
            except TunError:
                # Somebody sets it down as often as it is set up: who is deaf to this one never sees that it is a fight.
                self._tun = find_tun_set_down(self._identity.uid) or self._tun
                raise
            self.ipv6 = read_ipv6(names.TUN_NAME)
            return self._tun

    def doubt_tun(self) -> None:
        """Have the TUN made anew by the next `ensure_tun`. A core that holds it has to be ended before that."""
        self._suspect = True

    async def apply(self, policy: Policy) -> None:
        """Put a policy into force: rules first, then routes. The tunnel is closed by it, whatever the state.

        Args:
            policy: what is to hold.

        Raises:
            EnforcementError: the rules or routes could not be made so; then everything is dropped.
        """
        self.close()
        async with self._lock:
            await self._apply(policy)

    async def amend(self, policy: Policy) -> bool:
        """Put a policy into force that differs in single rules. Nothing is closed; the next renewal reads all back.

        Returns:
            Whether that was done. If not, it takes `apply`, and it is closed where the kernel holds something else.
        """
        async with self._lock:
            try:
                await self._filters.shed(policy)
                done = await self._tables.amend(self._build_base(policy), *self._build_beside(policy))
            except (RulesetError, OSError) as error:
                log.warning("rules could not be amended: %s", error)
                self.close()
                return False
            if done:
                self._policy = policy
                await self._fit_filters()
            return done

    def _build_base(self, policy: Policy) -> Table:
        return do_without(_build_base_table(policy), self._features.lacking)

    def _build_beside(self, policy: Policy) -> list[Table]:
        beside = [build_arp_table()]
        if self._features.egress_hook:
            egress = _build_egress_guard(
                policy.identity,
                policy.links.wires,
                policy.links.dhcp_servers,
                headerless=policy.links.headerless,
                on_link=policy.links.on_link,
            )
            beside += [egress] if egress is not None else []
        return beside

    async def _apply(self, policy: Policy) -> None:
        self._policy = policy
        await self._filters.shed(policy)
        try:
            await self._tables.put(self._build_base(policy), *self._build_beside(policy))
            guests = list_networks(policy.links.bridges)
            self._rules = build_rules(self._identity, guests, loopback=name_loopback())
            await apply_rules(self._socket, self._rules)
            await self._set_routes(open_ipv4=False, open_ipv6=False)
            await self._put_entries_back()
            self.routing_trouble = None
        except (RulesetError, RoutingError, OSError) as error:
            # Nothing that no guard accepted leaves by a card, whatever stands of the guards now.
            await self._filters.fit(policy, policy.links.wires if self._features.egress_hook else (), loaded=False)
            raise EnforcementError(str(error)) from error
        for failure in apply_sysctls(SYSCTLS):
            log.warning("kernel setting not made: %s", failure)
        await self._fit_filters()

    async def _fit_filters(self) -> bool:
        """Put the filters to the guards that were just read back; whether anything had to be done. Opens nothing."""
        if self._policy is None:
            return False
        guarded = self._tables.guarded if self._features.egress_hook else frozenset[str]()
        return await self._filters.fit(self._policy, guarded)

    async def check_filters(self) -> bool:
        """Look at the filters of traffic control, if anything may have changed them, and put them back.

        Returns:
            Whether anything had to be done.
        """
        async with self._lock:
            return self._tables.in_force and await self._fit_filters()

    def doubt_filters(self, index: int | None = None) -> bool:
        """Somebody changed traffic control at an interface, or nobody knows where; whether that may concern ours."""
        return self._filters.doubt(index)

    @property
    def filters(self) -> tuple[tuple[str, Standing], ...]:
        """What stood at the traffic control of each wire when it was last looked at."""
        return self._filters.standings

    @property
    def odd_wires(self) -> tuple[str, ...]:
        """Wires whose names stand in no rule: a filter knows its card by index."""
        return self._filters.odd_wires

    @odd_wires.setter
    def odd_wires(self, wires: tuple[str, ...]) -> None:
        self._filters.odd_wires = wires

    async def rehearse(self, policy: Policy) -> None:
        """Have at hand what a policy that comes soon is compared with. Changes nothing, and is not needed.

        Args:
            policy: it need never come.
        """
        async with self._lock:
            try:
                await self._tables.rehearse(self._build_base(policy))
            except RulesetError as error:
                log.debug("not rehearsed: %s", error)

    async def verify(self) -> Proof:
        """Read rules, routes and TUN back.

        Raises:
            EnforcementError: something is not as it should be; why.
        """
        async with self._lock:
            return await self._verify()

    @property
    def unguarded(self) -> tuple[str, ...]:
        """The wires of the policy in force without an egress guard, where this kernel knows one."""
        if self._policy is None or not self._features.egress_hook:
            return ()
        guarded = self._tables.guarded
        return tuple(name for name in self._policy.links.wires if name not in guarded)

    async def _verify(self) -> Proof:
        closings = self._lease.closings
        if self._tun is None:
            raise EnforcementError("there is no TUN")
        # A wire beside the core's way leaks its raw frames in every state alike: not to open would stop none of them.
        if bare := [name for name in self.unguarded if self._policy is not None and name in self._policy.links.stack]:
            raise EnforcementError(f"there is no egress guard on {', '.join(bare)}")
        try:
            generation = await self._tables.check()
            wrong = self._find_changed_settings()
            if wrong is None and (bad_tun := await check_tun(self._tun, uid=self._identity.uid)):
                wrong = bad_tun.detail
            wrong = wrong or await check_routing(self._rules, self._routes, self._tun.index)
            detour = None if wrong else await find_detour(self._routes, self._tun.index)
        except (RulesetError, OSError) as error:
            raise EnforcementError(str(error)) from error
        if wrong is not None:
            raise EnforcementError(wrong)
        if detour is not None:
            raise LedAround(detour)
        return Proof(generation, closings)

    async def open(self, *, proxy: bool = True) -> None:
        """Take the lease: the routes into the TUN, one more look at everything, and then the lease.

        Args:
            proxy: the core listens on the SOCKS port, so it is open too. To a stranger there nothing is handed over.

        Raises:
            EnforcementError: not everything is as it should be, or it was closed meanwhile. It is closed.
        """
        closings = self._lease.closings
        try:
            async with self._lock:
                await self._set_routes(open_ipv4=True, open_ipv6=False)
                proof = await self._verify()
                if closings != self._lease.closings:
                    raise EnforcementError("closed while it was being opened")
                self._need_open_policy()
                self._lease.take(proof, proxy=proxy)
        except LedAround:
            self.close()
            raise
        except (RoutingError, EnforcementError, GenerationChanged, OSError) as error:
            self.close()
            raise EnforcementError(str(error) or "the ruleset changed while it was being opened") from error

    async def renew(self) -> None:
        """Renew the lease if nothing changed since the last look; look again if something did.

        Raises:
            NoLease: there is none, or it ran out.
            EnforcementError: something is not as it should be. It is closed.
        """
        proof = self._lease.proof
        if proof is None:
            raise NoLease("there is no lease to renew")
        if self._lease.ran_out:
            # We were stopped, starved or asleep: what was verified then says nothing about now.
            self.close()
            raise NoLease("the lease ran out", expired=True)
        if changed := self._find_changed_settings():
            # The kernel tells nobody of these.
            self.close()
            raise EnforcementError(changed)
        try:
            self._need_open_policy()
            try:
                self._lease.renew(proof)
            except GenerationChanged:
                proof = await self.verify()
                self._need_open_policy()
                self._lease.renew(proof, fresh=True)
        except (EnforcementError, GenerationChanged, OSError) as error:
            self.close()
            raise EnforcementError(str(error) or "the ruleset keeps changing") from error

    def _find_changed_settings(self) -> str | None:
        """What somebody changed of the kernel's settings. They are put back with the policy."""
        if changed := check_sysctls(SYSCTLS):
            return f"somebody changed {', '.join(changed)}"
        now = read_ipv6(names.TUN_NAME)
        return None if now is self.ipv6 else f"IPv6 was turned {'on' if now is Ipv6.ON else 'off'} on this machine"

    async def open_ipv6(self) -> None:
        """IPv6 as well: the tunnel was found to carry it.

        Raises:
            EnforcementError: as for `renew`.
        """
        if self._lease.proof is None or self.ipv6 is not Ipv6.ON:
            return
        try:
            async with self._lock:
                await self._set_routes(open_ipv4=True, open_ipv6=True)
        except RoutingError as error:
            self.close()
            raise EnforcementError(str(error)) from error
        if self._lease.proof is not None:
            self._lease.cover_ipv6()
            await self.renew()

    async def check_routes(self) -> Trouble | None:
        """Why rules, routes or the TUN are not as they should be; None when all is well."""
        if self._tun is None:
            return None
        found: Trouble | None = None
        try:
            async with self._lock:
                await self._put_entries_back()
                wrong = await check_tun(self._tun, uid=self._identity.uid)
                if wrong is not None:
                    found = Trouble(wrong.detail, wrong.gone)
                elif lost := self._find_changed_settings() or await check_routing(
                    self._rules, self._routes, self._tun.index
                ):
                    found = Trouble(lost)
                elif detour := await find_detour(self._routes, self._tun.index):
                    found = Trouble(f"another program leads around the tunnel: {detour}")
        except OSError as error:
            found = Trouble(str(error))
        self.routing_trouble = found.detail if found else None
        return found

    def put_rules_back_now(self) -> bool:
        """If somebody changed the tables: close and make them anew in the same breath. Reading back is another call.

        Returns:
            Whether that was done. If not, there was nothing to put back, or it takes `put_rules_back`.
        """
        try:
            if self._lock.locked() or not self._tables.stand or self._tables.is_current():
                return False
        except OSError:
            return False
        return self._replace_tables()

    def _replace_tables(self) -> bool:
        """Close and put back in one transaction: the lease's sets come back empty.

        Closing first would cost a grace period of the kernel's (10 ms) where the base table is gone: a transaction that
        fails is undone only after one (nf_tables_api.c, __nf_tables_abort).
        """
        self._lease.void()
        if self._tables.put_back_now():
            return True
        self.close()
        return False

    def put_network_back(self) -> bool:
        """Somebody took rules, routes or the TUN away: put back what is missing, and close, in the same breath.

        A TUN that is gone is made again; that it is another one is for `ensure_tun` and a new core to mend. Never
        fails: what could not be put back is found by `check_routes`.

        Returns:
            Whether the TUN was made again.
        """
        if self._lock.locked() or self._tun is None or self._policy is None:
            return False
        made = self._mender.mend(self._tun.index, rules=self._rules, ipv6_probe=self._probes(), ipv6=self.ipv6)
        self.close()
        return made

    async def put_rules_back(self) -> bool:
        """Do what `put_rules_back_now` does when no change of our own is under way, and by nft where that fails.

        Returns:
            Whether there was anything to put back.
        """
        try:
            if not self._tables.stand or self._tables.is_current():
                return False
            async with self._lock:
                if self._tables.is_current():
                    return False
                if not self._replace_tables():
                    await self._tables.put_back()
        except (RulesetError, OSError) as error:
            log.warning("rules could not be put back at once: %s", error)
        return True

    async def clear_tun(self) -> str | None:
        """The tunnel carries nothing: take away what other programs put before the TUN. Never fails.

        What lets packets through is theirs to have: nothing is taken away from a tunnel that carries.

        Returns:
            What it was; None where there was nothing.
        """
        if self._tun is None:
            return None
        try:
            async with self._lock:
                kinds = await remove_foreign(self._socket, self._tun.index)
        except OSError as error:
            log.warning("traffic control at the TUN could not be looked at: %s", error)
            return None
        return ", ".join(map(show_name, kinds)) or None

    def is_own_look(self, port: int) -> bool:
        """Whether what looks like a change of traffic control is a reading of ours: the kernel announces those too."""
        return port == find_own_port()

    def is_own(self, port: int) -> bool:
        """Whether a change of routes was made by us, by the port id in its announcement."""
        return port == self._socket.port

    def shut_down(self) -> None:
        """End what is ours alone. What stands in the kernel stays."""
        self._socket.close()

    async def check_rules(self) -> str | None:
        """Why the tables are not as they were loaded; None when all is well."""
        try:
            async with self._lock:
                if self._tables.stand:
                    await self._tables.look()
        except RulesetError as error:
            return str(error)
        return None

    def read_lease(self) -> bool:
        """Whether the kernel itself holds the lease now: the set has the TUN, and its time has not run out.

        Raises:
            OSError: the kernel does not say.
        """
        return self._lease.read()

    def is_own_commit(self, port: int) -> bool:
        """Whether a commit was made by our own socket, by the port id in its announcement."""
        return port == self._netlink.port

    @property
    def leased(self) -> bool:
        """Whether the lease was taken and not given up since."""
        return self._lease.proof is not None

    @property
    def ran_out(self) -> bool:
        """Whether the lease was taken, and its time is over: nobody renewed it, and the kernel has forgotten it."""
        return self._lease.proof is not None and self._lease.ran_out

    @property
    def ipv6_open(self) -> bool:
        """Whether the lease covers IPv6."""
        return self._lease.ipv6

    def _need_open_policy(self) -> None:
        if self._policy is None or self._policy.state is not State.OPEN:
            raise EnforcementError("the policy in force does not open")

    async def _put_entries_back(self) -> None:
        if self._policy is not None and self._policy.links.uplink is not None:
            await put_entries_back(self._socket, self._policy.links.uplink)

    def _probes(self) -> tuple[str, ...]:
        return tuple(map(str, self._policy.ipv6_probe)) if self._policy else ()

    async def _set_routes(self, *, open_ipv4: bool, open_ipv6: bool) -> None:
        self._routes = build_routes(
            tun=self._tun is not None,
            open_ipv4=open_ipv4,
            open_ipv6=open_ipv6,
            ipv6_probe=self._probes(),
            ipv6=self.ipv6 is Ipv6.ON,
        )
        try:
            await apply_routes(self._socket, self._routes, self._tun.index if self._tun else None)
        except RoutingError:
            # Perhaps for something about the TUN that nothing here looks at. Down is a thing that is looked at.
            self._suspect = self._tun is not None and find_tun_set_down(self._identity.uid) != self._tun
            raise
        except OSError as error:
            raise RoutingError(str(error)) from error


__all__ = ["EnforcementError", "Enforcer", "LedAround", "Proof", "TunError"]
