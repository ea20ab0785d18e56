# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Turns what a user types into a value, and a value into what may be shown. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from psiphon_vpn.checks import Refused, WrongType
from psiphon_vpn.countries import find_country, find_similar
from psiphon_vpn.editing.catalogue import PROXY, Setting
from psiphon_vpn.editing.document import render_value
from psiphon_vpn.i18n import _
from psiphon_vpn.toml_lines import parse_toml

_BOOLEANS: Final[Mapping[str, bool]] = {
    "yes": True,
    "on": True,
    "true": True,
    "no": False,
    "off": False,
    "false": False,
}
_USER_INFO: Final = re.compile(r"//.*@", re.DOTALL)


def _find_region(word: str) -> str:
    country = find_country(word)
    return word if country is None else country.code


_SPELLINGS: Final[Mapping[str, Callable[[str], str]]] = {
    "egress_region": _find_region,
    "DeviceRegion": _find_region,
    "log_level": str.lower,
    "LimitTunnelProtocols": str.upper,
    "InitialLimitTunnelProtocols": str.upper,
}
"""Settings with words of a fixed list, and how a word is brought into its spelling there."""


def read_value(setting: Setting, typed: str) -> object:
    """The value that a user means: as in the file, or without quotation marks, or with commas between the entries.

    Args:
        setting: for which it is.
        typed: one line or several.

    Raises:
        Refused: no reading of it is accepted; the reason of the one that comes closest.
    """
    reasons: list[Refused] = []
    for candidate in _list_readings(setting, typed):
        try:
            setting.check(candidate)
        except Refused as reason:
            reasons.append(reason)
        else:
            return candidate
    raise _name_similar(
        setting, typed, next((reason for reason in reasons if not isinstance(reason, WrongType)), reasons[0])
    )


def _name_similar(setting: Setting, typed: str, reason: Refused) -> Refused:
    similar = find_similar(typed) if _SPELLINGS.get(setting.name) is _find_region else None
    if similar is None:
        return reason
    text = _("{reason}; did you mean {name} ({code})?")
    return Refused(text.format(reason=reason, name=similar.name, code=similar.code))


def _list_readings(setting: Setting, typed: str) -> Iterator[object]:
    text = typed.strip()
    respell = _SPELLINGS.get(setting.name, str)
    for parse in (_parse_toml_value, _parse_json_value):
        found = parse(text)
        if found is not None:
            yield found
            yield _respell(found, respell)
    yield text
    yield respell(text)
    if text.casefold() in _BOOLEANS:
        yield _BOOLEANS[text.casefold()]
    words = [word for word in re.split(r"[,\s]+", text) if word]
    yield words
    yield [respell(word) for word in words]


def _respell(value: object, respell: Callable[[str], str]) -> object:
    if isinstance(value, list):
        return [_respell(entry, respell) for entry in value]
    return respell(value) if isinstance(value, str) else value


def _parse_toml_value(text: str) -> object:
    try:
        found = parse_toml(f"value = {text}")
    except ValueError:
        return None
    return found["value"] if list(found) == ["value"] else None


def _parse_json_value(text: str) -> object:
    if not text.startswith(("{", "[")):
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def show_value(setting: Setting, value: object) -> str:
    """A value as it may be shown: as in the file, but no secret."""
    if setting.is_secret:
        return _("(set; a secret, not shown)")
    if setting.name == PROXY and isinstance(value, str):
        return render_value(_USER_INFO.sub("//***@", value))
    return render_value(value)
