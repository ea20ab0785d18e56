"""Values that come from outside the policy, in the only forms that may stand in the text of a rule. Pure.

What nft reads is text, and whoever can choose a part of it chooses rules: any user of a desktop can make an interface
called `c*"}accept#`. So nothing from outside is text here. An interface is an `InterfaceName` or, where its name is of
another form, its index. An address is an object of `ipaddress` without a scope: `fe80::1%lo;accept;` is one with a
scope. Ports and users are numbers. Rules are built from these alone (`policy/model.py`).
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
"""At most 15 characters, as in the kernel (IFNAMSIZ), and none that nft takes for more than a name, such as `*`."""


_CONTROL_GROUP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*){0,15}")


class InterfaceName(str):
    """The name of an interface, of the usual form: it may stand in quotes in a rule."""

    __slots__ = ()

    def __new__(cls, name: str) -> InterfaceName:
        """Check the name.

        Raises:
            ValueError: it is of another form.
        """
        if not _NAME.fullmatch(name):
            raise ValueError("not the usual form of an interface's name")
        return super().__new__(cls, name)

    @classmethod
    def of(cls, name: str) -> InterfaceName | None:
        """The name; None for one of another form."""
        return cls(name) if _NAME.fullmatch(name) else None


class ControlGroup(str):
    """The path of a control group below the root of the unified hierarchy: it may stand in quotes in a rule."""

    __slots__ = ()

    def __new__(cls, path: str) -> ControlGroup:
        """Check the path.

        Raises:
            ValueError: it has characters that no path of a plain unit has.
        """
        if not _CONTROL_GROUP.fullmatch(path):
            raise ValueError("not the usual form of a control group's path")
        return super().__new__(cls, path)

    ALPHABET: ClassVar[str] = string.ascii_letters + string.digits + "._/-"

    @property
    def match(self) -> str:
        """What matches a socket that was made in it (Linux 5.13, nft 0.9.9). False for one without a group."""
        return f'socket cgroupv2 level {self.count("/") + 1} "{self}"'


def decode_name(name: bytes | str) -> str:
    """The name of an interface as text. It is bytes, which need be no text at all: none is lost (PEP 383)."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def show_name(name: str) -> str:
    """A name for people: nothing in it that a terminal obeys or that is no text."""
    return "".join(char if " " < char < "\x7f" else char.encode("unicode_escape").decode() for char in name)


def parse_names(*texts: str) -> tuple[InterfaceName, ...]:
    """Several names.

    Raises:
        ValueError: one is of another form.
    """
    return tuple(map(InterfaceName, texts))


def name_by_index(index: int) -> str:
    """The index of an interface as nft takes it for one, whatever interfaces are called.

    nft looks a number up as a name first (datatype.c, ifindex_type_parse): `oif 7` is the interface that is *called* 7,
    where there is one. No name has sixteen characters, and what is no name is read as a number.
    """
    if not 0 < index < 2**31:
        raise ValueError("not the index of an interface")
    return f'"{index:016d}"'


LOOPBACK: Final = name_by_index(names.LOOPBACK_INDEX)
"""Loopback in a rule, whatever it or a card is called."""


def parse_address(text: str) -> Address:
    """An address without its scope: the interface is told apart by other means.

    Raises:
        ValueError: this is none.
    """
    address = ipaddress.ip_address(text)
    return ipaddress.IPv6Address(int(address)) if isinstance(address, ipaddress.IPv6Address) else address


def parse_addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    """Do the same for several."""
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
