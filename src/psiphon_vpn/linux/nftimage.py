# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables as the kernel itself lists them, and the one transaction that makes them again.

Why not the text once more: nft takes 10 ms and more to read it, on a busy machine several times that, and looks up
users and protocols on the way. What the kernel lists of a rule, it also accepts as a rule (nf_tables_api.c: the dump
of an expression has the attributes that its init reads), so a table that was found right can be put back without any
program. It is read back afterwards, like every loaded table.
"""

import itertools
import operator
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from psiphon_vpn.linux.netlink import iterate_attributes, read_attributes, write_attribute
from psiphon_vpn.linux.nfnetlink import (
    NFT_MSG_GETSETELEM,
    NFT_MSG_NEWSETELEM,
    NLA_F_NESTED,
    NLM_F_CREATE,
    Message,
    NftSocket,
)

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN = 3, 4
NFT_MSG_NEWRULE, NFT_MSG_GETRULE = 6, 7
NFT_MSG_NEWSET, NFT_MSG_GETSET = 9, 10
NFT_MSG_GETOBJ, NFT_MSG_GETFLOWTABLE = 19, 23
NLM_F_APPEND = 0x800
_REMEMBERED = 512
"""How many rules are cached: a policy has some 200, and most are in the next one too."""
NFT_SET_ANONYMOUS, NFT_TABLE_F_DORMANT, NFT_TABLE_F_OWNER = 0x1, 0x1, 0x2

_TABLE = 1
"""The attribute that names the table, of every object but set elements the first too."""
_TABLE_FLAGS, _TABLE_OWNER = 2, 7
_EXPRESSIONS, _EXPR_NAME, _EXPR_DATA, _EXTHDR_FLAGS, _EXTHDR_SREG = 4, 1, 2, 5, 7
_SET_NAME, _SET_FLAGS, _SET_ID, _ELEMENTS, _ELEMENTS_SET_ID = 2, 3, 10, 3, 4
# What of an object is made again (enum nft_*_attributes); the rest are handles, positions and counts of the kernel's.
_OF_TABLE = {1: 0, 6: 0}  # NAME, USERDATA
_OF_CHAIN = {1: 0, 3: 0, 4: NLA_F_NESTED, 5: 0, 7: 0, 12: 0}  # TABLE, NAME, HOOK, POLICY, TYPE, USERDATA
_OF_RULE = {1: 0, 2: 0, 7: 0}  # TABLE, CHAIN, USERDATA; and EXPRESSIONS
_OF_SET = {
    **dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15), 0),
    **dict.fromkeys((9, 17, 18), NLA_F_NESTED),
}
"""TABLE, NAME, FLAGS, KEY_TYPE, KEY_LEN, DATA_TYPE, DATA_LEN, POLICY, TIMEOUT, GC_INTERVAL, USERDATA, OBJ_TYPE; DESC,
EXPR, EXPRESSIONS"""
_CHAIN_FLAGS, _CHAIN_BASE = 10, 0x1


def _copy(data: bytes, wanted: dict[int, int], name: str) -> bytes:
    return b"".join(
        _named(name) if kind == _TABLE else write_attribute(kind | wanted[kind], payload)
        for kind, payload in read_attributes(data).items()
        if kind in wanted
    )


def _copy_expression(data: bytes) -> bytes:
    """An expression as its init takes it: one that writes an option must not have the flags that are listed with it.

    A counter starts from zero: its value is not part of the rule.
    """
    attributes = read_attributes(data)
    if attributes.get(_EXPR_NAME) == b"counter\0":
        return write_attribute(_EXPR_NAME, b"counter\0")
    if attributes.get(_EXPR_NAME) != b"exthdr\0" or _EXTHDR_SREG not in read_attributes(attributes[_EXPR_DATA]):
        return data
    inner = b"".join(
        write_attribute(kind, payload)
        for kind, payload in iterate_attributes(attributes[_EXPR_DATA])
        if kind != _EXTHDR_FLAGS
    )
    return write_attribute(_EXPR_NAME, b"exthdr\0") + write_attribute(_EXPR_DATA | NLA_F_NESTED, inner)


def _copy_rule(data: bytes, name: str) -> bytes:
    expressions = _copy_expressions(read_attributes(data).get(_EXPRESSIONS, b""))
    return _copy(data, _OF_RULE, name) + write_attribute(_EXPRESSIONS | NLA_F_NESTED, expressions)


@lru_cache(maxsize=_REMEMBERED)
def _copy_expressions(data: bytes) -> bytes:
    return b"".join(
        write_attribute(kind | NLA_F_NESTED, _copy_expression(payload)) for kind, payload in iterate_attributes(data)
    )


def _named(name: str) -> bytes:
    return write_attribute(_TABLE, name.encode() + b"\0")


def _objects(netlink: NftSocket, kind: int, family: int, table: str) -> Iterator[bytes]:
    """The kernel's listing of one table: filtered here too, since not every kind of listing supports the request."""
    for data in netlink.dump(kind, family, _named(table)):
        if read_attributes(data).get(_TABLE, b"") == table.encode() + b"\0":
            yield data


def _read_sets(netlink: NftSocket, family: int, source: str, name: str) -> Iterator[Message]:
    for number, data in enumerate(_objects(netlink, NFT_MSG_GETSET, family, source), start=1):
        attributes = read_attributes(data)
        identity = struct.pack(">I", number)
        body = _copy(data, _OF_SET, name) + write_attribute(_SET_ID, identity)
        yield Message(NFT_MSG_NEWSET, family, NLM_F_CREATE, body)
        if not struct.unpack(">I", attributes.get(_SET_FLAGS, bytes(4)))[0] & NFT_SET_ANONYMOUS:
            continue  # our named sets hold the lease: they come back empty
        of_set = write_attribute(_SET_NAME, attributes[_SET_NAME])
        for chunk in netlink.dump(NFT_MSG_GETSETELEM, family, _named(source) + of_set):
            elements = write_attribute(_ELEMENTS | NLA_F_NESTED, read_attributes(chunk).get(_ELEMENTS, b""))
            body = _named(name) + of_set + elements + write_attribute(_ELEMENTS_SET_ID, identity)
            yield Message(NFT_MSG_NEWSETELEM, family, NLM_F_CREATE, body)


