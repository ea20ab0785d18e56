# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file: TOML, read whole or refused with the line and the reason.

A file that others could have written is refused: it would let them steer the tunnel of the whole machine.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from psiphon_vpn import checks
from psiphon_vpn.config_file import DEFAULT_PATH, read_config
from psiphon_vpn.core import options
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.i18n import _
from psiphon_vpn.nearest import find_nearest
from psiphon_vpn.odd_text import find_odd_text, find_other_format, find_wrong_encoding
from psiphon_vpn.servers.errors import ListError
from psiphon_vpn.servers.keys import find_foreign
from psiphon_vpn.servers.profile import NAME, NONE, PUBLIC, load_profile_in
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.toml_lines import find_error_line, find_key_line, parse_toml

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's configuration. Fields that may hold secrets are not in the repr.

    Attributes:
        egress_region: country of the exit, two capital letters (ISO 3166-1 alpha-2); empty for the best.
        upstream_proxy: URL of a proxy on the way to the tunnel server, or None.
        uplink: name of the only interface that the core may use, for example another VPN's; empty for the best one.
        socks_port: TCP port of the SOCKS proxy on 127.0.0.1.
        establish_timeout: seconds without a connection after which the service says why and tries with a fresh core;
            0 for never.
        log_level: of the service's own log.
        ipv6_probe: IPv6 addresses of name servers on the internet; one of them answering through the tunnel shows
            that the tunnel server carries IPv6. Default: root servers A, K (https://www.iana.org/domains/root/servers).
        servers: name of the profile of servers (`servers/profile.py`), or "none".
        bootstrap_dns: addresses of resolvers that the core itself may query outside the tunnel, in clear, before it is
            connected. Empty by default: then no query leaves the machine except inside the tunnel.
        list_rescue: whether the service, when no known server answers, asks the hosts of the server list for a newer
            one outside the tunnel, at addresses that it knows from earlier connections.
        core_advanced: the tunnel core's own options, checked; without those that only repeat the profile.
    """

    egress_region: str = ""
    upstream_proxy: str | None = dataclasses.field(default=None, repr=False)
    uplink: str = ""
    socks_port: int = 1081
    establish_timeout: int = 300
    log_level: str = "info"
    ipv6_probe: tuple[str, ...] = ("2001:503:ba3e::2:30", "2001:7fd::1")
    servers: str = PUBLIC
    bootstrap_dns: tuple[str, ...] = ()
    list_rescue: bool = True
    core_advanced: Mapping[str, object] = dataclasses.field(
        default_factory=lambda: MappingProxyType({}), repr=False, hash=False
    )


def _check_egress_region(value: object) -> object:
    return "" if value == "" else options.check_region(value)


_check_profile = checks.check_pattern(
    NAME.pattern, lambda: _("it must be the name of a profile of servers: small letters, digits and hyphens, or none")
)

CHECKS: Final[Mapping[str, checks.Check]] = {
    "egress_region": _check_egress_region,
    "upstream_proxy": checks.check_upstream_proxy,
    "uplink": checks.check_uplink,
    # The core has no capability, so it cannot listen below 1024.
    "socks_port": checks.check_int(1024, 65535),
    "establish_timeout": checks.check_int(0, 86400),
    "log_level": checks.check_choice(*LOG_LEVELS),
    "servers": _check_profile,
    "list_rescue": checks.check_bool,
    "bootstrap_dns": checks.check_list(checks.check_ip_address, high=4),
    "ipv6_probe": checks.check_list(checks.check_ipv6_server, high=8),
}
ADVANCED: Final = ("core", "advanced")


def load_settings(path: Path, *, trusted_uids: Collection[int] = (), profiles: Path | None = None) -> Settings:
    """Read the configuration file.

    Args:
        path: the file; if it does not exist, the defaults apply.
        trusted_uids: owners that the file may have besides root and the uid of this process.
        profiles: root's profiles of servers; None: those of this installation.

    Raises:
        ConfigError: the file cannot be read or trusted, or something in it is wrong.
    """
    found = read_config(path, trusted_uids={0, os.geteuid(), *trusted_uids})
    return Settings() if found is None else parse_settings(found.content, path=path, profiles=profiles)


def parse_settings(content: bytes, *, path: Path = DEFAULT_PATH, profiles: Path | None = None) -> Settings:
    """Check the content of a configuration file.

    Args:
        content: content of the file, UTF-8.
        path: the path that errors name.
        profiles: root's profiles of servers; None: those of this installation.

    Raises:
        ConfigError: something in it is wrong, with the line.
    """
    if (odd := find_wrong_encoding(content)) is not None:
        raise ConfigError(path, odd.why, odd.next_step, line=odd.line)
    # Some editors put a byte order mark there.
    text = content.decode("utf-8-sig")
    try:
        document = parse_toml(text)
    except ValueError as error:
        line = find_error_line(text, error)
        if (odd := find_odd_text(text, line) or find_other_format(text, line)) is not None:
            raise ConfigError(path, odd.why, odd.next_step, line=odd.line) from None
        # The parser's own words name no values, only characters and positions.
        why = _("this is not TOML ({reason})").format(reason=error)
        raise ConfigError(path, why, _edit(), line=line) from None
    return _Reader(path, text, profiles or Layout().profiles_dir).read(document)


def check_document(document: Mapping[str, object], *, path: Path = DEFAULT_PATH) -> Settings:
    """Check what was parsed elsewhere; raises ConfigError like `parse_settings`, without a line that means anything."""
    return _Reader(path, "", Layout().profiles_dir).read(document)


def _edit() -> str:
    return _("Correct this line, with: sudo psiphon-vpn config edit. The lock stays closed until then.")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Turns a parsed document into Settings; has the text so that errors can name a line."""

    path: Path
    text: str
    profiles: Path

    def read(self, document: Mapping[str, object]) -> Settings:
        values: dict[str, object] = {}
        for name, value in document.items():
            if name == ADVANCED[0]:
                values["core_advanced"] = self.read_core(value)
            elif name in CHECKS:
                values[name] = self.check((name,), CHECKS[name], value)
            elif name in options.ALLOWED:
                self.fail((name,), _("{key} belongs below the line [core.advanced]").format(key=name))
            elif find_nearest(name, known := (*CHECKS, ADVANCED[0])):
                self.fail_unknown((name,), known)
            else:
                self.fail_refused((name,), known)
        self.check_network(values)
        return dataclasses.replace(Settings(), **values)  # type: ignore[arg-type]  # each value was checked by name

    def check_network(self, values: dict[str, object]) -> None:
        """Refuse a profile that does not exist, and keys of others; drop those that only repeat the profile."""
        advanced = values.get("core_advanced", {})
        assert isinstance(advanced, Mapping)
        named = [name for name in options.PROFILE_KEYS if name in advanced]
        name = values.get("servers", PUBLIC)
        if name == NONE:
            profile = None
        elif not named and name == PUBLIC:
            return  # every start checks it
        else:
            try:
                profile = load_profile_in(self.profiles, str(name))
            except ListError as error:
                self.fail(("servers",), f"servers: {error.why}")
        if (foreign := find_foreign(advanced, profile)) is not None:
            self.fail_foreign((*ADVANCED, foreign))
        values["core_advanced"] = MappingProxyType({key: value for key, value in advanced.items() if key not in named})

    def fail_foreign(self, key: tuple[str, ...]) -> NoReturn:
        # In one sentence: the status shows the reason without the step.
        why = _(
            "{key}: it is not of the servers that this machine trusts; root can trust it with:"
            " sudo psiphon-vpn servers trust {path}"
        ).format(key=key[-1], path=self.path)
        step = _("Or remove this line; the lock stays closed until then.")
        raise ConfigError(self.path, why, step, line=find_key_line(self.text, key))

    def read_core(self, core: object) -> Mapping[str, object]:
        if not isinstance(core, dict):
            self.fail(("core",), _("{key} must be a table: write [core.advanced]").format(key="core"))
        for name in core:
            if name != ADVANCED[1]:
                self.fail_unknown(("core", name), ("advanced",))
        advanced = core.get(ADVANCED[1], {})
        if not isinstance(advanced, dict):
            self.fail(ADVANCED, _("{key} must be a table: write [core.advanced]").format(key="core.advanced"))
        checked: dict[str, object] = {}
        for name, value in advanced.items():
            key = (*ADVANCED, name)
            if name in options.ALLOWED:
                checked[name] = self.check(key, options.ALLOWED[name], value)
            elif name in CHECKS:
                self.fail(key, _("{key} belongs above the line [core.advanced]").format(key=name))
            else:
                self.fail_refused(key, options.ALLOWED)
        if conflict := options.find_conflict(checked):
            self.fail((*ADVANCED, conflict[0]), f"{conflict[0]}: {conflict[1]}")
        return MappingProxyType(checked)

    def check(self, key: tuple[str, ...], check: checks.Check, value: object) -> object:
        try:
            return check(value)
        except checks.Refused as reason:
            self.fail(key, f"{key[-1]}: {reason}")

    def fail(self, key: tuple[str, ...], why: str) -> NoReturn:
        raise ConfigError(self.path, why, _edit(), line=find_key_line(self.text, key))

    def fail_refused(self, key: tuple[str, ...], known: Iterable[str]) -> NoReturn:
        # Without regard to case, as the core compares its keys.
        for name, reason in options.REFUSED.items():
            if name.casefold() == key[-1].casefold():
                self.fail(key, _("{key} is not allowed here: {reason}").format(key=name, reason=reason()))
        self.fail_unknown(key, known)

    def fail_unknown(self, key: tuple[str, ...], known: Iterable[str]) -> NoReturn:
        known = tuple(known)
        shown = ascii(key[-1][:60])
        if nearest := find_nearest(key[-1], known):
            self.fail(key, _("there is no setting {key}; did you mean {nearest}?").format(key=shown, nearest=nearest))
        why = _("there is no setting {key}; there are {known}").format(key=shown, known=", ".join(known))
        self.fail(key, why)
