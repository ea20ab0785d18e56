# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Values from outside the policy, in the only forms that may appear in the text of a rule. Pure.

nft reads text, and whoever controls a part of it can inject rules: any user of a desktop can create an interface called
`c*"}accept#`. So no outside value is plain text here. An interface is an `InterfaceName` or, where its name has another
form, its index. An address is an `ipaddress` object without a scope: `fe80::1%lo;accept;` is an address with a scope.
Ports and users are numbers. Rules are built from these alone (`policy/model.py`).
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Iterable
from typing import ClassVar, Final

from psiphon_vpn.policy import names

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
"""At most 15 characters, as in the kernel (IFNAMSIZ), and none that is special to nft, such as `*`."""


_CONTROL_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*){0,15}")


class InterfaceName(str):
    """The name of an interface, of the usual form: safe in quotes in a rule."""

    __slots__ = ()

    def __new__(cls, name: str) -> InterfaceName:
        """Check the name.

        Raises:
            ValueError: it has another form.
        """
        if not _NAME.fullmatch(name):
            raise ValueError("not the usual form of an interface's name")
        return super().__new__(cls, name)

    @classmethod
    def of(cls, name: str) -> InterfaceName | None:
        """The checked name; None for one of another form."""
        return cls(name) if _NAME.fullmatch(name) else None


class ControlGroup(str):
    """The path of a control group below the root of the unified hierarchy: safe in quotes in a rule."""

    __slots__ = ()

    def __new__(cls, path: str) -> ControlGroup:
        """Check the path.

        Raises:
            ValueError: it contains characters that the path of a plain unit never has.
        """
        if not _CONTROL_GROUP.fullmatch(path):
            raise ValueError("not the usual form of a control group's path")
        return super().__new__(cls, path)

    ALPHABET: ClassVar[str] = string.ascii_letters + string.digits + "._/-"

    @property
    def match(self) -> str:
        """Text that matches a socket created in it (Linux 5.13, nft 0.9.9). It does not match one without a group."""
        return f'socket cgroupv2 level {self.count("/") + 1} "{self}"'


def decode_name(name: bytes | str) -> str:
    """The name of an interface as text. The kernel's bytes may be no valid text; all of them are kept (PEP 383)."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def show_name(name: str) -> str:
    """A name to show to people: without control characters, and with everything outside ASCII escaped."""
    return "".join(char if " " < char < "\x7f" else char.encode("unicode_escape").decode() for char in name)


def parse_names(*texts: str) -> tuple[InterfaceName, ...]:
    """Several names.

    Raises:
        ValueError: one has another form.
    """
    return tuple(map(InterfaceName, texts))


def name_by_index(index: int) -> str:
    """An interface index in the form that nft reads as an index, whatever interfaces are called.

    nft looks a number up as a name first (datatype.c, ifindex_type_parse): `oif 7` is the interface *called* 7, if one
    exists. No name has sixteen characters, so nft reads these as a number.
    """
    if not 0 < index < 2**31:
        raise ValueError("not the index of an interface")
    return f'"{index:016d}"'


LOOPBACK: Final = name_by_index(names.LOOPBACK_INDEX)
"""Loopback in a rule, whatever it or another interface is called."""


def parse_address(text: str) -> Address:
    """An address without its scope: rules match the interface by other means.

    Raises:
        ValueError: the text is no address.
    """
    address = ipaddress.ip_address(text)
    return ipaddress.IPv6Address(int(address)) if isinstance(address, ipaddress.IPv6Address) else address


def parse_addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    """Parse several addresses."""
    return tuple(parse_address(text) for text in texts)


def is_plain_address(value: object) -> bool:
    """Whether this is an address, without a scope."""
    return isinstance(value, ipaddress.IPv4Address) or (
        isinstance(value, ipaddress.IPv6Address) and value.scope_id is None
    )


def quote_set(values: Iterable[int | str | Address]) -> str:
    """An anonymous set of nft.

    Args:
        values: numbers, addresses, names of interfaces, and networks of the policy as text.

    Raises:
        ValueError: a text is no network.
    """
    return "{ " + ", ".join(_render(value) for value in values) + " }"


def _render(value: int | str | Address) -> str:
    if isinstance(value, InterfaceName):
        return f'"{value}"'
    if isinstance(value, str):
        return value if "/" not in value and is_plain_address(_address(value)) else _network(value)
    if not isinstance(value, int) and not is_plain_address(value):
        raise ValueError("not an address that may stand in a rule")
    return str(value)


def _address(text: str) -> Address:
    return ipaddress.ip_address(text)


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    if "%" in text:
        raise ValueError("not a network that may stand in a rule")
    return text
