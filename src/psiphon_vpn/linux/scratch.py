# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A table that is loaded only to see what the kernel makes of it, and taken away again.

Another process may try something at the same time, under the same name: a table is believed only if it is ours.
"""

from collections.abc import Callable
from secrets import token_hex

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.disturbance import is_refusal, was_disturbed
from psiphon_vpn.policy import names
from psiphon_vpn.run import CommandError, run_async

TABLE = names.SCRATCH_TABLES[0]


async def list_scratch(
    family: str, body: str, *, dormant: bool = True, act: Callable[[], None] = lambda: None
) -> str | None:
    """Load a table, and return its listing.

    Args:
        family: nft's word.
        body: the table's chains and sets, as nft reads them.
        dormant: its chains see no packet.
        act: what is done between loading and listing.

    Returns:
        None if nft, or the kernel through it, refused the table.

    Raises:
        CommandError: it was disturbed. That our table is not there any more, or is another's, says nothing about this
            kernel.
    """
    table = f"{family} {TABLE}"
    mark = f"of_{token_hex(8)}"
    flags = "flags dormant\n" if dormant else ""
    text = f"table {table}\ndelete table {table}\ntable {table} {{\n{flags}chain {mark} {{\n}}\n{body}\n}}\n"
    try:
        await run_async(["nft", "-f", "-"], input=text)
    except CommandError as error:
        if is_refusal(error):
            return None
        raise
    argv = ["nft", "list", "table", *table.split()]
    try:
        act()
        listing = (await run_async(argv)).stdout
    finally:
        await run_async(["nft", "delete", "table", *table.split()])
    if f"chain {mark} " not in listing:
        raise CommandError(argv, _("another process replaced the table that was tried"))
    return listing


async def list_owned_scratch() -> str | None:
    """Make a table that only its holder can change, and return its listing.

    It disappears with the process that made it, so the same process lists it. Its name is unique: nobody else can
    delete an owned table (EPERM), so under a common name this trial would look like a refusal to another.

    Returns:
        None if nft, or the kernel through it, refused the table.

    Raises:
        CommandError: it was disturbed.
    """
    table = f"inet {TABLE}_{token_hex(8)}"
    try:
        done = await run_async(["nft", "-i"], input=f"add table {table} {{ flags owner; }}\nlist table {table}\n")
    except CommandError as error:
        if is_refusal(error):
            return None
        raise
    # An interactive nft ends with 0 whatever became of its commands.
    if was_disturbed(done.stderr):
        raise CommandError(["nft", "-i"], done.stderr, returncode=done.returncode, stderr=done.stderr)
    return done.stdout
