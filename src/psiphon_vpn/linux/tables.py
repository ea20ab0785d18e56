# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that the daemon keeps in the kernel, and the generation of the ruleset in which all were right."""

import contextlib
import logging

from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.images import Images
from psiphon_vpn.linux.nfnetlink import GenerationChanged, NftSocket, follow
from psiphon_vpn.linux.nft import LoadText, Nft, RulesetError, load_text
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_drop_only
from psiphon_vpn.policy.ruleset import Table

log = logging.getLogger(__name__)

_LOOKS = 10


class Tables:
    """The base table and those beside it. Reads them back after every change by any program.

    Its owner calls one method at a time.

    Args:
        netlink: by which the ruleset is read and committed to.
        commits: other programs' commits; without it every commit leads to a reading.
        images: where images of tables are kept.
        load: what loads a text of nft.
    """

    def __init__(
        self,
        netlink: NftSocket,
        commits: Commits | None = None,
        *,
        images: Images | None = None,
        load: LoadText = load_text,
    ) -> None:
        self._netlink = netlink
        self._commits = commits
        self._images = Images(netlink) if images is None else images
        self._nft = Nft(netlink, commits, self._images, load)
        self._base: Table | None = None
        self._dropped = False
        """Whether that is the drop-only table, loaded in place of a policy that could not be loaded."""
        self._beside: tuple[Table, ...] = ()
        self._generation: int | None = None
        """The generation in which all were found right; None if unknown."""
        self._from_image = False
        """Whether the last `put` made what is in force from an image."""

    def withdraw(self, set_names: tuple[str, ...], *, held: bool) -> None:
        """Empty sets of the base table at once. What was known to be right stays known, if that was the only commit.

        Args:
            set_names: the sets of the lease.
            held: whether they have elements. The kernel does not count the emptying of empty sets, and the next number
                may then be another program's commit.

        Raises:
            OSError: ENOENT where there is no such table or set.
        """
        known, self._generation = self._generation, None
        while True:
            try:
                self._netlink.flush_sets(names.BASE_TABLE, set_names, generation=known)
                break
            except GenerationChanged:
                newer = self.catch_up(known) if known is not None else known
                if newer == known:
                    # Another program committed: empty them all the same, and read everything again.
                    self._netlink.flush_sets(names.BASE_TABLE, set_names)
                    return
                known = newer
        if known is not None:
            expected = follow(known) if held else known
            self._generation = expected if self._netlink.read_generation() == expected else None

    @property
    def in_force(self) -> bool:
        """Whether a policy is in force; after a failed load the drop-only table is."""
        return self._base is not None and not self._dropped

    @property
    def stand(self) -> bool:
        """Whether there is anything to put back: a policy's tables, or the drop-only table."""
        return self._base is not None

    def adopt(self, generation: int) -> None:
        """Our own commit to the lease's elements made this generation from the one that was right."""
        if self._generation is not None:
            self._generation = generation

    def catch_up(self, generation: int, *, fresh: bool = False) -> int:
        """The last generation that came from a given one only by commits that cannot have changed a rule.

        fresh: by commits that touched no table of ours. For a generation in which everything was just read back: what
            others do to their own tables meanwhile does not make the reading less true.
        """
        if self._commits is None:
            return generation
        return self._commits.find_untouched(generation) if fresh else self._commits.find_equal(generation)

    def _is_equal(self, generation: int, now: int) -> bool:
        return generation == now or (self._commits is not None and self._commits.is_untouched(generation, now))

    def is_current(self) -> bool:
        """Whether, since the tables were found right, there were only commits that cannot have changed a rule.

        Raises:
            OSError: the kernel does not answer.
        """
        for _ in range(_LOOKS):
            if self._generation is None:
                return False
            now = self._netlink.read_generation()
            if now == self._generation:
                return True
            if self._commits is None:
                return False
            # The number changes a moment before the announcement arrives.
            self._generation = self.catch_up(self._generation)
            if now == self._generation:
                return True
        return False

    def hold(self, base: Table, *beside: Table) -> bool:
        """Whether exactly these were loaded last. Whether they still stand is for `is_current` to say."""
        same = self._base is not None and not self._dropped and self._base.chains == base.chains
        return same and beside == self._beside

    async def put(self, base: Table, *beside: Table) -> None:
        """Make these the tables in force. Costs nothing if nothing differs and nobody changed anything.

        Args:
            base: the table that must stand.
            beside: further layers; if one of them cannot be loaded, the others hold.

        Raises:
            RulesetError: the base table did not load, or is not what it should be. Then everything is dropped.
        """
        self._from_image = False
        try:
            if not (self.hold(base, *beside) and self.is_current()):
                await self._load(base, beside)
            try:
                await self.check()
            except RulesetError:
                # The base table has just been loaded, so the wrong table is beside it, unless images were used.
                if self._from_image:
                    await self._nft.replace(base)
                self._beside = ()
                await self._put_beside(beside)
                await self.check()
                if self._from_image:
                    self._images.doubt()
        except (RulesetError, OSError) as error:
            await self._drop_everything(base)
            raise RulesetError(str(error)) from error

    async def amend(self, base: Table, *beside: Table) -> bool:
        """Make these the tables in force if they differ only in rules: sets and their elements stay as they are.

        Returns:
            Whether that was done. If not, nothing was changed, and `put` is needed.

        Raises:
            RulesetError: they were loaded, and are not what they should be.
        """
        if self.hold(base, *beside):
            return True
        before = self._base
        if before is None or self._dropped or not before.differs_in_rules_alone(base):
            return False
        if [table.name for table in beside] != [table.name for table in self._beside]:
            return False
        known = self._generation if self.is_current() else None
        fresh = [table for table in beside if table not in self._beside]
        self._generation = None
        try:
            made = await self._nft.amend(before, base, fresh, known=known)
        except RulesetError as error:
            # All or nothing: for a refused device only this shortcut is lost, not the other guards.
            log.debug("not amended: %s", error)
            return False
        self._base, self._beside = base, beside
        await self._read_back([base, *fresh], known, made)
        await self.check()
        return True

    async def _load(self, base: Table, beside: tuple[Table, ...]) -> None:
        """Load them in one transaction, or else one by one, so that one failure does not affect the others."""
        fresh = [base, *(table for table in beside if table not in self._beside)]
        kept = {table.name for table in self._beside} <= {table.name for table in beside}
        known = self._generation if self.is_current() else None
        self._base, self._dropped, self._generation = base, False, None
        if kept and (span := self._load_images([base, *beside] if known is None else fresh, known)) is not None:
            self._beside, self._from_image = beside, True
            await self._read_back(fresh, *span)
            return
        if kept:
            try:
                made = await self._nft.replace_all(fresh)
            except RulesetError as error:
                log.debug("not all tables at once: %s", error)
            else:
                self._beside = beside
                await self._read_back(fresh, known, made)
                return
        await self._nft.replace(base)
        if beside != self._beside:
            await self._put_beside(beside)

    def _load_images(self, tables: list[Table], known: int | None) -> tuple[int | None, int] | None:
        """Make tables from their images. Returns the last two arguments of `_read_back`, or None if not done."""
        while known is not None:
            try:
                return (known, follow(known)) if self._images.load(tables, generation=known) else None
            except GenerationChanged:
                newer = self.catch_up(known)
                known = newer if newer != known else None
        made = follow(self._netlink.read_generation())
        return (None, made) if self._images.load(tables) else None

    async def _read_back(self, tables: list[Table], known: int | None, made: int) -> None:
        """Read back only what was loaded, if the rest was right and nobody else has committed since.

        Args:
            tables: what was loaded.
            known: the generation before, in which everything was right, if any.
            made: the generation after, if nobody else committed.
        """
        if known is None or made != follow(known):
            return
        # `check` finds what is wrong with them.
        with contextlib.suppress(RulesetError):
            generation = await self._nft.verify(tables)
            if self._is_equal(made, generation):
                self._generation = generation

    async def rehearse(self, base: Table) -> None:
        """Take the image of a base table that will be loaded soon, so that loading is quick.

        Raises:
            RulesetError: that cannot be done.
        """
        if self._images.find(base) is not None:
            return
        try:
            known = self._generation if self.is_current() else None
            span = await self._nft.learn(base)
        except OSError as error:
            raise RulesetError(str(error)) from error
        if span is not None and span[0] == known:
            self._generation = span[1]

    def put_back_now(self) -> bool:
        """Somebody touched the tables in force: replace them from their images, in one transaction without nft.

        Returns:
            Whether that was done. If not, use `put_back`. Either way, reading back comes later.
        """
        if self._base is None:
            return False
        self._generation = None
        return self._images.load((self._base, *self._beside))

    async def put_back(self) -> None:
        """Somebody touched the tables in force: load all of them again in one transaction. Reading back comes later.

        Raises:
            RulesetError: it did not load; what stands is not known.
        """
        if self._base is None:
            return
        self._generation = None
        await self._nft.replace_all([self._base, *self._beside])

    async def _put_beside(self, wanted: tuple[Table, ...]) -> None:
        standing, self._beside = self._beside, ()
        # Only this daemon's: an earlier daemon's guard stays until the devices are known and a new guard is loaded.
        guarded = any(table.name == names.EGRESS_TABLE for table in standing)
        if guarded and not any(table.name == names.EGRESS_TABLE for table in wanted):
            await self._nft.remove("netdev", names.EGRESS_TABLE)
        for table in wanted:
            try:
                if table not in standing:
                    await self._nft.replace(table)
                self._beside += (table,)
            except RulesetError as error:
                if (left := await self._put_what_loads(table)) is not None:
                    self._beside += (left,)
                    continue
                # Probably an interface just disappeared: its event follows, with another attempt. The other layers hold
                # meanwhile.
                log.warning("table %s %s not loaded: %s", table.family, table.name, error)

    async def _put_what_loads(self, table: Table) -> Table | None:
        """Load a table for those devices that the kernel accepts. Any change leads to another attempt for all."""
        if not table.devices:
            return None
        try:
            left = await self._nft.leave_out_refused(table)
            await self._nft.replace(left)
        except RulesetError:
            return None
        refused = [name for name in table.devices if name not in left.devices]
        log.warning("table %s %s is not on: %s", table.family, table.name, ", ".join(refused))
        return left

    @property
    def beside(self) -> tuple[Table, ...]:
        """The tables in force beside the base table."""
        return self._beside

    async def widen(self, table: Table) -> bool:
        """Load a table beside the base table for more devices, those for which it loads. What stood has no gap.

        Args:
            table: for the devices that it stands on, and those for which it may not load.

        Returns:
            Whether it stands on more of them now; if not, nothing was changed.

        Raises:
            RulesetError: it was loaded, and is not what it should be.
        """
        old = self.guarded
        new = [name for name in table.devices if name not in old]
        try:
            added = await self._nft.leave_out_refused(table.leave_out(old))
            wanted = table.leave_out(set(new) - set(added.devices))
            known = self._generation if self.is_current() else None
            self._generation = None
            made = await self._nft.replace_all([wanted])
        except RulesetError as error:
            log.debug("no more devices for table %s %s: %s", table.family, table.name, error)
            return False
        self._beside = (*(one for one in self._beside if one.name != table.name), wanted)
        await self._read_back([wanted], known, made)
        await self.check()
        return True

    @property
    def guarded(self) -> frozenset[str]:
        """The devices on which the egress guard stands."""
        return frozenset(device for table in self._beside for device in table.devices)

    async def check(self) -> int:
        """The generation in which all tables of the policy are right.

        Raises:
            RulesetError: a table is not as it should be, or no policy could be put into force.
        """
        generation = await self.look()
        if self._dropped:
            raise RulesetError("no policy is in force: everything is dropped")
        return generation

    async def look(self) -> int:
        """The generation in which the tables in force are right: the known one, or read again after a commit.

        Raises:
            RulesetError: a table is not as it should be.
        """
        try:
            if self._base is None:
                raise RulesetError("nothing is in force")
            if self._generation is None or not self.is_current():
                self._generation = None
                self._generation = await self._nft.verify([self._base, *self._beside])
        except OSError as error:
            raise RulesetError(str(error)) from error
        return self._generation

    async def _drop_everything(self, base: Table) -> None:
        self._base, self._dropped, self._generation = build_drop_only(base), True, None
        try:
            await self._nft.replace(self._base)
        except RulesetError as error:
            log.critical("not even the drop-only table could be loaded: %s", error)
            return
        log.error("the policy could not be put into force: everything is dropped")
        # Read back or not: a change of it is announced, and it is put back like any other table.
        with contextlib.suppress(RulesetError):
            await self.look()
