# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Parses and changes the configuration in a process that can do nothing else (`unprivileged.py`).

Nothing here reads or writes a file: the content comes in, the new content goes out, and root writes it. Whatever a
hostile file does to the parsers, it gets the rights of nobody and no file, and can at most answer with another
configuration, which is what its author could have written into the file anyway.
"""

from __future__ import annotations

import codecs
import math
import unicodedata
from collections.abc import Sequence

from psiphon_vpn.checks import Refused
from psiphon_vpn.config import parse_settings
from psiphon_vpn.config_file import DEFAULT_PATH
from psiphon_vpn.editing import values
from psiphon_vpn.editing.catalogue import Setting, find_setting, list_settings
from psiphon_vpn.editing.document import NotEditable, set_value, unset_value
from psiphon_vpn.editing.message import READ, SET, UNSET, VIEW, pack, unpack
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.i18n import _
from psiphon_vpn.servers.profile import read_all_early
from psiphon_vpn.stored_files import StoredError
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.toml_lines import parse_toml

# When this is imported files can still be read, and not when it works.
read_all_early(Layout().profiles_dir)


def work(argv: Sequence[str], stdin: bytes) -> bytes:
    """Answer one request (`message.py`). The changes of `CHANGE` are a list of [SET, name, typed] and [UNSET, name]."""
    (request,) = argv
    fields, content = unpack(stdin)
    changes = fields.get("changes")
    before = _describe(content)
    if request == READ:
        return pack({**before, "document": _read(content) if before["problem"] is None else {}})
    if request == VIEW:
        return pack(before)
    try:
        changed = _change(content, changes if isinstance(changes, list) else [])
    except ConfigError as error:
        return pack({"refused": _describe_error(error)})
    except Refused as reason:
        return pack({"refused_value": str(reason)})
    return pack({**_describe(changed), "before": before}, changed)


def _describe(content: bytes) -> dict[str, object]:
    problem: ConfigError | None = None
    try:
        parse_settings(content)
    except ConfigError as error:
        problem = error
    found = _read(content)
    return {
        "problem": None if problem is None else _describe_error(problem),
        "values": {} if found is None else _show(found),
    }


def _show(found: dict[str, object]) -> dict[str, object]:
    """The settings that the file has: name to [as in the file, as plain text, the value itself unless it is secret]."""
    shown: dict[str, object] = {}
    for setting in list_settings():
        value = _find(found, setting)
        if value is not None:
            text = values.show_value(setting, value)
            is_plain = isinstance(value, str) and not setting.may_be_secret(value)
            is_secret = setting.may_be_secret(value if isinstance(value, str) else "")
            shown[setting.name] = [text, value if is_plain else text, None if is_secret else _make_plain(value)]
    return shown


def _make_plain(value: object) -> object:
    """A value of types that JSON has too; None for dates and what is not finite."""
    if isinstance(value, dict):
        return {name: _make_plain(field) for name, field in value.items()}
    if isinstance(value, list):
        return [_make_plain(entry) for entry in value]
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else None


def _find(document: object, setting: Setting) -> object:
    for name in setting.key:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _describe_error(error: ConfigError) -> dict[str, object]:
    return {"why": error.reason, "next_step": error.next_step, "line": error.line}


def _read(content: bytes) -> dict[str, object] | None:
    try:
        return parse_toml(content.decode("utf-8-sig"))
    except ValueError:
        return None


def _change(content: bytes, changes: Sequence[object]) -> bytes:
    mark = codecs.BOM_UTF8 if content.startswith(codecs.BOM_UTF8) else b""
    if _read(content) is None:
        parse_settings(content)  # raises, and says why
    text = content[len(mark) :].decode()
    for change in changes:
        if not isinstance(change, list) or not all(isinstance(word, str) for word in change):
            raise StoredError("a change is of the wrong kind")
        text = _apply(text, change)
    return mark + text.encode()


def _apply(text: str, change: Sequence[str]) -> str:
    kind, name, *typed = change
    try:
        if kind == UNSET:
            return _unset(text, name)
        setting = find_setting(name)
        return set_value(text, setting.key, values.read_value(setting, typed[0]))
    except Refused as reason:
        raise Refused(f"{name}: {reason}") from None
    except NotEditable:
        why = _("{name} is written there in a way that cannot be changed without changing more").format(name=name)
        raise ConfigError(DEFAULT_PATH, why, _("Change it by hand, with: sudo psiphon-vpn config edit")) from None


def _unset(text: str, name: str) -> str:
    """Also for what is no setting: a wrong name must be removable."""
    path = tuple(name.split("."))
    known = {setting.name: setting.key for setting in list_settings()}
    return unset_value(text, known.get(path[-1], path))


def _prepare() -> None:
    """Have everything imported that is needed only now and then: later no file can be opened."""
    unicodedata.normalize("NFKC", "x")
    for content in (
        b"\xef\xbb\xbfegress_region = 'CA' # x\n",
        b"upstream_proxy = 'http://h\xc3\xa9:1'",
        b"x = ",
        b"{}",
    ):
        _describe(content)
    _change(
        b"[core]\nadvanced = {}\n", [[SET, "SponsorId", "0" * 16], [SET, "log_level", "debug"], [UNSET, "log_level"]]
    )


_prepare()
