# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile as options of the core, and options of a configuration compared with a profile."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from psiphon_vpn.servers.profile import Profile

_AFTER_FAILURES: Final = 2
"""Failed attempts after which mirrors are tried, as Psiphon's own programs do."""


def render_options(profile: Profile) -> dict[str, object]:
    """The options of the core that a profile stands for."""
    options: dict[str, object] = {
        "PropagationChannelId": profile.propagation_channel_id,
        "SponsorId": profile.sponsor_id,
        "RemoteServerListSignaturePublicKey": profile.signature_key,
    }
    if profile.list_urls:
        options["RemoteServerListURLs"] = [
            {
                "URL": _encode(url.url),
                "SkipVerify": not url.verify_tls,
                "OnlyAfterAttempts": _AFTER_FAILURES if index else 0,
            }
            for index, url in enumerate(profile.list_urls)
        ]
    if profile.osl_urls:
        options["ObfuscatedServerListRootURLs"] = [
            {"URL": _encode(url), "SkipVerify": False, "OnlyAfterAttempts": 0} for url in profile.osl_urls
        ]
    if profile.entry_signature_key:
        options["ServerEntrySignaturePublicKey"] = profile.entry_signature_key
    return options


def find_foreign(options: Mapping[str, object], profile: Profile | None) -> str | None:
    """The first option that is not as in a profile; None if all are.

    Args:
        options: checked options of a configuration.
        profile: the chosen one; None: none, so that every such option is foreign.
    """
    for name, value in options.items():
        if name in _KNOWN and (profile is None or not _KNOWN[name](value, profile)):
            return name
    return None


def _encode(url: str) -> str:
    return base64.b64encode(url.encode()).decode()


def read_urls(value: object) -> tuple[str, ...]:
    """The addresses of an option of lists that was checked."""
    entries = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else ()
    found = (entry.get("URL") for entry in entries if isinstance(entry, Mapping))
    return tuple(base64.b64decode(url).decode("ascii", "replace") for url in found if isinstance(url, str))


def _are_among(value: object, known: Iterable[str]) -> bool:
    folded = {_fold(url) for url in known}
    return all(_fold(url) in folded for url in read_urls(value))


def _fold(url: str) -> str:
    """An address with single slashes: many copies of the public one have two in its path."""
    scheme, _colon, rest = url.partition("://")
    return f"{scheme.lower()}://{re.sub('/+', '/', rest)}"


_KNOWN: Final[Mapping[str, Callable[[object, Profile], bool]]] = {
    "RemoteServerListURLs": lambda value, profile: _are_among(value, (url.url for url in profile.list_urls)),
    "ObfuscatedServerListRootURLs": lambda value, profile: _are_among(value, profile.osl_urls),
    "RemoteServerListSignaturePublicKey": lambda value, profile: value == profile.signature_key,
    "ServerEntrySignaturePublicKey": lambda value, profile: value == profile.entry_signature_key,
}
