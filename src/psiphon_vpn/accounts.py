# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The accounts in this machine's files (passwd(5), group(5)). No name service is ever queried.

A directory such as LDAP is on the network, which is locked: a query would wait for minutes. The users that matter here,
psiphon-user and those that send DHCP, are in files on every system.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLACES: Final = ("etc", "usr/lib")
"""Systems with an image as /usr keep the users of that image in the second (nss-altfiles)."""
MAX_ID: Final = 2**32 - 2


@dataclass(frozen=True, kw_only=True)
class User:
    """An entry of passwd."""

    name: str
    uid: int
    gid: int
    login: str
    """The program that runs at a login: a shell, or one that refuses it."""


def find_user(name: str, *, root: Path = Path("/")) -> User | None:
    """A user by name; None if no file has it. Raises OSError if an existing file cannot be read."""
    for fields in _list_entries("passwd", root):
        if fields[0] == name and len(fields) >= 7 and (uid := _read_id(fields[2])) is not None:
            gid = _read_id(fields[3])
            if gid is not None:
                return User(name=name, uid=uid, gid=gid, login=fields[6])
    return None


def find_user_name(uid: int, *, root: Path = Path("/")) -> str | None:
    """The name of a user; like `find_user`."""
    return next((fields[0] for fields in _list_entries("passwd", root) if _read_id(fields[2]) == uid), None)


def find_group(name: str, *, root: Path = Path("/")) -> int | None:
    """The gid of a group by name; like `find_user`."""
    for fields in _list_entries("group", root):
        if fields[0] == name and len(fields) >= 4 and (gid := _read_id(fields[2])) is not None:
            return gid
    return None


def _list_entries(database: str, root: Path) -> list[list[str]]:
    found = []
    for place in PLACES:
        try:
            content = (root / place / database).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        found += [line.split(":") for line in content.decode("utf-8", "backslashreplace").split("\n") if ":" in line]
    return found


def _read_id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID else None
