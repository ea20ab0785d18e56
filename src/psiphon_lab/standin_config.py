# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core's command line and configuration. It refuses what the real core refuses."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psiphon_lab.server_entry import ServerEntry, decode_server_entry
from psiphon_lab.standin_candidates import read_server_list

STRING_FLAGS = {
    "config": "", "dataRootDirectory": "", "serverList": "", "listenInterface": "", "notices": "",
    "tunDevice": "", "tunBindInterface": "eth0", "tunDNSServers": "8.8.8.8,8.8.4.4",
}  # fmt: skip
# The names that the real core takes. The stand-in server speaks two of them.
REAL_PROTOCOLS = frozenset(
    "SSH OSSH TLS-OSSH SHADOWSOCKS-OSSH UNFRONTED-MEEK-OSSH UNFRONTED-MEEK-HTTPS-OSSH"
    " UNFRONTED-MEEK-SESSION-TICKET-OSSH FRONTED-MEEK-OSSH FRONTED-MEEK-HTTP-OSSH FRONTED-MEEK-QUIC-OSSH QUIC-OSSH"
    " CONJURE-OSSH".split()
)
BOOLEAN_FLAGS = ("version", "v", "formatNotices", "useNoticeFiles")


class FlagError(Exception):
    """A command line that Go's flag package refuses: usage, exit code 2."""


class ConfigError(Exception):
    """A configuration that the real core refuses: a forced Error notice, exit code 1."""


def parse_flags(argv: list[str]) -> dict[str, str]:
    """Parse flags as Go does: -x and --x are the same, -x=v and -x v too, and the first other word ends them."""
    flags = dict(STRING_FLAGS)
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            break
        name, has_value, value = word.removeprefix("--").removeprefix("-").partition("=")
        if name in BOOLEAN_FLAGS:
            if has_value and value not in ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "False"):
                raise FlagError(f'invalid boolean value "{value}" for -{name}: parse error')
            flags[name] = value if has_value else "true"
        elif name not in STRING_FLAGS:
            raise FlagError(f"flag provided but not defined: -{name}")
        elif has_value:
            flags[name] = value
        elif rest:
            flags[name] = rest.pop(0)
        else:
            raise FlagError(f"flag needs an argument: -{name}")
    return flags


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """The options that the stand-in uses.

    entry: the only server that it may use, or None. known: otherwise the servers of -serverList. resolver4, resolver6:
    addresses of transparent DNS, in binary form.
    """

    data_directory: Path
    entry: ServerEntry | None
    known: tuple[ServerEntry, ...]
    protocols: tuple[str, ...]
    egress_region: str
    diagnostic: bool
    count_bytes: bool
    socks_port: int | None
    establish_timeout: float
    resolver4: bytes | None
    resolver6: bytes | None


def _typed(values: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = values.get(name.lower(), default)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"json: cannot unmarshal {type(value).__name__} into Go struct field Config.{name}")
    return value


def _read_resolver(values: dict[str, Any], name: str, version: int) -> bytes | None:
    text = _typed(values, name, str, "")
    if not text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"invalid {name}") from None
    if address.version != version:
        raise ConfigError(f"invalid {name}")
    return address.packed


def _read_known(path: str) -> tuple[ServerEntry, ...]:
    """The servers of -serverList. A list that cannot be read is not fatal: the real core warns and goes on."""
    try:
        return tuple(read_server_list(Path(path).read_text(encoding="ascii"))) if path else ()
    except (OSError, ValueError):
        return ()


def _read_protocols(values: dict[str, Any]) -> tuple[str, ...]:
    names = _typed(values, "LimitTunnelProtocols", list, [])
    unknown = [name for name in names if name not in REAL_PROTOCOLS]
    if unknown:
        raise ConfigError(f"invalid tunnel protocol: {unknown[0]}")
    return tuple(names)


def load_config(flags: dict[str, str]) -> CoreConfig:
    """Read and check the configuration file. Raises ConfigError."""
    if not flags["config"]:
        raise ConfigError("configuration file is required")
    try:
        raw = json.loads(Path(flags["config"]).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"error loading configuration file: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError("error processing configuration file: not an object")
    values = {key.lower(): value for key, value in raw.items()}
    directory = Path(flags["dataRootDirectory"] or _typed(values, "DataRootDirectory", str, "") or ".")
    if not directory.is_dir():
        raise ConfigError("error processing configuration file: data root directory does not exist")
    for name in ("PropagationChannelId", "SponsorId"):
        if not _typed(values, name, str, ""):
            raise ConfigError(f"{name} is missing from the configuration file")
    version = _typed(values, "ClientVersion", str, "") or "0"
    if not version.lstrip("+-").isdigit():
        raise ConfigError("invalid client version")
    pool = _typed(values, "TunnelPoolSize", int, 0)
    if flags["tunDevice"] and pool not in (0, 1):
        raise ConfigError("packet tunnel mode requires TunnelPoolSize to be 1")
    timeout = _typed(values, "EstablishTunnelTimeoutSeconds", int, 300)
    if timeout < 0:
        raise ConfigError("invalid EstablishTunnelTimeoutSeconds")
    entry_text = _typed(values, "TargetServerEntry", str, "")
    try:
        entry = decode_server_entry(entry_text) if entry_text else None
    except ValueError as error:
        raise ConfigError(f"failed to decode target server entry: {error}") from error
    return CoreConfig(
        data_directory=directory / "ca.psiphon.PsiphonTunnel.tunnel-core",
        entry=entry,
        known=_read_known(flags["serverList"]),
        protocols=_read_protocols(values),
        egress_region=_typed(values, "EgressRegion", str, ""),
        diagnostic=_typed(values, "EmitDiagnosticNotices", bool, False),
        count_bytes=_typed(values, "EmitBytesTransferred", bool, False),
        socks_port=None
        if _typed(values, "DisableLocalSocksProxy", bool, False)
        else _typed(values, "LocalSocksProxyPort", int, 0),
        establish_timeout=float(timeout),
        resolver4=_read_resolver(values, "PacketTunnelTransparentDNSIPv4Address", 4),
        resolver6=_read_resolver(values, "PacketTunnelTransparentDNSIPv6Address", 6),
    )


def find_unfit(config: CoreConfig) -> str | None:
    """The real core's error, with which it ends, if its only server does not fit the other options; None if it fits."""
    if config.entry is not None and config.egress_region not in ("", config.entry.region):
        return "TargetServerEntry does not support EgressRegion"
    return None
