# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The few messages of nfnetlink that lease and restoring need, in raw netlink.

`nft` cannot express the one thing that makes the lease safe: a batch that the kernel refuses unless the ruleset is
exactly the generation that was verified (attribute NFNL_BATCH_GENID; include/uapi/linux/netfilter/nfnetlink.h).
It answers ERESTART then, and nothing is changed. So "renew only what was verified" is the kernel's own check, and
there is no moment between checking and renewing in which the ruleset could change unnoticed.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from psiphon_vpn.linux.netlink import (
    HEADER,
    iterate_announcements,
    iterate_attributes,
    read_attributes,
    widen,
    write_attribute,
)

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFNLGRP_NFTABLES = 7
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_BATCH_GENID = 1
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM, NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 12, 13, 14, 15, 16
NFTA_TABLE = 1
NFTA_GEN_ID, NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 1, 2, 3
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_TIMEOUT, NFTA_DATA_VALUE, NFTA_LIST_ELEM = 1, 4, 1, 1
NLA_F_NESTED = 0x8000
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x10, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NFPROTO_INET = 1
IFNAMSIZ = 16
_SO_SNDBUFFORCE = 32
_SEND_BYTES = 1 << 23
_DUMPS = 50
"""How often a list is read that changes meanwhile: each time takes a fraction of a millisecond."""
_RECEIVE_TIMEOUT = 1.0  # seconds; the kernel answers a request before send() returns


class GenerationChanged(Exception):
    """The ruleset is not the one that was verified. Nothing was changed."""


@dataclass(frozen=True)
class Element:
    """One element of a set of interface names in a table of family inet."""

    table: str
    set_name: str
    interface: str


