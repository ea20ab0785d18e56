"""The tables that the daemon keeps in the kernel, and the one generation of the ruleset in which all were right."""

import logging

from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nft import Nft, RulesetError, build_drop_only
from psiphon_vpn.policy import names
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.run import CommandError

log = logging.getLogger(__name__)


class Tables:
    """The base table and those beside it. Reads them back after every change, and whenever anybody changed anything.

    Its owner calls one method at a time.
    """

    def __init__(self, netlink: NftSocket) -> None:
        self._netlink = netlink
        self._nft = Nft(netlink)
        self._base: Table | None = None
        self._beside: tuple[Table, ...] = ()
        self._generation: int | None = None
        """The generation in which all were found right; None when that is not known."""

    def adopt_next(self) -> None:
        """A commit of our own that only took elements away was made: if it was the only one, all is as it was.

        One that found nothing to take away is none: the kernel does not count it.
        """
        if self._generation is None:
            return
        following = (self._generation + 1) & 0xFFFFFFFF or 1
        try:
            now = self._netlink.read_generation()
        except OSError:
            self._generation = None
        else:
            self._generation = now if now in {self._generation, following} else None

    @property
    def in_force(self) -> bool:
        """Whether a policy was put into force; if that failed, what stands is the drop-only table."""
        return self._base is not None

    def adopt(self, generation: int) -> None:
        """A commit of our own to the lease's elements made this generation out of the one that was right."""
        if self._generation is not None:
            self._generation = generation

    def is_current(self) -> bool:
        """Whether nobody committed anything since the tables were found right.

        Raises:
            OSError: the kernel does not answer.
        """
        return self._generation is not None and self._netlink.read_generation() == self._generation

    async def put(self, base: Table, *beside: Table) -> None:
        """Make these the tables in force. Without any change to make, and none made by others, this costs nothing.

        Args:
            base: the table that must stand.
            beside: further layers; the others hold where one of them cannot be loaded.

        Raises:
            RulesetError: the base table did not load, or is not what it should be. Then everything is dropped.
        """
        try:
            same = self._base is not None and self._base.chains == base.chains
            if not (same and beside == self._beside and self.is_current()):
                await self._load(base, beside)
            try:
                await self.check()
            except RulesetError:
                # The base table has just been loaded; what others took away is beside it.
                self._beside = ()
                await self._put_beside(beside)
                await self.check()
            await self._nft.get_ready()
        except (RulesetError, OSError) as error:
            self._base, self._generation = None, None
            await self._drop_everything(base)
            raise RulesetError(str(error)) from error

    async def _load(self, base: Table, beside: tuple[Table, ...]) -> None:
        """Load them: in one transaction where that works, else one by one, so that none fails with another."""
        fresh = tuple(table for table in beside if table not in self._beside)
        kept = {table.name for table in self._beside} <= {table.name for table in beside}
        self._base, self._generation = base, None
        if fresh and kept:
            try:
                await self._nft.replace_all([base, *fresh])
            except RulesetError as error:
                log.debug("not all tables at once: %s", error)
            else:
                self._beside = beside
                return
        await self._nft.replace(base)
        if beside != self._beside:
            await self._put_beside(beside)

    async def rehearse(self, base: Table) -> None:
        """Learn how a table reads that is to be loaded soon, so that its loading does not wait for that.

        Raises:
            RulesetError: that cannot be learned, or what stands is not as it should be.
        """
        try:
            await self._nft.learn([base])
        except (CommandError, OSError, ValueError) as error:
            raise RulesetError(str(error)) from error
        await self.check()  # the copies came and went, which the kernel counts

    async def put_back(self) -> None:
        """Load what is in force once more, all in one transaction: somebody touched it. Reading back comes later.

        Raises:
            RulesetError: it did not load; what stands is not known.
        """
        if self._base is None:
            return
        self._generation = None
        await self._nft.replace_all([self._base, *self._beside])
        await self._nft.get_ready()

    async def get_ready(self) -> None:
        """Have everything at hand for `put_back`."""
        await self._nft.get_ready()

    def close(self) -> None:
        """End what waits; the tables stay."""
        self._nft.close()

    async def _put_beside(self, wanted: tuple[Table, ...]) -> None:
        standing, self._beside = self._beside, ()
        # Only one of our own: what a daemon before us put up stands until we know the devices and put up another.
        guarded = any(table.name == names.EGRESS_TABLE for table in standing)
        if guarded and not any(table.name == names.EGRESS_TABLE for table in wanted):
            await self._nft.remove("netdev", names.EGRESS_TABLE)
        for table in wanted:
            try:
                if table not in standing:
                    await self._nft.replace(table)
                self._beside += (table,)
            except RulesetError as error:
                # An interface that went away in this moment: its event follows, and with it another attempt. The
                # other layers hold meanwhile.
                log.warning("table %s %s not loaded: %s", table.family, table.name, error)

    async def check(self) -> int:
        """The generation in which all tables are right: the known one if nothing was committed since, or a new look.

        Raises:
            RulesetError: a table is not as it should be.
        """
        try:
            if self._base is None:
                raise RulesetError("no policy is in force")
            if self._generation is None or not self.is_current():
                self._generation = None
                self._generation = await self._nft.verify([self._base, *self._beside])
        except OSError as error:
            raise RulesetError(str(error)) from error
        return self._generation

    async def _drop_everything(self, base: Table) -> None:
        try:
            await self._nft.replace(build_drop_only(base))
            log.error("the policy could not be put into force: everything is dropped")
        except RulesetError as error:
            log.critical("not even the drop-only table could be loaded: %s", error)
