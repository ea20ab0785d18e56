# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The identities that a report must not reveal, as far as the machine itself knows them.

Unreadable sources are skipped: the redactor also looks for forms. No name service and no network is asked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from psiphon_vpn.config import Settings
from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.no_answer import Unknowable
from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.policy import names
from psiphon_vpn.system import layout as places

FIRST_USER: Final = 1000
"""uid of the first person on Linux systems (login.defs(5), UID_MIN)."""
NOT_PEOPLE: Final = frozenset({"root", "nobody", "lost+found", places.USER, places.GROUP})
SCHEMES: Final = frozenset({"http", "https", "socks4a", "socks5"})
OWN_LINKS: Final = ("lo", names.TUN_NAME)
HOMES: Final = ("/home", "/var/home", "/var/lib/AccountsService/users", "/var/lib/systemd/linger", "/var/spool/mail")
"""Each has an entry by the name of a user, of one too that a directory service knows and /etc/passwd does not."""
LEASES: Final = tuple(place for manager in MANAGERS for place in manager.leases)
SERIALS: Final = (
    *(f"/sys/class/dmi/id/{name}" for name in ("product_uuid", "product_serial", "board_serial", "chassis_serial")),
    "/sys/class/dmi/id/chassis_asset_tag", "/sys/firmware/devicetree/base/serial-number",
)  # fmt: skip
NO_SERIAL: Final = re.compile(
    r"(?:to be filled.*|not specified|none|default string|system serial number|0+|)", re.IGNORECASE
)
_KEY: Final = re.compile(r"^\s*(?:ssid|id|SSID|ESSID|NAME)=\s*(.+?)\s*$", re.MULTILINE)
NETWORKS: Final = (
    *((place, _KEY) for manager in MANAGERS for place in manager.networks),
    # It writes for other programs.
    ("/etc/netplan", re.compile(r"^\s*\"?([^\":]+)\"?:\s*$", re.MULTILINE)),
)
_ADDRESS: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.]*|\b[0-9A-Fa-f]{32}\b")
_HARDWARE: Final = re.compile(r"\b[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}\b")
_HOST_KEY: Final = re.compile(
    r"^\s*(?:PRETTY_HOSTNAME|HOSTNAME|DOMAINNAME|DOMAINS|DOMAIN|option (?:host|domain|fqdn\.fqdn)-name)[= ]"
    r"\"?([^\"\n;]+)",
    re.MULTILINE,
)


OWN_NETWORKS: Final = (ipaddress.ip_network(names.TUN_IPV4_SUBNET), ipaddress.ip_network(names.TUN_IPV6_SUBNET))
EVERYBODYS: Final = frozenset({ipaddress.IPv4Address("255.255.255.255")})


def find_identities(facts: Facts) -> dict[str, set[str]]:
    """What is known of this machine and its users, by the redactor's kinds."""
    leases = [read_known(facts, facts.at(place) / name) for place in LEASES for name in _list(facts, facts.at(place))]
    try:
        links = {link.name for link in facts.network.snapshot.interfaces}
    except Unknowable:
        links = set(_list(facts, Path("/sys/class/net")))
    return {
        "host": {name for name in _read_hosts(facts, leases) if name},
        "user": {name for name in _read_users(facts) if name},
        "network": {name for name in _read_networks(facts) if name},
        "interface": links - set(OWN_LINKS),
        "setting": set(_read_settings(facts.settings_or_default)),
        "address": set(_read_addresses(facts, leases)),
        "hardware": set(_read_hardware(facts, leases, links)),
        "secret": set(_read_serials(facts)),
    }


def read_known(facts: Facts, path: Path) -> str:
    """A text file; empty if it cannot be read."""
    try:
        return facts.find_text(path) or ""
    except Unknowable:
        return ""


def _list(facts: Facts, path: Path) -> tuple[str, ...]:
    try:
        return facts.list_names(path)
    except Unknowable:
        return ()


def _read_hosts(facts: Facts, leases: list[str]) -> Iterator[str]:
    texts = [read_known(facts, path) for path in (facts.at("/etc/hostname"), facts.at("/etc/mailname"))]
    texts += [read_known(facts, PROC / "sys" / "kernel" / name) for name in ("hostname", "domainname")]
    for text in (*texts, *(found for lease in leases for found in _HOST_KEY.findall(lease))):
        for name in text.split():
            yield from (name, name.split(".", 1)[0])
    # A pretty host name may have spaces; it is one name.
    yield from (match.strip() for match in _HOST_KEY.findall(read_known(facts, facts.at("/etc/machine-info"))))
    for line in read_known(facts, facts.at("/etc/hosts")).splitlines():
        yield from (word for word in line.split("#")[0].split()[1:] if not word.startswith(("localhost", "ip6-")))
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        for line in read_known(facts, facts.at(path)).splitlines():
            if line.startswith(("search", "domain")):
                yield from line.split()[1:]


