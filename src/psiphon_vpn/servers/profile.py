# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The profile of a Psiphon network: where its signed lists are, and the key that has signed them.

The profile of the public network is data of the package. Further ones are root's, below /etc/psiphon-vpn/profiles, and
only a confirmed `servers trust FILE` writes them. config.toml, which psiphon-user can write, only names one: a core
that was taken over cannot bring a key of its own.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from psiphon_vpn.i18n import _
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.signature import KeyFormError, read_key
from psiphon_vpn.stored_files import StoredError, read_stored
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.toml_lines import parse_toml
from psiphon_vpn.versions import OwnerError, check_owner

PUBLIC: Final = "psiphon"
"""The profile of the public network."""
NONE: Final = "none"
"""The word in the configuration for no profile."""
PROFILES: Final = "profiles"
"""Directory of root's profiles, beside the configuration file."""
PUBLIC_PATH: Final = Path(__file__).with_name("psiphon.toml")
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
MAX_PROFILE_SIZE: Final = 64 * 1024
MAX_URLS: Final = 32
_ID: Final = re.compile(r"[0-9A-F]{16}")
_ADDRESS: Final = re.compile(r"https?://[\x21-\x7e]{3,1000}")
_ED25519_BYTES: Final = 32


class ProfileError(ValueError):
    """A profile is malformed. The text is the reason, in English."""


@dataclass(frozen=True, kw_only=True)
class ListUrl:
    """The address of a list.

    Attributes:
        url: an https address; of a root of obfuscated lists also http, since each file is verified by its signature.
        verify_tls: whether the host must have a certificate for its name. Mirrors have none: the signature counts.
    """

    url: str
    verify_tls: bool = True


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One network.

    Attributes:
        name: as in the configuration.
        list_urls: addresses of the signed list: the main one first, then mirrors.
        osl_urls: roots of the obfuscated lists.
        signature_key: RSA key of the lists, base64 of its SubjectPublicKeyInfo.
        entry_signature_key: ed25519 key of single entries, base64; empty for none.
        propagation_channel_id: 16 hexadecimal digits.
        sponsor_id: likewise.
        sources: by name of a value, where it comes from.
    """

    name: str
    list_urls: tuple[ListUrl, ...]
    osl_urls: tuple[str, ...]
    signature_key: str = field(repr=False)
    entry_signature_key: str
    propagation_channel_id: str
    sponsor_id: str
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False, hash=False)

    @property
    def key_digest(self) -> str:
        """What a list names as its key: SHA-256 over the base64 text of the key, in base64."""
        return compute_key_digest(self.signature_key)


def compute_key_digest(key: str) -> str:
    """SHA-256 over the base64 text of a key, in base64."""
    return base64.b64encode(hashlib.sha256(key.encode()).digest()).decode()


def load_profile(name: str, layout: Layout, *, owner: int = 0) -> Profile:
    """The profile with a name, of this installation; like `load_profile_in`."""
    return load_profile_in(layout.profiles_dir, name, owner=owner)


def load_profile_in(directory: Path, name: str, *, owner: int = 0) -> Profile:
    """The profile with a name.

    Args:
        directory: root's profiles.
        name: PUBLIC, or the name of one of root's.
        owner: uid that must own root's profiles: root, except in tests without root.

    Raises:
        ListError: NO_PROFILE.
    """
    try:
        if name == PUBLIC:
            return parse_profile(_early.get(PUBLIC_PATH) or PUBLIC_PATH.read_bytes(), name=PUBLIC)
        if NAME.fullmatch(name) is None or name == NONE:
            raise ProfileError("a name has up to 32 small letters, digits and hyphens")
        return parse_profile(
            _early.get(directory / f"{name}.toml") or _read_own(directory / f"{name}.toml", owner=owner), name=name
        )
    except FileNotFoundError as error:
        why = _("there is no profile with the name {name}").format(name=ascii(name))
        raise _no_profile(why) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        why = _("the profile {name} cannot be used ({reason})").format(name=ascii(name), reason=reason)
        raise _no_profile(why) from error


_early: dict[Path, bytes] = {}


def read_all_early(directory: Path) -> None:
    """Keep the content of every profile, for a process that is about to give up its files (`unprivileged.py`)."""
    _early[PUBLIC_PATH] = PUBLIC_PATH.read_bytes()
    with contextlib.suppress(OSError):
        for path in directory.glob("*.toml"):
            with contextlib.suppress(OSError, ProfileError):
                _early[path] = _read_own(path, owner=0)


def list_profiles(layout: Layout) -> tuple[str, ...]:
    """The names of all profiles, the public network's first; whether they can be used, `load_profile` says."""
    try:
        names = {path.stem for path in layout.profiles_dir.iterdir() if path.suffix == ".toml"}
    except OSError:
        names = set()
    return (PUBLIC, *sorted(name for name in names - {PUBLIC, NONE} if NAME.fullmatch(name)))


