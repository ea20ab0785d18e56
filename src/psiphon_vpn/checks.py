# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Small checks of configuration values. Each returns the value in its final form or raises Refused with the reason.

A reason never repeats the value: it may be a password or a server entry, and reasons are logged.
"""

import base64
import binascii
import ipaddress
import math
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final, TypeVar
from urllib.parse import urlsplit

from psiphon_vpn.i18n import _
from psiphon_vpn.nearest import find_nearest
from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import InterfaceName

_TYPE_NAMES: Final[Mapping[type, Callable[[], str]]] = {
    bool: lambda: _("true or false"),
    int: lambda: _("a whole number"),
    str: lambda: _("text in quotes"),
    list: lambda: _("a list in square brackets"),
    dict: lambda: _("a table"),
}

PROXY_SCHEMES: Final = ("http", "socks5", "socks4a")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})?)*\.?\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}\Z")  # RFC 9110, 5.6.2

Check = Callable[[object], object]
Item = TypeVar("Item")


class Refused(ValueError):
    """A value cannot be used; the text is the reason, translated."""


class WrongType(Refused):
    """A value is of another type than it must be."""


def _wrong_type(wanted: type) -> Refused:
    return WrongType(_("it must be {type}").format(type=_TYPE_NAMES[wanted]()))


def suggest(reason: str, value: str, known: Collection[str]) -> str:
    """A reason with the known word that is most similar to a wrong one, if there is one."""
    nearest = find_nearest(value, known)
    return reason if nearest is None else _("{reason}; did you mean {nearest}?").format(reason=reason, nearest=nearest)


def check_bool(value: object) -> bool:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise _wrong_type(bool)
    return value


def check_text(value: object) -> str:
    """Accept any text."""
    if not isinstance(value, str):
        raise _wrong_type(str)
    return value


def check_int(low: int, high: int = 2**31 - 1) -> Check:
    """Make a check that accepts whole numbers from `low` to `high`."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(int)
        if not low <= value <= high:
            raise Refused(_("it must be a whole number from {low} to {high}").format(low=low, high=high))
        return value

    return check


def check_number(low: float, high: float) -> Check:
    """Make a check that accepts finite numbers from `low` to `high`."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongType(_("it must be a number"))
        if (isinstance(value, float) and not math.isfinite(value)) or not low <= value <= high:
            raise Refused(_("it must be a number from {low:g} to {high:g}").format(low=low, high=high))
        return float(value)

    return check


def check_choice(*choices: str) -> Check:
    """Make a check that accepts one of some words."""

    def check(value: object) -> str:
        if check_text(value) not in choices:
            reason = _("it must be one of {choices}").format(choices=", ".join(choices))
            raise Refused(suggest(reason, check_text(value), choices))
        return check_text(value)

    return check


def check_pattern(pattern: str, reason: Callable[[], str]) -> Check:
    """Make a check that accepts text that as a whole matches a regular expression."""
    compiled = re.compile(pattern)

    def check(value: object) -> str:
        text = check_text(value)
        if not compiled.fullmatch(text):
            raise Refused(reason())
        return text

    return check


def check_list(item: Callable[[object], Item], *, low: int = 0, high: int = 64) -> Callable[[object], tuple[Item, ...]]:
    """Make a check that accepts a list of `low` to `high` items and returns it as a tuple."""

    def check(value: object) -> tuple[Item, ...]:
        if not isinstance(value, list):
            raise _wrong_type(list)
        if not low <= len(value) <= high:
            raise Refused(_("it must have {low} to {high} entries").format(low=low, high=high))
        return tuple(item(entry) for entry in value)

    return check


def check_table(
    fields: Mapping[str, Check], *, needed: Collection[str] = ()
) -> Callable[[object], Mapping[str, object]]:
    """Make a check that accepts a table with these fields only."""

    def check(value: object) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise _wrong_type(dict)
        checked: dict[str, object] = {}
        for name, field in value.items():
            if name not in fields:
                raise Refused(_("it has a field that is not one of {fields}").format(fields=", ".join(fields)))
            try:
                checked[name] = fields[name](field)
            except Refused as reason:
                raise Refused(f"{name}: {reason}") from None
        for name in needed:
            if name not in checked:
                raise Refused(_("the field {name} is missing").format(name=name))
        return MappingProxyType(checked)

    return check


def check_headers(value: object) -> Mapping[str, object]:
    """Accept HTTP headers: {name: [values]} (RFC 9110, 5.1 and 5.5), no line break in them."""
    if not isinstance(value, dict):
        raise _wrong_type(dict)
    for name, values in value.items():
        if not _TOKEN.match(name):
            raise Refused(_("a header's name has characters that HTTP does not allow"))
        for text in check_list(check_text)(values):
            if any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in text):
                raise Refused(_("a header's value has control characters"))
    return MappingProxyType({name: tuple(values) for name, values in value.items()})


def check_base64(value: object) -> str:
    """Accept base64 (RFC 4648, 4) of at least one byte."""
    text = check_text(value)
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise Refused(_("it must be base64"))
    return text


def check_base64_url(value: object) -> str:
    """Accept the base64 of an http or https address, as the core wants its lists' addresses."""
    text = check_base64(value)
    if not re.fullmatch(rb"https?://[\x21-\x7e]+", base64.b64decode(text)):
        raise Refused(_("it must be the base64 of an http or https address"))
    return text


