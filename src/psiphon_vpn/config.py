"""The configuration file: TOML, read whole or refused with the line and the reason.

A file that others could have written is refused: it would let them steer the tunnel of the whole machine.
"""

import dataclasses
import difflib
import logging
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from psiphon_vpn import checks
from psiphon_vpn.core import options
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.i18n import _
from psiphon_vpn.odd_text import find_odd_text, find_wrong_encoding
from psiphon_vpn.system.layout import GROUP, USER
from psiphon_vpn.toml_lines import find_error_line, find_key_line, parse_toml

log = logging.getLogger(__name__)

DEFAULT_PATH: Final = Path("/etc/psiphon-vpn/config.toml")
MAX_BYTES: Final = 256 * 1024
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
        bootstrap_dns: addresses of resolvers that the core itself may query outside the tunnel, in clear, before it is
            connected. Empty by default: then no query leaves the machine except inside the tunnel.
        core_advanced: the tunnel core's own options, checked.
    """

    egress_region: str = ""
    upstream_proxy: str | None = dataclasses.field(default=None, repr=False)
    uplink: str = ""
    socks_port: int = 1081
    establish_timeout: int = 300
    log_level: str = "info"
    ipv6_probe: tuple[str, ...] = ("2001:503:ba3e::2:30", "2001:7fd::1")
    bootstrap_dns: tuple[str, ...] = ()
    core_advanced: Mapping[str, object] = dataclasses.field(
        default_factory=lambda: MappingProxyType({}), repr=False, hash=False
    )


def _check_egress_region(value: object) -> object:
    return "" if value == "" else options.check_region(value)


_CHECKS: Final[Mapping[str, checks.Check]] = {
    "egress_region": _check_egress_region,
    "upstream_proxy": checks.check_upstream_proxy,
    "uplink": checks.check_uplink,
    # The core has no capability, so it cannot listen below 1024.
    "socks_port": checks.check_int(1024, 65535),
    "establish_timeout": checks.check_int(0, 86400),
    "log_level": checks.check_choice(*LOG_LEVELS),
    "bootstrap_dns": checks.check_list(checks.check_ip_address, high=4),
    "ipv6_probe": checks.check_list(checks.check_ipv6_server, high=8),
}
_ADVANCED: Final = ("core", "advanced")


def load_settings(path: Path, *, trusted_uids: Collection[int] = ()) -> Settings:
    """Read the configuration file.

    Args:
        path: the file; if it does not exist, the defaults apply.
        trusted_uids: owners that the file may have besides root and the uid of this process.

    Raises:
        ConfigError: the file cannot be read or trusted, or something in it is wrong.
    """
    content = _read_file(path, trusted_uids={0, os.geteuid(), *trusted_uids})
    return Settings() if content is None else parse_settings(content, path=path)


def parse_settings(content: bytes, *, path: Path = DEFAULT_PATH) -> Settings:
    """Check the content of a configuration file.

    Args:
        content: content of the file, UTF-8.
        path: the path that errors name.

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
        if (odd := find_odd_text(text, find_error_line(text, error))) is not None:
            raise ConfigError(path, odd.why, odd.next_step, line=odd.line) from None
        # The parser's own words name no values, only characters and positions.
        why = _("this is not TOML ({reason})").format(reason=error)
        raise ConfigError(path, why, _edit(), line=find_error_line(text, error)) from None
    return _Reader(path, text).read(document)