def remove_table(family: str, name: str) -> Message:
    """The message that removes a table."""
    return Message(NFT_MSG_DELTABLE, FAMILIES[family], 0, _named(name))


def _is_dormant(table: bytes) -> bool:
    return bool(_number(read_attributes(table).get(_TABLE_FLAGS, b"")) & NFT_TABLE_F_DORMANT)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def read_dormant(netlink: NftSocket) -> frozenset[tuple[str, str]]:
    """Family and name of every table that is dormant (NFT_TABLE_F_DORMANT): no packet meets its rules.

    Raises:
        OSError: the kernel does not list tables to us.
    """
    return frozenset(
        (family, read_attributes(data)[_TABLE].split(b"\0")[0].decode("utf-8", "replace"))
        for family, number in FAMILIES.items()
        for data in netlink.dump(NFT_MSG_GETTABLE, number)
        if _is_dormant(data)
    )


def find_owner(netlink: NftSocket, family: str, name: str) -> int | None:
    """The owner of a table that is not dormant and that only its owner can change (NFT_TABLE_F_OWNER).

    Returns:
        The owner's netlink port id; None if the table does not exist or has no owner.

    Raises:
        OSError: the kernel does not list tables to us.
    """
    for data in netlink.dump(NFT_MSG_GETTABLE, FAMILIES[family]):
        attributes = read_attributes(data)
        if attributes.get(_TABLE, b"").split(b"\0")[0] == name.encode():
            flags = _number(attributes.get(_TABLE_FLAGS, b""))
            stands = flags & NFT_TABLE_F_OWNER and not flags & NFT_TABLE_F_DORMANT
            return _number(attributes.get(_TABLE_OWNER, b"")) if stands else None
    return None


def _read_table(netlink: NftSocket, family: int, source: str, name: str) -> Iterator[Message]:
    table = next(_objects(netlink, NFT_MSG_GETTABLE, family, source), None)
    if table is None:
        raise ValueError(f"{source} does not stand")
    if source == name and _is_dormant(table):
        raise ValueError(f"{name} is dormant")
    # Present or not: it is made, removed with everything in it, and made as it was. The flags are not copied: a copy
    # is dormant, what is made from it is not.
    yield Message(NFT_MSG_NEWTABLE, family, NLM_F_CREATE, _named(name))
    yield Message(NFT_MSG_DELTABLE, family, 0, _named(name))
    yield Message(NFT_MSG_NEWTABLE, family, NLM_F_CREATE, _copy(table, _OF_TABLE, name))
    # Our tables have none of these, so any of them in a table is a change.
    for kind in (NFT_MSG_GETOBJ, NFT_MSG_GETFLOWTABLE):
        if any(_objects(netlink, kind, family, source)):
            raise ValueError(f"{name} has an object or a flowtable")
    for chain in _objects(netlink, NFT_MSG_GETCHAIN, family, source):
        if _number(read_attributes(chain).get(_CHAIN_FLAGS, b"")) & ~_CHAIN_BASE:
            raise ValueError(f"{name} has a chain of another kind")
        yield Message(NFT_MSG_NEWCHAIN, family, NLM_F_CREATE, _copy(chain, _OF_CHAIN, name))
    yield from _read_sets(netlink, family, source, name)
    for rule in _objects(netlink, NFT_MSG_GETRULE, family, source):
        yield Message(NFT_MSG_NEWRULE, family, NLM_F_CREATE | NLM_F_APPEND, _copy_rule(rule, name))


def read_image(
    netlink: NftSocket,
    tables: Iterable[tuple[str, str, str]],
    *,
    generation: int,
    is_equal: Callable[[int, int], bool] = operator.eq,
) -> tuple[Message, ...] | None:
    """Take the image of tables that were found right.

    Args:
        netlink: by which the kernel is read.
        tables: of each the family, the name under which it stands, and the name under which it is made.
        generation: in which they were found right.
        is_equal: whether a later generation differs from that one in nothing that matters.

    Returns:
        The transaction that makes them again, whatever stands in their place (`NftSocket.commit`); None if the
        ruleset has changed since.

    Raises:
        OSError: the kernel does not list them.
        ValueError: there is no such table, or it is dormant, or it has something that our tables never have.
    """
    messages: list[Message] = []
    for family, source, name in tables:
        messages += _read_table(netlink, FAMILIES[family], source, name)
    return tuple(messages) if is_equal(generation, netlink.read_generation()) else None


def are_equal(one: Iterable[Message], other: Iterable[Message]) -> bool:
    """Whether two images make the same tables: elements of a set are listed in any order (nft_set_hash.c)."""
    pairs = itertools.zip_longest(one, other)
    return all(
        first == second
        or (first is not None and second is not None and _sort_elements(first) == _sort_elements(second))
        for first, second in pairs
    )


def _sort_elements(message: Message) -> Message | tuple[Message, list[tuple[int, bytes]]]:
    if message.kind != NFT_MSG_NEWSETELEM:
        return message
    attributes = read_attributes(message.body)
    elements = sorted(iterate_attributes(attributes.pop(_ELEMENTS)))
    rest = b"".join(write_attribute(kind, payload) for kind, payload in sorted(attributes.items()))
    return replace(message, body=rest), elements