def check_uplink(value: object) -> str:
    """Accept the name of an interface that may be an uplink (IFNAMSIZ: 15 characters), or an empty text."""
    text = check_text(value)
    if text and InterfaceName.of(text) is None:
        raise Refused(_("it must be the name of an interface: up to 15 letters, digits and . _ - characters"))
    if text in {"lo", names.TUN_NAME}:
        raise Refused(_("{name} leads nowhere outside").format(name=text))
    return text


def check_ip_address(value: object) -> str:
    """Accept an IPv4 or IPv6 address that a packet from this machine can be sent to."""
    try:
        address = ipaddress.ip_address(check_text(value))
    except ValueError as cause:
        raise Refused(_("it must be an IP address")) from cause
    if address.is_loopback or address.is_multicast or address.is_unspecified or "%" in str(address):
        raise Refused(_("it must be the address of another machine"))
    return str(address)


def check_ipv6_server(value: object) -> str:
    """Accept the IPv6 address of a name server that can be reached through a tunnel."""
    try:
        address = ipaddress.IPv6Address(check_text(value))
    except ValueError as cause:
        raise Refused(_("it must be an IPv6 address")) from cause
    local = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    if local or address.ipv4_mapped or address.scope_id:
        raise Refused(_("it must be an IPv6 address on the internet, not one of this machine or its network"))
    return str(address)


_USER_INFO: Final = re.compile(r"(?:[A-Za-z0-9._:~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})*")


def check_upstream_proxy(value: object) -> str | None:
    """Accept the address of a proxy outside this machine; empty means none.

    The core binds its sockets to the uplink, so a proxy on loopback could never be reached.
    """
    text = check_text(value)
    if not text:
        return None
    if any(ord(char) <= 32 or ord(char) >= 127 for char in text):
        raise Refused(_("it must not contain spaces or characters outside ASCII"))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in PROXY_SCHEMES or not host or not port:
        raise Refused(_("it must look like http://host:port, socks5://host:port or socks4a://host:port"))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Refused(_("it must end after the port"))
    user, _at, _host = parts.netloc.rpartition("@")
    if not _USER_INFO.fullmatch(user):
        # The rules of Go's net/url, with which the core reads it.
        raise Refused(_("its user name or password has a character that must be written as %XX, such as %5C for \\"))
    _check_proxy_host(host)
    return text


def _check_proxy_host(host: str) -> None:
    on_loopback = Refused(
        _("a proxy on this machine itself cannot work: the tunnel's connections are bound to the network interface")
    )
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # Some resolvers read a name that looks like a number as an address ("127.1", "0x7f.1", "2130706433").
        if not _HOST_NAME.match(host) or re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)\.?", host.rstrip(".").rsplit(".", 1)[-1]):
            raise Refused(_("its host is neither a name nor an IP address")) from None
        if host.rstrip(".").rsplit(".", 1)[-1] in ("localhost", "localdomain"):
            raise on_loopback from None
        return
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified:
        raise on_loopback
    if any(address in ipaddress.ip_network(net) for net in (names.TUN_IPV4_SUBNET, names.TUN_IPV6_SUBNET)):
        raise Refused(_("its host is in the tunnel's own subnet, which is not on the wire"))
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise Refused(_("its host is not the address of one machine"))
