# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads whose servers another program's configuration uses: pure, and run only by `unprivileged.py`.

The forms: a psiphon.config (JSON, as public wrappers of psiphon-tunnel-core ship it), a config.toml of this program
with `[core.advanced]`, and a profile (TOML). The core compares the names of its options without regard to case.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Final

from psiphon_vpn.toml_lines import parse_toml

# Codecs are imported when they are first looked up, and later this process can open no file.
_TEXT: Final = codecs.lookup("utf-8-sig")

WRAPPER: Final = "psiphon.config"
CONFIG: Final = "config.toml"
PROFILE: Final = "profile"
UNKNOWN: Final = "unknown"
MAX_OTHERS: Final = 200
_SINGLE: Final = {
    "remoteserverlistsignaturepublickey": "signature_key",
    "serverentrysignaturepublickey": "entry_signature_key",
    "propagationchannelid": "propagation_channel_id",
    "sponsorid": "sponsor_id",
}
_LISTS: Final = {
    "remoteserverlisturls": "list_urls",
    "remoteserverlisturl": "list_urls",
    "obfuscatedserverlistrooturls": "osl_urls",
    "obfuscatedserverlistrooturl": "osl_urls",
}
_PROFILE: Final = (*_SINGLE.values(), "list_urls", "osl_urls", "signature_key_digest", "sources")


def work(_argv: Sequence[str], content: bytes) -> bytes:
    """Read a configuration for `run_unprivileged`: JSON with kind, values, others, and whether it names a server."""
    return json.dumps(read_foreign(content)).encode("ascii")


def read_foreign(content: bytes) -> dict[str, object]:
    """What a configuration says of servers: its kind, the values by their names in a profile, and its other names."""
    document, kind = _parse(content)
    if kind == PROFILE:
        named = {name: document[name] for name in _PROFILE if name in document and name != "sources"}
        return {"kind": kind, "values": _keep_texts(named), "others": [], "target": False}
    values: dict[str, object] = {}
    lists: dict[str, list[str]] = {}
    others: list[str] = []
    target = False
    for name, value in document.items():
        folded = name.casefold()
        if folded in _SINGLE:
            values[_SINGLE[folded]] = value
        elif folded in _LISTS:
            lists.setdefault(_LISTS[folded], []).extend(_list_urls(value))
        elif folded == "targetserverentry":
            target = bool(value)
        else:
            others.append(name)
    values |= lists
    if kind == WRAPPER and not values and not target:
        kind = UNKNOWN
    return {"kind": kind, "values": _keep_texts(values), "others": sorted(others)[:MAX_OTHERS], "target": target}


def _parse(content: bytes) -> tuple[Mapping[str, object], str]:
    try:
        text = _TEXT.decode(content)[0]
    except ValueError:
        return {}, UNKNOWN
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return (found, WRAPPER) if isinstance(found, dict) else ({}, UNKNOWN)
    try:
        document = parse_toml(text)
    except ValueError:
        return {}, UNKNOWN
    if "signature_key" in document:
        return document, PROFILE
    core = document.get("core")
    advanced = core.get("advanced") if isinstance(core, dict) else None
    return (advanced, CONFIG) if isinstance(advanced, dict) else ({}, UNKNOWN)


def _list_urls(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    entries = value if isinstance(value, list) else []
    urls = [entry.get("URL") for entry in entries if isinstance(entry, dict)]
    return [_decode(url) for url in urls if isinstance(url, str)]


def _decode(url: str) -> str:
    """An address, which the core wants in base64 and some write as it is."""
    if url.startswith(("https://", "http://")):
        return url
    try:
        return base64.b64decode(url, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return url


def _keep_texts(values: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, list):
            found[name] = list(dict.fromkeys(text for text in value if isinstance(text, str)))
    return found
