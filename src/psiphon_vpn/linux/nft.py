"""nftables at the edge: replace whole tables, read them back, compare.

A reading is compared with the reading of a *dormant scratch copy* of the same text (a table with the flag "dormant"
has no effect on packets): so what is compared is always nft's and the kernel's own words on both sides, whatever
their versions, and a difference means that somebody changed the table.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.reading import Reading, parse_listing
from psiphon_vpn.policy import names
from psiphon_vpn.policy.ruleset import Chain, Hook, Rule, Table
from psiphon_vpn.run import CommandError, run_async

SCRATCH_TABLE = "psiphon_scratch"
_CACHED_REFERENCES = 16
_ROUNDS = 5
LOAD = ("nft", "-f", "-")


class RulesetError(Exception):
    """The kernel does not hold the table that it should."""


def build_drop_only(table: Table) -> Table:
    """What replaces a base table that did not load: loopback, and nothing else in any direction."""
    lo = Rule(text='oifname "lo" accept')
    return Table(
        family=table.family,
        name=table.name,
        chains=tuple(
            Chain(name=name, hook=Hook(kind="filter", hook=name, priority=priority, policy="drop"), rules=rules)
            for name, priority, rules in (
                ("output", 0, (lo,)),
                ("input", 0, (Rule(text='iifname "lo" accept'),)),
                ("forward", 0, ()),
                ("postrouting", 300, (lo,)),
            )
        ),
        heading="Psiphon kill switch: the policy's own rules could not be loaded. Everything is dropped.",
    )


class Nft:
    """Loads and reads tables with the program nft; generation numbers come from netlink.

    Its owner calls one method at a time: there is one scratch table.
    """

    def __init__(self, netlink: NftSocket) -> None:
        self._netlink = netlink
        self._references: OrderedDict[str, Reading] = OrderedDict()

    async def replace_all(self, tables: Sequence[Table]) -> None:
        """Replace tables in one transaction, without reading them back.

        Raises:
            RulesetError: they did not load. What stood before still stands.
        """
        try:
            await run_async(LOAD, input="".join(table.render_replacement() for table in tables))
        except CommandError as error:
            raise RulesetError(str(error)) from error

    async def replace(self, table: Table) -> None:
        """Replace a table in one transaction, without reading it back.

        Raises:
            RulesetError: it did not load. What stood before still stands: the transaction is all or nothing.
        """
        await self.replace_all([table])

    async def remove(self, family: str, name: str) -> None:
        """Remove a table of ours, present or not."""
        with contextlib.suppress(CommandError):
            await run_async(LOAD, input=f"table {family} {name}\ndelete table {family} {name}\n")

    async def verify(self, tables: Sequence[Table]) -> int:
        """Read tables back and compare them.

        Returns:
            The one generation of the ruleset in which all of them were right.

        Raises:
            RulesetError: one is not there, not as it should be, or the ruleset changes all the time.
        """
        try:
            references = await self.learn(tables)
            for _ in range(_ROUNDS):
                generation = self._netlink.read_generation()
                readings = await self._read([(table.family, table.name) for table in tables])
                if self._netlink.read_generation() == generation:
                    break
            else:
                raise RulesetError("the ruleset keeps changing while it is read")
        except (CommandError, OSError, ValueError) as error:
            raise RulesetError(str(error)) from error
        for table, reading, reference in zip(tables, readings, references, strict=True):
            if reading != reference:
                raise RulesetError(f"table {table.family} {table.name} is not as it was loaded")
        return generation

    @staticmethod
    async def _read(addresses: Sequence[tuple[str, str]]) -> list[Reading]:
        """Read tables side by side, one nft for each: two `list table` in one nft 1.0.6 find only one of them."""
        listings = await asyncio.gather(
            *(run_async(["nft", "-s", "list", "table", family, name]) for family, name in addresses)
        )
        return [parse_listing(listing.stdout) for listing in listings]

    async def learn(self, tables: Sequence[Table]) -> list[Reading]:
        """How nft prints these tables: readings of dormant copies, kept for the next time.

        Raises:
            CommandError: a copy could not be loaded or read.
            RulesetError: nft did not load every rule of one.
        """
        unknown = {table.render(): table for table in tables if table.render() not in self._references}
        found: dict[str, Reading] = {}
        while unknown:
            # A scratch table for each family at a time.
            batch = {table.family: text for text, table in unknown.items()}
            copied = [unknown.pop(text) for text in batch.values()]
            found |= zip(batch.values(), await self._read_copies(copied), strict=True)
        for text in (table.render() for table in tables):
            self._references[text] = found.get(text) or self._references[text]
            self._references.move_to_end(text)
            found[text] = self._references[text]
        while len(self._references) > _CACHED_REFERENCES:
            self._references.popitem(last=False)
        return [found[table.render()] for table in tables]

    async def _read_copies(self, tables: Sequence[Table]) -> list[Reading]:
        scratch = [f"table {table.family} {SCRATCH_TABLE}\n" for table in tables]
        removal = "".join(f"{address}delete {address}" for address in scratch)
        copies = "".join(table.render(name=SCRATCH_TABLE, flags="dormant") for table in tables)
        await run_async(LOAD, input=removal + copies)
        try:
            readings = await self._read([(table.family, SCRATCH_TABLE) for table in tables])
        finally:
            await run_async(LOAD, input=removal)
        for table, reading in zip(tables, readings, strict=True):
            if reading.count_rules() != sum(len(chain.rules) for chain in table.chains):
                raise RulesetError("nft did not load every rule of the table")
        return readings


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