def _no_profile(why: str) -> ListError:
    return ListError(
        ListFlaw.NO_PROFILE,
        why,
        _("See the names with: psiphon-vpn servers list; set one with: servers = NAME in the configuration."),
        what=_("The profile of servers is not used"),
    )


def _read_own(path: Path, *, owner: int) -> bytes:
    """Read a profile of root's, if nobody else can have written it."""
    try:
        for place in (path.parent.stat(), path.stat(follow_symlinks=False)):
            check_owner(place, owner=owner, name=path.name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ProfileError("it is no regular file")
            check_owner(status, owner=owner, name=path.name)
        finally:
            os.close(descriptor)
        return read_stored(path, high=MAX_PROFILE_SIZE)
    except (OwnerError, StoredError) as error:
        raise ProfileError(str(error)) from error


def parse_profile(content: bytes, *, name: str) -> Profile:
    """Read a profile: TOML with exactly the known names.

    Raises:
        ProfileError: something is missing, unknown or malformed, or the key is not the one of the digest.
    """
    try:
        document = parse_toml(content.decode())
    except ValueError as error:
        raise ProfileError(f"it is not TOML: {error}") from error
    known = {
        "list_urls",
        "osl_urls",
        "signature_key",
        "signature_key_digest",
        "entry_signature_key",
        "propagation_channel_id",
        "sponsor_id",
        "sources",
    }
    if odd := set(document) - known:
        raise ProfileError(f"unknown: {', '.join(sorted(ascii(key) for key in odd))}")
    profile = make_profile(
        name=name,
        list_urls=_take_texts(document, "list_urls"),
        osl_urls=_take_texts(document, "osl_urls"),
        signature_key=_take_text(document, "signature_key"),
        entry_signature_key=_take_text(document, "entry_signature_key"),
        propagation_channel_id=_take_text(document, "propagation_channel_id"),
        sponsor_id=_take_text(document, "sponsor_id"),
        sources=_take_sources(document),
    )
    if profile.key_digest != document.get("signature_key_digest"):
        # A corrupt copy of the key would make every genuine list look like a forgery.
        raise ProfileError("signature_key is not the key of signature_key_digest")
    return profile


def make_profile(
    *,
    name: str,
    list_urls: tuple[str, ...],
    osl_urls: tuple[str, ...],
    signature_key: str,
    entry_signature_key: str,
    propagation_channel_id: str,
    sponsor_id: str,
    sources: Mapping[str, str],
) -> Profile:
    """Check the values of a profile.

    Raises:
        ProfileError: one of them is malformed.
    """
    if NAME.fullmatch(name) is None or name == NONE:
        raise ProfileError("a name has up to 32 small letters, digits and hyphens")
    if len(list_urls) > MAX_URLS or len(osl_urls) > MAX_URLS:
        raise ProfileError("too many addresses")
    for url in list_urls:
        _check_address(url, schemes={"https"})
    for url in osl_urls:
        _check_address(url, schemes={"http", "https"})
    try:
        read_key(signature_key)
    except KeyFormError as error:
        raise ProfileError(f"signature_key: {error}") from error
    if entry_signature_key and len(_decode(entry_signature_key, "entry_signature_key")) != _ED25519_BYTES:
        raise ProfileError("entry_signature_key is malformed")
    for key, value in {"propagation_channel_id": propagation_channel_id, "sponsor_id": sponsor_id}.items():
        if _ID.fullmatch(value) is None:
            raise ProfileError(f"{key} is malformed")
    return Profile(
        name=name,
        list_urls=tuple(ListUrl(url=url, verify_tls=index == 0) for index, url in enumerate(list_urls)),
        osl_urls=osl_urls,
        signature_key=signature_key,
        entry_signature_key=entry_signature_key,
        propagation_channel_id=propagation_channel_id,
        sponsor_id=sponsor_id,
        sources=MappingProxyType(dict(sources)),
    )


def _check_address(url: str, *, schemes: set[str]) -> None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  it raises for a malformed one
    except ValueError as error:
        raise ProfileError("an address is malformed") from error
    if not _ADDRESS.fullmatch(url) or parts.scheme not in schemes or not parts.hostname or "@" in parts.netloc:
        raise ProfileError("an address is malformed")


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProfileError(f"{name} is not base64") from error


def _take_text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise ProfileError(f"{name} is missing or no text")
    return value


def _take_texts(document: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = document.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ProfileError(f"{name} is missing or no list of texts")
    return tuple(value)


def _take_sources(document: Mapping[str, object]) -> Mapping[str, str]:
    value = document.get("sources", {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ProfileError("sources is no table of texts")
    return value
