# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""nftables at the edge: replace whole tables, read them back, compare.

nft reads the text; the kernel's own listing shows what it loaded. A listing is compared with the image of the same
table (linux/images.py). Without an image, the listing counts if the generations prove that nobody else has committed
anything since nft loaded the table. Otherwise it is compared with the listing of a *dormant scratch copy* of the same
text (a table with the flag "dormant" has no effect on packets). In both cases it is compared with the policy as well.
"""

import contextlib
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.disturbance import decide, is_refusal
from psiphon_vpn.linux.images import Images
from psiphon_vpn.linux.nfnetlink import GenerationChanged, Message, NftSocket, follow
from psiphon_vpn.linux.nftimage import are_equal, read_image, remove_table
from psiphon_vpn.linux.proof import find_difference
from psiphon_vpn.policy import names
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.run import CommandError, run_async

_ROUNDS = 5
_MOST_QUESTIONS = 64
"""How many times nft is tried to find the devices that are refused; devices not tried by then count as refused."""
LOAD = ("nft", "-f", "-")


LoadText = Callable[[str], Awaitable[None]]
"""Loads a text for nft in one transaction, or raises CommandError and changes nothing."""


async def load_text(text: str) -> None:
    """Have the program nft load a text."""
    await run_async(LOAD, input=text)


class RulesetError(Exception):
    """The kernel does not have the table that it should have."""


class Nft:
    """Loads tables with the program nft, and reads them back.

    Its owner calls one method at a time: there are only so many scratch tables.

    Args:
        netlink: by which the ruleset is read, and copies are removed.
        commits: other programs' commits; without it every commit leads to another reading.
        images: of tables that were found right.
        load: what loads a text.
    """

    def __init__(
        self,
        netlink: NftSocket,
        commits: Commits | None = None,
        images: Images | None = None,
        load: LoadText = load_text,
    ) -> None:
        self._netlink = netlink
        self._commits = commits
        self._load_text = load
        self._images = images if images is not None else Images(netlink)
        self._loaded: dict[str, tuple[Table, int]] = {}
        """By name, what was loaded last, and the generation that this made if nobody else committed meanwhile."""
        self._copies: dict[Table, tuple[str, str]] = {}
        """The dormant copies that stand: family and name."""

    async def replace_all(self, tables: Sequence[Table]) -> int:
        """Replace tables in one transaction, without reading them back.

        Returns:
            The generation that this made, if nobody else committed meanwhile.

        Raises:
            RulesetError: they did not load. What stood before still stands: the transaction is all or nothing.
        """
        return await self._load("".join(table.render_replacement() for table in tables), tables)

    async def replace(self, table: Table) -> None:
        """Replace a table in one transaction with nothing else in it, without reading it back.

        Raises:
            RulesetError: it did not load. What stood before still stands.
        """
        await self.replace_all([table])

    async def amend(self, before: Table, after: Table, beside: Sequence[Table], *, known: int | None) -> int:
        """Replace the rules of a table's chains, and other tables as a whole, in one transaction; read nothing back.

        Args:
            before: the table as it stands.
            after: the same with other rules in its chains.
            beside: tables to replace.
            known: the generation in which it was found to stand so, if any.

        Returns:
            As for `replace_all`.

        Raises:
            RulesetError: they did not load. What stood before still stands.
        """
        text = "".join(table.render_replacement() for table in beside) + after.render_amendment(before)
        made = await self._load(text, beside)
        if known is not None and made == follow(known):
            self._loaded[after.name] = after, made
        return made

    async def _load(self, text: str, tables: Iterable[Table] = ()) -> int:
        before = self._netlink.read_generation()
        if not text:
            return before
        try:
            await self._load_text(text)
        except CommandError as error:
            raise RulesetError(str(error)) from error
        # What is loaded always has something that changes: a transaction that changes nothing would not be counted.
        made = follow(before)
        self._loaded |= {table.name: (table, made) for table in tables}
        return made

    async def leave_out_refused(self, table: Table) -> Table:
        """A table without the devices for which it does not load: one that went away costs only itself.

        Raises:
            RulesetError: it loads for none, or nft was disturbed, several times in a row.
        """
        refused: set[str] = set()
        parts, questions = [table.devices], 0
        while parts:
            part = parts.pop()
            questions += 1
            if questions > _MOST_QUESTIONS:
                refused.update(part, *parts)
                break
            if await self._would_load(table.leave_out(set(table.devices) - set(part))):
                continue
            if len(part) == 1:
                refused.update(part)
            else:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        left = table.leave_out(refused)
        if not left.devices:
            raise RulesetError("it loads for no device")
        return left

    @staticmethod
    async def _would_load(table: Table) -> bool:
        async def ask() -> bool:
            try:
                await run_async(("nft", "-c", "-f", "-"), input=table.render_replacement())
            except CommandError as error:
                if is_refusal(error):
                    return False
                raise
            return True

        try:
            return await decide(ask)
        except CommandError as error:
            # A device that only seems to be refused would have no guard.
            raise RulesetError(str(error)) from error

    async def remove(self, family: str, name: str) -> None:
        """Remove a table of ours, present or not."""
        with contextlib.suppress(CommandError):
            await run_async(LOAD, input=f"table {family} {name}\ndelete table {family} {name}\n")

    async def verify(self, tables: Sequence[Table]) -> int:
        """Read tables back and compare them with their images, or with dormant copies.

        Returns:
            The one generation of the ruleset in which all of them were right. No copy is left in it.

        Raises:
            RulesetError: one is not there, not as it should be, or the ruleset changes all the time.
        """
        try:
            for _ in range(_ROUNDS):
                generation = self._netlink.read_generation()
                strange = [table for table in tables if not self._knows(table, generation)]
                if strange:
                    await self._copy(strange)
                    generation = self._netlink.read_generation()
                found = self._read({table: table.name for table in tables}, generation)
                copies = self._read({table: name for table, (_, name) in self._copies.items()}, generation)
                now = self._netlink.read_generation()
                if found is None or copies is None or not self._is_equal(generation, now):
                    continue
                if any(table not in copies and not self._knows(table, now) for table in tables):
                    continue
                for table, image in found.items():
                    self._compare(table, image, copies.get(table), now)
                with contextlib.suppress(GenerationChanged):
                    return self._discard(now)
        except (CommandError, OSError) as error:
            raise RulesetError(str(error)) from error
        finally:
            self._clean_up()
        raise RulesetError("the ruleset keeps changing while it is read")

    def _knows(self, table: Table, generation: int) -> bool:
        return self._images.find(table) is not None or self._is_fresh(table, generation)

    def _is_fresh(self, table: Table, generation: int) -> bool:
        """Whether nft loaded this table, and nobody has touched one of ours from then up to a generation.

        Where somebody committed before nft did, ours is another generation than the one that is known, and touched it.
        """
        loaded, made = self._loaded.get(table.name, (None, None))
        return loaded == table and made is not None and self._is_equal(made, generation)

    def _compare(self, table: Table, image: tuple[Message, ...], copy: tuple[Message, ...] | None, now: int) -> None:
        known = self._images.find(table)
        if known is not None and are_equal(known, image):
            return
        if not self._is_fresh(table, now) and (copy is None or not are_equal(copy, image)):
            raise RulesetError(f"table {table.family} {table.name} is not as it was loaded")
        self._keep(table, image)

    def _keep(self, table: Table, image: tuple[Message, ...]) -> None:
        """Keep an image if it says what the policy says, value by value."""
        try:
            wrong = find_difference(image, [table])
        except (ValueError, LookupError, struct.error) as error:
            raise RulesetError(f"the kernel's listing is not understood: {error}") from error
        if wrong is not None:
            raise RulesetError(f"what stands is not what the policy says: {wrong}")
        self._images.keep(table, image)

    def _read(self, tables: Mapping[Table, str], generation: int) -> dict[Table, tuple[Message, ...]] | None:
        """The images of tables that stand under a name; None where the ruleset is another one by now."""
        found = {}
        for table, name in tables.items():
            try:
                which = [(table.family, name, table.name)]
                image = read_image(self._netlink, which, generation=generation, is_equal=self._is_equal)
            except (ValueError, LookupError, struct.error) as error:
                raise RulesetError(f"table {table.family} {name}: {error}") from error
            if image is None:
                return None
            found[table] = image
        return found

    async def _copy(self, tables: Iterable[Table]) -> int:
        """Load dormant copies of tables, of each family as many as there are names; older ones go.

        Returns:
            The generation that this made, if nobody else committed meanwhile.
        """
        old, self._copies = self._copies, {}
        text = ""
        for table in tables:
            taken = self._copies.values()
            free = (name for name in names.SCRATCH_TABLES if (table.family, name) not in taken)
            if (name := next(free, None)) is not None:
                self._copies[table] = table.family, name
                text += table.render(name=name, flags="dormant")
        # Also one that a daemon before this one left.
        gone = dict.fromkeys([*old.values(), *self._copies.values()])
        removal = "".join(f"table {family} {name}\ndelete table {family} {name}\n" for family, name in gone)
        return await self._load(removal + text)

    async def learn(self, table: Table) -> tuple[int, int] | None:
        """Take the image of a table that does not stand, from a dormant copy.

        A copy has nothing beside it that it could be compared with: so it is believed only where the generations prove
        that nobody but this program has committed anything since it was made.

        Returns:
            The generation before, and one in which our tables are as they were in it; None where somebody else
            committed.

        Raises:
            RulesetError: it could not be loaded or read, or is not what the policy says.
        """
        try:
            before = self._netlink.read_generation()
            made = await self._copy([table])
            images = self._read({copied: name for copied, (_, name) in self._copies.items()}, made)
            if made != follow(before) or images is None or self._netlink.read_generation() != made:
                return None
            self._keep(table, images[table])
            with contextlib.suppress(GenerationChanged):
                return before, self._discard(made)
        except OSError as error:
            raise RulesetError(str(error)) from error
        finally:
            self._clean_up()
        return None

    def _is_equal(self, generation: int, now: int) -> bool:
        """Whether no commit between them touched a table of ours: what was listed meanwhile is as it was."""
        return generation == now or (self._commits is not None and self._commits.is_untouched(generation, now))

    def _discard(self, generation: int) -> int:
        """Take the copies away, if the ruleset is still this generation. Returns the one that is now.

        Raises:
            GenerationChanged: it is another one.
        """
        if not self._copies:
            return generation
        removals = [remove_table(family, name) for family, name in self._copies.values()]
        while True:
            try:
                self._netlink.commit(removals, generation=generation)
                break
            except GenerationChanged:
                newer = self._commits.find_untouched(generation) if self._commits is not None else generation
                if newer == generation:
                    raise
                generation = newer
        self._copies = {}
        return follow(generation)

    def _clean_up(self) -> None:
        """Take away each copy that still stands: it was not of use."""
        copies, self._copies = self._copies, {}
        for family, name in copies.values():
            with contextlib.suppress(OSError):
                self._netlink.commit([remove_table(family, name)])


async def lease_remains() -> bool:
    """Whether the kernel holds a lease now, or does not say.

    Not by what this program remembers, but by what the sets hold.
    """
    for name in (names.LEASE_SET, names.LEASE_SET_IPV6):
        try:
            listing = await run_async(["nft", "list", "set", "inet", names.BASE_TABLE, name])
        except CommandError as error:
            if "No such file or directory" in error.stderr:
                continue  # without the set there is no lease
            return True
        if "elements" in listing.stdout:
            return True
    return False
