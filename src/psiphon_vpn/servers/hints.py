# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses that the hosts of server lists had inside the tunnel: hints of a stranger. Pure, but for the file.

A resolver at the far end of somebody's tunnel named them, and psiphon-user can write the file. They are kept only after
whoever is there has proved the host's name, inside the tunnel. They are checked each time that they are used, whatever
was checked before: only public unicast addresses, none on this machine's links, few, not old, only for hosts of the
profile in use. A planted one leads to one connection to port 443 of a public address,
where a server must prove that it has the host's name; an address that fails that once is forgotten.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from psiphon_vpn.policy.values import Address
from psiphon_vpn.stored_files import StoredError, parse_object, read_stored, take

FILE_NAME: Final = "list-hints.json"
PORT: Final = 443
"""The only port that is ever contacted."""
MAX_BYTES: Final = 64 * 1024
HINTS_PER_HOST: Final = 4
MAX_HINTS: Final = 24
MAX_AGE: Final = timedelta(days=45)
"""Addresses of a large host change within days, but some last; each costs one connection at most."""
MAX_LEAD: Final = timedelta(days=1)
"""A hint from further in the future has a wrong date: it would never become old."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What is no public unicast address: IANA's registries of special-purpose addresses (RFC 6890), multicast, reserved.
# Written out, since what Python calls global differs from version to version.
_NOT_PUBLIC_IPV4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_PUBLIC_IPV6: Final = ipaddress.IPv6Network("2000::/3")
"""The only unicast addresses that IANA gives out. Outside are IPv4-mapped and translated ones (64:ff9b::/96), private
and link-local ones."""
_NOT_PUBLIC_IPV6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocols: Teredo, benchmarks, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside, private or not
        "2620:4f:8000::/48",
        "3ffe::/16",  # 6bone, given back
        "3fff::/20",
    )
)


@dataclass(frozen=True, kw_only=True)
class Hint:
    """An address that a host had inside the tunnel.

    Attributes:
        host: the host's name, in lower case.
        address: a public unicast address.
        seen: when, UTC.
    """

    host: str
    address: Address
    seen: datetime


def is_public(address: Address) -> bool:
    """Whether it is a public unicast address: no private, local, shared, mapped, translated, test or multicast one."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    return (
        address.scope_id is None
        and address in _PUBLIC_IPV6
        and not any(address in network for network in _NOT_PUBLIC_IPV6)
    )


def select_hints(
    hints: Iterable[Hint], *, hosts: Sequence[str], now: datetime, on_link: Collection[Network] = ()
) -> tuple[Hint, ...]:
    """The hints that may be used, the newest first; of hosts seen at once in the order of `hosts`.

    Args:
        hints: any.
        hosts: names of the hosts of the profile in use.
        now: UTC.
        on_link: the networks of this machine's links, which may have public addresses.
    """
    order = {host: number for number, host in enumerate(hosts)}
    fit = {
        (hint.host, hint.address): hint
        for hint in sorted(hints, key=lambda hint: hint.seen)
        if hint.host in order
        and is_public(hint.address)
        and now - MAX_AGE <= hint.seen <= now + MAX_LEAD
        and not any(hint.address in network for network in on_link)
    }
    ranked = sorted(fit.values(), key=lambda hint: (-hint.seen.timestamp(), order[hint.host], str(hint.address)))
    chosen: list[Hint] = []
    for hint in ranked:
        if sum(hint.host == other.host for other in chosen) < HINTS_PER_HOST and len(chosen) < MAX_HINTS:
            chosen.append(hint)
    return tuple(chosen)


def parse_hints(content: bytes) -> tuple[Hint, ...]:
    """Read what `render_hints` wrote. An entry of another form is left out: one bad line costs no other hint.

    Raises:
        StoredError: the whole is of another form. The only exception, whatever the bytes.
    """
    fields = parse_object(content)
    found = take(fields, "hints", list)
    hints = [_parse_hint(entry) for entry in found[: 10 * MAX_HINTS]]
    return tuple(hint for hint in hints if hint is not None)


def _parse_hint(entry: object) -> Hint | None:
    if not isinstance(entry, dict):
        return None
    try:
        host, address, seen = (take(entry, name, str) for name in ("host", "address", "seen"))
        return Hint(host=host, address=ipaddress.ip_address(address), seen=_parse_time(seen))
    except ValueError:  # a StoredError is one
        return None


def _parse_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise StoredError("a time without its zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise StoredError("no time") from error


def render_hints(hints: Iterable[Hint]) -> bytes:
    """The file's content."""
    entries = [
        {"host": hint.host, "address": str(hint.address), "seen": hint.seen.isoformat(timespec="seconds")}
        for hint in hints
    ]
    return json.dumps({"hints": entries}, indent=1).encode() + b"\n"


def read_hints(path: Path) -> tuple[Hint, ...]:
    """Every hint in the file, unchecked: pass them to `select_hints`. A file that cannot be used has none."""
    try:
        return parse_hints(read_stored(path, high=MAX_BYTES))
    except (OSError, StoredError):
        return ()


def write_hints(path: Path, hints: Iterable[Hint]) -> None:
    """Replace the file, whole or not at all; readable by its owner alone.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(render_hints(hints))
    temporary.replace(path)


def merge_hints(known: Iterable[Hint], host: str, addresses: Iterable[Address], *, now: datetime) -> tuple[Hint, ...]:
    """Add the addresses that a host has now; those that it had before stay until they are old."""
    fresh = [Hint(host=host, address=address, seen=now) for address in addresses if is_public(address)]
    return (*fresh[:HINTS_PER_HOST], *(hint for hint in known if (hint.host, hint.address) not in _keys(fresh)))


def forget_hint(known: Iterable[Hint], failed: Hint) -> tuple[Hint, ...]:
    """Leave out an address that did not belong to its host."""
    return leave_out(known, failed.host, (failed.address,))


def leave_out(known: Iterable[Hint], host: str, addresses: Collection[Address]) -> tuple[Hint, ...]:
    """Leave out addresses that did not belong to a host."""
    return tuple(hint for hint in known if hint.host != host or hint.address not in addresses)


def _keys(hints: Iterable[Hint]) -> set[tuple[str, Address]]:
    return {(hint.host, hint.address) for hint in hints}
