"""nftables at the edge: replace whole tables, read them back, compare.

A reading is compared with the reading of a *dormant scratch copy* of the same text (a table with the flag "dormant"
has no effect on packets): so what is compared is always nft's and the kernel's own words on both sides, whatever
their versions, and a difference means that somebody changed the table.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.nfnetlink import GenerationChanged, NftSocket, follow
from psiphon_vpn.linux.nftimage import remove_table
from psiphon_vpn.linux.reading import Reading, parse_listing
from psiphon_vpn.policy import names
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.run import CommandError, run_all, run_async

_CACHED_REFERENCES = 16
_ROUNDS = 5
_MOST_QUESTIONS = 64
"""How often it is asked which devices are refused; after that, those that were not asked about are."""
LOAD = ("nft", "-f", "-")


class RulesetError(Exception):
    """The kernel does not hold the table that it should."""


class Nft:
    """Loads and reads tables with the program nft; generation numbers come from netlink.

    Its owner calls one method at a time: there are only so many scratch tables.
    """

    def __init__(self, netlink: NftSocket, commits: Commits | None = None) -> None:
        self._netlink = netlink
        self._commits = commits
        self._references: OrderedDict[str, Reading] = OrderedDict()
        self._copies: dict[str, tuple[str, str]] = {}
        """The dormant copies that stand: the text of the table, and family and name of its copy."""
        self._untouched: int | None = None
        """The generation up to which nobody but us committed anything since the copies were made."""

    async def replace_all(self, tables: Sequence[Table], *, coming: Table | None = None) -> None:
        """Replace tables in one transaction, without reading them back.

        Args:
            tables: what is loaded. Dormant copies of those that are not known yet are made in the same breath, so that
                the reading does not have to wait for another program to load them.
            coming: a table that is loaded soon: a copy of it as well.

        Raises:
            RulesetError: they did not load. What stood before still stands.
        """
        await self._load(tables, copied=[*tables, *([coming] if coming is not None else [])])

    async def replace(self, table: Table) -> None:
        """Replace a table in one transaction with nothing else in it, without reading it back.

        Raises:
            RulesetError: it did not load. What stood before still stands: the transaction is all or nothing.
        """
        await self._run([table])

    async def amend(self, before: Table, after: Table, beside: Sequence[Table]) -> None:
        """Replace the rules of a table's chains, and other tables as a whole, in one transaction; read nothing back.

        Args:
            before: the table as it stands.
            after: the same with other rules in its chains.
            beside: tables to replace.

        Raises:
            RulesetError: they did not load. What stood before still stands.
        """
        await self._run(beside, after.render_amendment(before))

    async def _load(self, tables: Sequence[Table], *, copied: Sequence[Table]) -> None:
        plan: dict[str, tuple[str, str]] = {}
        copies = ""
        for table in copied:
            text = table.render()
            used = [address for address in plan.values() if address[0] == table.family]
            if text in self._references or text in plan or len(used) == len(names.SCRATCH_TABLES):
                continue
            plan[text] = (table.family, names.SCRATCH_TABLES[len(used)])
            copies += table.render(name=plan[text][1], flags="dormant")
        # Older copies go, whether or not their names are needed.
        addresses = {**dict.fromkeys(self._copies.values()), **dict.fromkeys(plan.values())}
        removal = "".join(f"table {family} {name}\ndelete table {family} {name}\n" for family, name in addresses)
        before = self._netlink.read_generation()
        await self._run(tables, removal + copies)
        self._copies, self._untouched = plan, follow(before)

    @staticmethod
    async def _run(tables: Sequence[Table], rest: str = "") -> None:
        try:
            await run_async(LOAD, input="".join(table.render_replacement() for table in tables) + rest)
        except CommandError as error:
            raise RulesetError(str(error)) from error

    async def leave_out_refused(self, table: Table) -> Table:
        """A table without the devices for which it does not load: one that went away costs only itself.

        Raises:
            RulesetError: it loads for none.
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
        try:
            await run_async(("nft", "-c", "-f", "-"), input=table.render_replacement())
        except CommandError:
            return False
        return True

    async def remove(self, family: str, name: str) -> None:
        """Remove a table of ours, present or not."""
        with contextlib.suppress(CommandError):
            await run_async(LOAD, input=f"table {family} {name}\ndelete table {family} {name}\n")

    async def verify(self, tables: Sequence[Table]) -> int:
        """Read tables back and compare them with what nft says of their dormant copies.

        Returns:
            The one generation of the ruleset in which all of them were right; their copies are gone in it.

        Raises:
            RulesetError: one is not there, not as it should be, or the ruleset changes all the time.
        """
        texts = [table.render() for table in tables]
        try:
            for _ in range(_ROUNDS):
                if any(text not in self._references and text not in self._copies for text in texts):
                    await self.learn(tables)
                generation = self._netlink.read_generation()
                found = await self._read([(table.family, table.name) for table in tables], tables)
                now = self._netlink.read_generation()
                if now != generation and not self._is_equal(generation, now):
                    continue
                generation = now
                for table, text, reading in zip(tables, texts, found, strict=True):
                    self._references.move_to_end(text)
                    if reading != self._references[text]:
                        # Or it was the copy that somebody changed: neither is believed the next time.
                        del self._references[text]
                        raise RulesetError(f"table {table.family} {table.name} is not as it was loaded")
                with contextlib.suppress(GenerationChanged):
                    return self._discard(texts, generation)
        except (CommandError, OSError, ValueError) as error:
            raise RulesetError(str(error)) from error
        raise RulesetError("the ruleset keeps changing while it is read")

    async def _read(self, addresses: Sequence[tuple[str, str]], learned: Sequence[Table]) -> list[Reading]:
        """Read tables, and beside them the copies that stand of those to be learned: these become known.

        Side by side, one nft for each: two `list table` in one nft 1.0.6 find only one of them.
        """
        copied = [table for table in learned if table.render() in self._copies]
        wanted = [*addresses, *(self._copies[table.render()] for table in copied)]
        try:
            listings = await run_all(["nft", "-s", "list", "table", family, name] for family, name in wanted)
        except CommandError:
            self._copies = {}  # one of them may be what is missing
            raise
        readings = [
            parse_listing(listing.stdout, copy=number >= len(addresses)) for number, listing in enumerate(listings)
        ]
        for table, reading in zip(copied, readings[len(addresses) :], strict=True):
            if reading.count_rules() != sum(len(chain.rules) for chain in table.chains):
                raise RulesetError("nft did not load every rule of the table")
            self._references[table.render()] = reading
        while len(self._references) > _CACHED_REFERENCES:
            self._references.popitem(last=False)
        return readings[: len(addresses)]

    async def learn(self, tables: Sequence[Table]) -> None:
        """Get to know how nft prints these tables, if that is not known. Copies that were made for it may stand.

        Raises:
            CommandError: a copy could not be read.
            RulesetError: one could not be loaded, or not every rule of it.
        """
        for table in tables:
            text = table.render()
            if text in self._references:
                self._references.move_to_end(text)
            elif text not in self._copies:
                await self._load([], copied=tables)
            if text not in self._references:
                await self._read([], tables)

    def copy_of(self, table: Table, generation: int) -> str | None:
        """The name of the dormant copy of a table, if one stands and was touched by nobody up to a generation."""
        return self._copies.get(table.render(), ("", None))[1] if generation == self._untouched else None

    def discard(self, table: Table, generation: int) -> int:
        """Take the copy of a table away, if one stands.

        Args:
            table: the table.
            generation: the one that the ruleset must still be.

        Returns:
            The generation that is now.

        Raises:
            GenerationChanged: it was another one.
            OSError: the kernel refused for another reason.
        """
        return self._discard([table.render()], generation)

    def _is_equal(self, generation: int, now: int) -> bool:
        """Whether no commit between them touched a table of ours: what was listed meanwhile is as it was."""
        return self._commits is not None and self._commits.is_untouched(generation, now)

    def _discard(self, texts: Sequence[str], generation: int) -> int:
        going = {text: address for text, address in self._copies.items() if text in texts}
        if not going:
            return generation
        removals = [remove_table(family, name) for family, name in going.values()]
        while True:
            try:
                self._netlink.commit(removals, generation=generation)
                break
            except GenerationChanged:
                newer = self._commits.find_untouched(generation) if self._commits is not None else generation
                if newer == generation:
                    raise
                generation = newer
        self._copies = {text: address for text, address in self._copies.items() if text not in going}
        if self._untouched == generation:
            self._untouched = follow(generation)
        return follow(generation)


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
