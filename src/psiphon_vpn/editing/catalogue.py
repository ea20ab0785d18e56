# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every setting by the name that users type: where it is in the file, what it accepts, and whether it is a secret."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.checks import Check
from psiphon_vpn.config import ADVANCED, CHECKS
from psiphon_vpn.core import options
from psiphon_vpn.errors import EXIT_BAD_CONFIG, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.nearest import find_nearest

SECRET: Final = frozenset(
    {
        "TargetServerEntry",
        "RemoteServerListURLs",
        "ObfuscatedServerListRootURLs",
        "CustomHeaders",
    }
)
"""Options whose values are never shown: entries have keys of servers, addresses and headers can have passwords."""
PROXY: Final = "upstream_proxy"
"""Only the user name and the password in it are secrets."""
_PREFIX: Final = ".".join(ADVANCED) + "."


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting.

    Attributes:
        key: names from the outermost table of the file to it.
        check: accepts its values.
    """

    key: tuple[str, ...]
    check: Check

    @property
    def name(self) -> str:
        """The name that users type."""
        return self.key[-1]

    @property
    def is_secret(self) -> bool:
        """Whether its value is never shown, and never taken from a command line."""
        return self.name in SECRET

    def may_be_secret(self, typed: str) -> bool:
        """Whether what a user typed for it may be a secret."""
        return self.is_secret or (self.name == PROXY and "@" in typed)

    @property
    def is_core_option(self) -> bool:
        """Whether it is one of the tunnel core's own options."""
        return len(self.key) > 1


def list_settings() -> Iterable[Setting]:
    """All settings, in the order of the manual."""
    for name, check in CHECKS.items():
        yield Setting(key=(name,), check=check)
    for name, check in options.ALLOWED.items():
        yield Setting(key=(*ADVANCED, name), check=check)


def find_setting(typed: str) -> Setting:
    """A setting by its name.

    Args:
        typed: the name, with or without the table in front.

    Raises:
        UserError: there is none; with the nearest right name, or the reason for which an option is refused.
    """
    name = typed.removeprefix(_PREFIX)
    settings = {setting.name: setting for setting in list_settings()}
    if name in settings:
        return settings[name]
    what = _("There is no setting {name}").format(name=ascii(name[:60]))
    for refused, reason in options.REFUSED.items():
        if refused.casefold() == name.casefold():
            why = _("{key} is not allowed here: {reason}").format(key=refused, reason=reason())
            raise UserError(what, why, _list_them(), exit_code=EXIT_BAD_CONFIG)
    if nearest := find_nearest(name, settings):
        raise UserError(
            what, _("did you mean {nearest}?").format(nearest=nearest), _list_them(), exit_code=EXIT_BAD_CONFIG
        )
    raise UserError(what, _("no name is similar"), _list_them(), exit_code=EXIT_BAD_CONFIG)


def _list_them() -> str:
    return _("To see all: sudo psiphon-vpn config show --all")