def _edit() -> str:
    return _("Correct this line; the lock stays closed until then.")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Turns a parsed document into Settings; has the text so that errors can name a line."""

    path: Path
    text: str

    def read(self, document: Mapping[str, object]) -> Settings:
        values: dict[str, object] = {}
        for name, value in document.items():
            if name == _ADVANCED[0]:
                values["core_advanced"] = self.read_core(value)
            elif name in _CHECKS:
                values[name] = self.check((name,), _CHECKS[name], value)
            elif name in options.ALLOWED:
                self.fail((name,), _("{key} belongs below the line [core.advanced]").format(key=name))
            else:
                self.fail_unknown((name,), (*_CHECKS, "core"))
        return dataclasses.replace(Settings(), **values)  # type: ignore[arg-type]  # each value was checked by name

    def read_core(self, core: object) -> Mapping[str, object]:
        if not isinstance(core, dict):
            self.fail(("core",), _("{key} must be a table: write [core.advanced]").format(key="core"))
        for name in core:
            if name != _ADVANCED[1]:
                self.fail_unknown(("core", name), ("advanced",))
        advanced = core.get(_ADVANCED[1], {})
        if not isinstance(advanced, dict):
            self.fail(_ADVANCED, _("{key} must be a table: write [core.advanced]").format(key="core.advanced"))
        checked: dict[str, object] = {}
        for name, value in advanced.items():
            key = (*_ADVANCED, name)
            if name in options.ALLOWED:
                checked[name] = self.check(key, options.ALLOWED[name], value)
            elif name in _CHECKS:
                self.fail(key, _("{key} belongs above the line [core.advanced]").format(key=name))
            else:
                self.fail_refused(key)
        if conflict := options.find_conflict(checked):
            self.fail((*_ADVANCED, conflict[0]), f"{conflict[0]}: {conflict[1]}")
        return MappingProxyType(checked)

    def check(self, key: tuple[str, ...], check: checks.Check, value: object) -> object:
        try:
            return check(value)
        except checks.Refused as reason:
            self.fail(key, f"{key[-1]}: {reason}")

    def fail(self, key: tuple[str, ...], why: str) -> NoReturn:
        raise ConfigError(self.path, why, _edit(), line=find_key_line(self.text, key))

    def fail_refused(self, key: tuple[str, ...]) -> NoReturn:
        # Without regard to case, as the core compares its keys.
        for name, reason in options.REFUSED.items():
            if name.casefold() == key[-1].casefold():
                self.fail(key, _("{key} is not allowed here: {reason}").format(key=name, reason=reason()))
        self.fail_unknown(key, options.ALLOWED)

    def fail_unknown(self, key: tuple[str, ...], known: Iterable[str]) -> NoReturn:
        known = tuple(known)
        shown = ascii(key[-1][:60])
        if nearest := _find_nearest(key[-1], known):
            self.fail(key, _("there is no setting {key}; did you mean {nearest}?").format(key=shown, nearest=nearest))
        why = _("there is no setting {key}; there are {known}").format(key=shown, known=", ".join(known))
        self.fail(key, why)


def _find_nearest(name: str, known: Iterable[str]) -> str | None:
    def fold(text: str) -> str:
        return text.casefold().replace("_", "").replace("-", "")

    folded = {fold(key): key for key in known}
    found = difflib.get_close_matches(fold(name[:60]), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def _read_file(path: Path, *, trusted_uids: Collection[int]) -> bytes | None:
    try:
        # Not blocking: opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    try:
        _check_file(path, os.fstat(descriptor), trusted_uids)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        why = _("it is larger than {size} KiB").format(size=MAX_BYTES // 1024)
        raise ConfigError(path, why, _("Remove what is not a setting."))
    return content


def _give_to_service(path: Path) -> str:
    return _("Run: sudo chown {user}:{group} {path}; sudo chmod 600 {path}; sudo psiphon-vpn reload").format(
        user=USER, group=GROUP, path=path
    )


def _unreadable(path: Path, cause: OSError) -> ConfigError:
    why = _("it cannot be read ({reason})").format(reason=cause.strerror)
    if not isinstance(cause, PermissionError):
        return ConfigError(path, why, _("See what is wrong with this file or with its disk."))
    try:
        owner = path.stat().st_uid
    except PermissionError:
        why = _("the service, which is not root, may not enter the directory {path}").format(path=path.parent)
        return ConfigError(path, why, _("Run: sudo chmod 755 {path}").format(path=path.parent))
    except OSError:
        owner = os.geteuid()
    if owner == os.geteuid():
        step = _("See what else keeps this file from being read: its mode, SELinux, AppArmor.")
        return ConfigError(path, why, step)
    # Usually root: an editor replaced the file.
    name = "root" if owner == 0 else str(owner)
    why = _("it belongs to {owner}, and the service, which runs as {user}, may not read it").format(
        owner=name, user=USER
    )
    return ConfigError(path, why, _give_to_service(path))


def _check_file(path: Path, status: os.stat_result, trusted_uids: Collection[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(path, _("it is not a file"), _("Put an ordinary file there."))
    if status.st_uid not in trusted_uids:
        why = _("it belongs to another user, who could steer the tunnel")
        raise ConfigError(path, why, f"{_('Look at what it says first.')} {_give_to_service(path)}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = _("other users may write to it and could steer the tunnel")
        raise ConfigError(path, why, _("Look at what it says, then run: sudo chmod 600 {path}").format(path=path))
    if status.st_mode & stat.S_IROTH:
        log.warning("%s may hold secrets and every user can read it; chmod 600 it", path)