@dataclass(frozen=True)
class Generation:
    """A generation of the ruleset, as announced after each commit, and who committed it.

    Attributes:
        number: of the generation. A large commit is announced in several messages; those before the last have 0.
        pid: process id of the committer, in the first pid namespace (task_pid_nr). In a container it identifies no
            process, or another one.
        process: name of the committing process.
        tables: names of the tables that the same message is about.
        port: netlink's port id of the committing socket. For the first socket of a process it is the process id in the
            process's own pid namespace, if that number is free (netlink_autobind).
        harmful: the same message is about more than elements of sets and maps in other programs' tables.
        ours: it is about a table of the service, or about one that is not known.
    """

    number: int
    pid: int
    process: str
    tables: frozenset[str] = frozenset()
    port: int = 0
    harmful: bool = False
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a transaction. kind: NFT_MSG_*; family: NFPROTO_*; flags: NLM_F_* beside those of every one."""

    kind: int
    family: int
    flags: int
    body: bytes


def _nested(kind: int, payload: bytes) -> bytes:
    return write_attribute(kind | NLA_F_NESTED, payload)


def encode_message(kind: int, flags: int, sequence: int, body: bytes, *, family: int = 0, resource: int = 0) -> bytes:
    """A request of netfilter: netlink header, nfgenmsg, attributes."""
    payload = struct.pack(">BBH", family, 0, resource) + body
    return HEADER.pack(HEADER.size + len(payload), kind, NLM_F_REQUEST | flags, sequence, 0) + payload


def encode_kind(kind: int) -> int:
    """The type of a message of nf_tables (NFT_MSG_*), as it stands in the header."""
    return (NFNL_SUBSYS_NFTABLES << 8) | kind


def _element_body(element: Element, timeout_ms: int | None) -> bytes:
    key = element.interface.encode().ljust(IFNAMSIZ, b"\0")
    inner = _nested(NFTA_SET_ELEM_KEY, write_attribute(NFTA_DATA_VALUE, key))
    if timeout_ms is not None:
        inner += write_attribute(NFTA_SET_ELEM_TIMEOUT, struct.pack(">Q", timeout_ms))
    return _set_body(element.table, element.set_name) + _nested(
        NFTA_SET_ELEM_LIST_ELEMENTS, _nested(NFTA_LIST_ELEM, inner)
    )


def _set_body(table: str, set_name: str) -> bytes:
    return write_attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0") + write_attribute(
        NFTA_SET_ELEM_LIST_SET, set_name.encode() + b"\0"
    )


def check_answer(data: bytes) -> None:
    """Check one message from the kernel: an error, if it is one, is raised.

    Raises:
        GenerationChanged: a transaction was refused since the ruleset is another one.
        OSError: the kernel refused.
    """
    if HEADER.unpack_from(data)[1] != NLMSG_ERROR:
        return
    number = -struct.unpack_from("=i", data, HEADER.size)[0]
    if number == errno.ERESTART:
        raise GenerationChanged
    if number:
        raise OSError(number, os.strerror(number))


def parse_generations(data: bytes) -> tuple[Generation, ...]:
    """The NFT_MSG_NEWGEN messages in what a netlink socket received. Never raises, whatever the bytes."""
    found = []
    touched: set[str] = set()
    harmful = ours = False
    for kind, body, port in iterate_announcements(data):
        if kind >> 8 != NFNL_SUBSYS_NFTABLES:
            continue
        if kind != encode_kind(NFT_MSG_NEWGEN):
            # The first attribute of every object names the table (linux/netfilter/nf_tables.h). A flush announces
            # hundreds of objects, and putting the tables back waits until this has been read.
            attribute, table = next(iterate_attributes(body[4:]), (0, b""))
            name = table.split(b"\0")[0].decode("ascii", "replace")
            touched.add(name)
            ours = ours or attribute != NFTA_TABLE or name.startswith(OWN_PREFIX)
            harmful = harmful or ours or kind not in _ELEMENTS
            continue
        attributes = read_attributes(body[4:])  # behind struct nfgenmsg
        number = attributes.get(NFTA_GEN_ID, b"")
        pid = attributes.get(NFTA_GEN_PROC_PID, b"")
        name = attributes.get(NFTA_GEN_PROC_NAME, b"").split(b"\0")[0].decode("ascii", "replace")
        if len(number) == 4:
            pid_number = int.from_bytes(pid, "big") if len(pid) == 4 else 0
            value = int.from_bytes(number, "big")
            found.append(Generation(value, pid_number, name, frozenset(touched), port, harmful, ours))
            touched.clear()
            harmful = ours = False
    if touched:
        found.append(Generation(0, 0, "", frozenset(touched), harmful=harmful, ours=ours))
    return tuple(found)


_ELEMENTS = frozenset({encode_kind(NFT_MSG_NEWSETELEM), encode_kind(NFT_MSG_DELSETELEM)})
OWN_PREFIX = "psiphon"
"""The prefix of our tables' names. A table with this prefix never counts as another program's."""


def follow(generation: int) -> int:
    """The generation after one, when one transaction was committed: zero is skipped (nf_tables_commit)."""
    return (generation + 1) & 0xFFFFFFFF or 1


class NftSocket:
    """A netlink socket for the generation number and for set elements. Needs CAP_NET_ADMIN to change anything."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_RECEIVE_TIMEOUT)
        # A transaction is one message to the kernel; for a thousand devices it is larger than net.core.wmem_max.
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BYTES)
        self._sequence = 1

    @property
    def port(self) -> int:
        """Netlink's port id: commits by this socket are announced with it."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the socket; what it did stays in the kernel."""
        self._socket.close()

    def read_generation(self) -> int:
        """The number of the ruleset's current generation.

        Raises:
            OSError: the kernel did not answer.
        """
        sequence = self._next(1)
        self._socket.send(encode_message(encode_kind(NFT_MSG_GETGEN), 0, sequence, b""))
        for _ in range(8):
            data = self._socket.recv(8192)
            if HEADER.unpack_from(data)[3] != sequence:
                continue
            generations = parse_generations(data)
            if generations and generations[0].number:
                return generations[0].number
            check_answer(data)
        raise OSError(errno.EPROTO, "no generation number from the kernel")

    def renew(self, elements: tuple[Element, ...], timeout_ms: int, *, generation: int) -> int:
        """Put elements into their sets with a fresh time-out, provided that the ruleset is still `generation`.

        Each element is added, deleted and added in one transaction: adding an element that exists does not refresh
        its time-out on kernels before 6.13, and deleting one that does not exist would fail the transaction.

        Returns:
            The generation that this transaction made.

        Raises:
            GenerationChanged: the ruleset is another one; nothing was changed.
            OSError: the kernel refused for another reason; nothing was changed.
        """
        messages: list[Message] = []
        for element in elements:
            add = Message(NFT_MSG_NEWSETELEM, NFPROTO_INET, NLM_F_CREATE, _element_body(element, timeout_ms))
            remove = Message(NFT_MSG_DELSETELEM, NFPROTO_INET, 0, _element_body(element, None))
            messages += [add, remove, add]
        self.commit(messages, generation=generation)
        return follow(generation)

    def flush_sets(self, table: str, set_names: tuple[str, ...], *, generation: int | None = None) -> None:
        """Empty sets at once: the quickest way to close.

        Args:
            table: a table of family inet.
            set_names: sets in it.
            generation: in which the ruleset must still be; None for any.

        Raises:
            GenerationChanged: it is another one; nothing was changed.
            OSError: ENOENT where there is no such table or set (then nothing in it is open either).
        """
        self.commit(
            (Message(NFT_MSG_DELSETELEM, NFPROTO_INET, 0, _set_body(table, name)) for name in set_names),
            generation=generation,
        )

    def commit(self, messages: Iterable[Message], *, generation: int | None = None) -> None:
        """Make all of these changes in one transaction, or none.

        Args:
            messages: the changes, in order.
            generation: in which the ruleset must still be; None for any.

        Raises:
            GenerationChanged: it is another one; nothing was changed.
            OSError: the kernel refused; nothing was changed.
        """
        messages = list(messages)
        base = self._next(len(messages) + 2)
        head = b"" if generation is None else write_attribute(NFNL_BATCH_GENID, struct.pack(">I", generation))
        data = [encode_message(NFNL_MSG_BATCH_BEGIN, 0, base, head, resource=NFNL_SUBSYS_NFTABLES)]
        for index, item in enumerate(messages, start=1):
            flags = item.flags | (NLM_F_ACK if index == len(messages) else 0)
            data.append(encode_message(encode_kind(item.kind), flags, base + index, item.body, family=item.family))
        data.append(encode_message(NFNL_MSG_BATCH_END, 0, base + len(messages) + 1, b"", resource=NFNL_SUBSYS_NFTABLES))
        self._socket.send(b"".join(data))
        self._await_commit(base, base + len(messages))

    def dump(self, kind: int, family: int, body: bytes = b"") -> list[bytes]:
        """What the kernel lists, the attributes of each object.

        Args:
            kind: NFT_MSG_GET*.
            family: NFPROTO_*.
            body: attributes that choose.

        Raises:
            OSError: the kernel refused (ENOENT: there is no such thing), or the list never stopped changing while it
                was read (EINTR).
        """
        for _ in range(_DUMPS):
            if (found := self._dump_once(kind, family, body)) is not None:
                return found
        raise OSError(errno.EINTR, "the ruleset changed while it was listed")

    def _dump_once(self, kind: int, family: int, body: bytes) -> list[bytes] | None:
        """The same once; None if it changed. Always read to its end: after half a listing the kernel answers EBUSY."""
        interrupted = False
        sequence = self._next(1)
        self._socket.send(encode_message(encode_kind(kind), NLM_F_DUMP, sequence, body, family=family))
        found: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 16)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, answer, flags, number, _ = HEADER.unpack_from(data, offset)
                if number == sequence:
                    interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                    if answer == NLMSG_DONE:
                        return None if interrupted else found
                    check_answer(data[offset : offset + length])
                    found.append(data[offset + HEADER.size + 4 : offset + length])
                offset += max((length + 3) & ~3, HEADER.size)

    def holds(self, element: Element) -> bool:
        """Whether the kernel lists an element in a set: it leaves out those whose time has run out.

        Raises:
            OSError: the kernel does not answer. A missing set is an answer.
        """
        wanted = element.interface.encode().ljust(IFNAMSIZ, b"\0")
        try:
            lists = self.dump(NFT_MSG_GETSETELEM, NFPROTO_INET, _set_body(element.table, element.set_name))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        for data in lists:
            for _, found in iterate_attributes(read_attributes(data).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
                key = read_attributes(found).get(NFTA_SET_ELEM_KEY, b"")
                if read_attributes(key).get(NFTA_DATA_VALUE, b"") == wanted:
                    return True
        return False

    def _await_commit(self, first: int, last: int) -> None:
        for _ in range(64):
            data = self._socket.recv(65536)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
                if first <= sequence <= last and kind == NLMSG_ERROR:
                    check_answer(data[offset : offset + length])
                    if sequence == last:
                        return
                offset += max((length + 3) & ~3, HEADER.size)
        raise OSError(errno.EPROTO, "no answer to a transaction from the kernel")

    def _next(self, count: int) -> int:
        sequence = self._sequence
        self._sequence = (self._sequence + count) % 0x7FFFFF00 or 1
        return sequence


def open_generation_monitor() -> socket.socket:
    """A non-blocking socket that receives a message for every commit to the ruleset, by anyone.

    An overrun (ENOBUFS) means that commits were missed: read the ruleset again.
    """
    monitor = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
    )
    widen(monitor)
    monitor.bind((0, 0))
    monitor.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    return monitor