def _read_users(facts: Facts) -> Iterator[str]:
    """People, and all other accounts that are not the system's."""
    systems = set(NOT_PEOPLE)
    for line in read_known(facts, facts.at("/etc/passwd")).splitlines():
        fields = line.split(":")
        if len(fields) > 5 and fields[2].isdigit() and int(fields[2]) >= FIRST_USER and fields[0] not in systems:
            yield from (fields[0], fields[5].rsplit("/", 1)[-1], *re.split(r"[,\s]+", fields[4]))
        else:
            systems.add(fields[0])
    yield from (name for name in _read_traces(facts) if name not in systems)


def _read_traces(facts: Facts) -> Iterator[str]:
    """Names of users in the places where their files are."""
    for place in HOMES:
        yield from _list(facts, facts.at(place))
    for name in _list(facts, facts.at("/run/systemd/users")):
        yield from re.findall(r"^NAME=(.+)$", read_known(facts, facts.at("/run/systemd/users") / name), re.MULTILINE)
    for path in ("/etc/subuid", "/etc/subgid"):
        yield from (line.split(":")[0] for line in read_known(facts, facts.at(path)).splitlines())
    for line in read_known(facts, facts.at("/etc/group")).splitlines():
        yield from line.rsplit(":", 1)[-1].split(",")
    yield from (os.environ.get(name, "") for name in ("SUDO_USER", "LOGNAME", "USER"))


def _read_networks(facts: Facts) -> Iterator[str]:
    for directory, pattern in NETWORKS:
        for name in _list(facts, facts.at(directory)):
            yield Path(name).stem
            for found in pattern.findall(read_known(facts, facts.at(directory) / name)):
                yield from decode_network(found)
    for directory in (place for manager in MANAGERS for place in manager.encoded_networks):
        for name in _list(facts, facts.at(directory)):
            # A name that no file can have is written as "=" and digits (iwd.network(5)).
            yield from decode_network(Path(name).stem.removeprefix("="))


def decode_network(written: str) -> Iterator[str]:
    """A wireless network's name in the forms of files: quoted, as a list of bytes, as digits; and plain.

    Sources: nm-settings-keyfile(5), wpa_supplicant.conf(5).
    """
    text = written.strip().strip("\"'")
    yield text
    if re.fullmatch(r"(?:\d{1,3};)+", text):
        with contextlib.suppress(ValueError):
            yield bytes(int(number) for number in text.split(";")[:-1]).decode("utf-8", "replace")
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}){1,32}", text):
        yield bytes.fromhex(text).decode("utf-8", "replace")


def _read_settings(settings: Settings) -> Iterator[str]:
    """Every text in the configuration except country codes and words such as "info"."""
    values: list[object] = [settings.upstream_proxy, *settings.bootstrap_dns, *settings.core_advanced.values()]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += [*value.values()]
        elif isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str):
            # Complete, and in parts: an error may name the password of a proxy without the rest of its URL.
            for text in (value, unquote(value)):
                parts = re.split(r"[^\w\-]+", text)
                yield from (part for part in (text, *parts) if len(part) > 2 and part.lower() not in SCHEMES)


def _read_addresses(facts: Facts, leases: list[str]) -> Iterator[str]:
    net = PROC / "thread-self" / "net"
    texts = [read_known(facts, net / name) for name in ("fib_trie", "if_inet6", "arp", "ipv6_route")]
    texts += [
        read_known(facts, facts.at(path))
        for path in ("/etc/hosts", "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    ]
    for found in (found for text in (*texts, *leases) for found in _ADDRESS.findall(text)):
        with contextlib.suppress(ValueError):
            plain = found if "." in found or ":" in found else ":".join(re.findall("....", found))
            address = ipaddress.ip_address(plain)
            plain_ones = (address.is_unspecified, address.is_loopback, address.is_multicast, address in EVERYBODYS)
            if not any(plain_ones) and not any(address in network for network in OWN_NETWORKS):
                yield str(address)


def _read_hardware(facts: Facts, leases: list[str], links: set[str]) -> Iterator[str]:
    texts = [read_known(facts, Path("/sys/class/net") / link / "address") for link in links if "/" not in link]
    texts.append(read_known(facts, PROC / "thread-self" / "net" / "arp"))
    for text in (*texts, *leases):
        yield from (found for found in _HARDWARE.findall(text) if found.strip("0:f"))


def _read_serials(facts: Facts) -> Iterator[str]:
    paths = [facts.at("/etc/machine-id"), facts.at("/var/lib/dbus/machine-id"), PROC / "sys/kernel/random/boot_id"]
    for path in (*paths, *map(Path, SERIALS)):
        serial = read_known(facts, path).strip("\0\n ")
        if not NO_SERIAL.fullmatch(serial):
            yield serial
            yield serial.replace("-", "")
