# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a profile of what a file says, and stores it as root's once root has agreed."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.servers import foreign
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.isolated import explain_checker
from psiphon_vpn.servers.profile import (
    MAX_PROFILE_SIZE,
    Profile,
    ProfileError,
    compute_key_digest,
    make_profile,
    parse_profile,
)
from psiphon_vpn.servers.signature import CheckerError, KeyFormError, check_key
from psiphon_vpn.stored_files import StoredError, is_text, parse_object
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.unprivileged import Limits, UnprivilegedError, run_unprivileged
from psiphon_vpn.versions import OwnerError, check_owner, sync_directory, write_synced

MAX_FOREIGN: Final = 1 << 20
"""Bytes of a configuration."""
GENERIC_ID: Final = "FFFFFFFFFFFFFFFF"
_LIMITS: Final = Limits(memory=256 << 20, cpu=10, wait=30.0, output=2 << 20)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What a file says of servers, not trusted.

    Attributes:
        kind: of the file, a word of `foreign.py`.
        values: by their names in a profile.
        others: names of its other options.
        names_server: whether it names a single server.
    """

    kind: str
    values: dict[str, str | tuple[str, ...]]
    others: tuple[str, ...]
    names_server: bool


def read_foreign(content: bytes) -> Foreign:
    """Read a file in a process without privileges.

    Raises:
        ListError: CHECKER: it could not be read.
    """
    if len(content) > MAX_FOREIGN:
        return Foreign(kind=foreign.UNKNOWN, values={}, others=(), names_server=False)
    try:
        fields = parse_object(run_unprivileged(foreign.__name__, (), content, _LIMITS))
    except (UnprivilegedError, StoredError) as error:
        why = _("the process that reads it without privileges gave no result")
        raise ListError(ListFlaw.CHECKER, why, _("Run it again."), what=_("The file was not read")) from error
    found: dict[str, str | tuple[str, ...]] = {}
    values, others = fields.get("values"), fields.get("others")
    for name, value in (values if isinstance(values, dict) else {}).items():
        if isinstance(value, str) and is_text(value):
            found[name] = value
        elif isinstance(value, list):
            found[name] = tuple(text for text in value if isinstance(text, str) and is_text(text))
    return Foreign(
        kind=str(fields.get("kind")),
        values=found,
        others=tuple(str(name) for name in others) if isinstance(others, list) else (),
        names_server=fields.get("target") is True,
    )


def make_of(found: Foreign, *, name: str, source: str) -> Profile:
    """The profile that these values are.

    Raises:
        ListError: NO_PROFILE: they are none.
    """

    def text(key: str, default: str = "") -> str:
        value = found.values.get(key, default)
        return value if isinstance(value, str) else ""

    def texts(key: str) -> tuple[str, ...]:
        value = found.values.get(key, ())
        return value if isinstance(value, tuple) else ()

    try:
        if not text("signature_key"):
            raise ProfileError(_("it names no key of server lists"))
        if (digest := text("signature_key_digest")) and digest != compute_key_digest(text("signature_key")):
            raise ProfileError("signature_key is not the key of signature_key_digest")
        check_key(text("signature_key"))
        profile = make_profile(
            name=name,
            list_urls=texts("list_urls"),
            osl_urls=texts("osl_urls"),
            signature_key=text("signature_key"),
            entry_signature_key=text("entry_signature_key"),
            propagation_channel_id=text("propagation_channel_id", GENERIC_ID).upper(),
            sponsor_id=text("sponsor_id", GENERIC_ID).upper(),
            sources={"all": source},
        )
        if parse_profile(render_profile(profile), name=name) != profile:
            raise ProfileError("it cannot be written")
    except CheckerError as error:
        raise explain_checker(error) from error
    except (ProfileError, KeyFormError) as error:
        raise ListError(
            ListFlaw.NO_PROFILE,
            str(error),
            _("Give a psiphon.config, a config.toml or a profile that names addresses and key of signed lists."),
            what=_("The file makes no profile"),
        ) from error
    return profile


def is_same_network(one: Profile, other: Profile) -> bool:
    """Whether two profiles trust the same keys."""
    return (one.signature_key, one.entry_signature_key or other.entry_signature_key) == (
        other.signature_key,
        other.entry_signature_key or one.entry_signature_key,
    )


def render_profile(profile: Profile) -> bytes:
    """A profile as TOML. JSON's texts without characters beyond ASCII are TOML's too (TOML 1.0.0, basic strings)."""
    fields: dict[str, object] = {
        "list_urls": [url.url for url in profile.list_urls],
        "osl_urls": list(profile.osl_urls),
        "signature_key": profile.signature_key,
        "signature_key_digest": profile.key_digest,
        "entry_signature_key": profile.entry_signature_key,
        "propagation_channel_id": profile.propagation_channel_id,
        "sponsor_id": profile.sponsor_id,
    }
    lines = ["# A Psiphon network that root trusts: written by psiphon-vpn servers trust", ""]
    lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    lines += ["", "[sources]", *(f"{name} = {json.dumps(text)}" for name, text in profile.sources.items()), ""]
    return "\n".join(lines).encode()


def store_profile(profile: Profile, layout: Layout, *, owner: int = 0) -> None:
    """Write a profile, in place of one with its name; whole or not at all.

    Raises:
        ListError: DISK or BAD_RECORD. Nothing has changed.
    """
    directory, content = layout.profiles_dir, render_profile(profile)
    assert len(content) <= MAX_PROFILE_SIZE
    new = directory / ".new"
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(0o755)  # whatever the umask: psiphon-user reads it
        for place in (directory.parent, directory):
            check_owner(place.stat(), owner=owner, name=str(place))
        new.unlink(missing_ok=True)
        write_synced(new, content, mode=0o644)
        new.replace(directory / f"{profile.name}.toml")
        sync_directory(directory)
    except OwnerError as error:
        step = _("Find out who changed that, then: chown root: {path}; chmod 755 {path}").format(path=directory)
        raise ListError(ListFlaw.BAD_RECORD, str(error), step, what=_what()) from error
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(new)
        why = _("{path} cannot be written: {cause}").format(path=directory, cause=error.strerror or error)
        raise ListError(ListFlaw.DISK, why, _("Make room there, then run this again."), what=_what()) from error


def _what() -> str:
    return _("The profile is not stored")
