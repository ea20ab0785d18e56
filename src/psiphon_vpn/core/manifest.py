# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The cores that this version knows, by content: manifest.toml beside this module.

A pinned core is fetched by commit, never by branch, and its content is checked: always against the git blob id (SHA-1
over "blob", the length and the bytes; git-hash-object(1)), and against size and SHA-256 once they are pinned.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.toml_lines import parse_toml

MANIFEST_PATH: Final = Path(__file__).with_name("manifest.toml")
MAX_CORE_SIZE: Final = 256 * 1024 * 1024
"""Bytes. The real core has about 30 MiB; a file larger than this cannot be one."""

SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_ID: Final = re.compile(r"[0-9a-f]{40}")
_REVISION: Final = re.compile(r"[0-9a-f]{7,40}")
_WORD: Final = re.compile(r"[A-Za-z0-9_]{1,32}")
_PATH: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9_.-]+")
_URL_FIELDS: Final = ("{repository}", "{commit}", "{path}")


class ManifestError(ValueError):
    """The manifest is invalid: a defect of the package, not of the user's machine."""


@dataclass(frozen=True, kw_only=True)
class PinnedCore:
    """One core, by content.

    Attributes:
        order: larger is newer; the only criterion for "older".
        architecture: as uname(2) names it.
        revision: revision of the core's source, as its maintainers name it.
        commit: commit of the distribution's repository, 40 hexadecimal digits.
        path: path of the file in that commit.
        blob: git blob id of the content.
        size: bytes; None until it is pinned.
        sha256: SHA-256 of the content; None until it is pinned.
    """

    order: int
    architecture: str
    revision: str
    commit: str
    path: str
    blob: str
    size: int | None = None
    sha256: str | None = None

    def matches(self, *, size: int, sha256: str, blob: str) -> bool:
        """Whether content with these properties is this core: all that is pinned must match."""
        return self.blob == blob and self.size in {None, size} and self.sha256 in {None, sha256}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All pinned cores, and their repository."""

    repository: str
    url: str
    cores: tuple[PinnedCore, ...]

    def newest(self, architecture: str) -> PinnedCore | None:
        """The core to install on this architecture; None if there is none."""
        mine = [core for core in self.cores if core.architecture == architecture]
        return max(mine, key=lambda core: core.order, default=None)

    def find(self, *, size: int, sha256: str, blob: str) -> PinnedCore | None:
        """The pinned core with this content."""
        return next((core for core in self.cores if core.matches(size=size, sha256=sha256, blob=blob)), None)

    def url_of(self, core: PinnedCore) -> str:
        """The address of a core: it contains the commit, so that its content never changes."""
        return self.url.format(repository=self.repository, commit=core.commit, path=core.path)


def compute_blob_id(content: Iterable[bytes], size: int) -> str:
    """The git blob id of content of a known size.

    Git identifies content by SHA-1. It is no defence against somebody who prepares two contents with the same id. So
    the SHA-256 is recorded too, and decides from the installation on.
    """
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in content:
        digest.update(chunk)
    return digest.hexdigest()


def parse_manifest(text: str) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: something is missing, unknown or malformed.
    """
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ManifestError(str(error)) from error
    if set(document) != {"repository", "url", "core"} or not isinstance(document["core"], list):
        raise ManifestError("a manifest has repository, url and a list of cores, and nothing else")
    url = document["url"]
    if not isinstance(url, str) or not _is_address(url):
        raise ManifestError("url must be https and have {repository}, {commit} and {path} once")
    cores = tuple(_parse_core(entry) for entry in document["core"])
    if len({(core.architecture, core.order) for core in cores}) != len(cores):
        raise ManifestError("two cores have the same order")
    return Manifest(repository=_take(document, "repository", _REPOSITORY), url=url, cores=cores)


def _is_address(url: str) -> bool:
    rest = url
    for word in _URL_FIELDS:
        if url.count(word) != 1:
            return False
        rest = rest.replace(word, "")
    return rest.startswith("https://") and not {"{", "}"} & set(rest)


def _take(entry: Mapping[str, object], name: str, form: re.Pattern[str]) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ManifestError(f"{name} is missing or malformed")
    return value


def _take_number(entry: Mapping[str, object], name: str, *, high: int) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= high:
        raise ManifestError(f"{name} is missing or out of range")
    return value


def _parse_core(entry: object) -> PinnedCore:
    if not isinstance(entry, dict) or not set(entry) <= set(PinnedCore.__dataclass_fields__):
        raise ManifestError("a core has an unknown field")
    core = PinnedCore(
        order=_take_number(entry, "order", high=2**31),
        architecture=_take(entry, "architecture", _WORD),
        revision=_take(entry, "revision", _REVISION),
        commit=_take(entry, "commit", _GIT_ID),
        path=_take(entry, "path", _PATH),
        blob=_take(entry, "blob", _GIT_ID),
        size=_take_number(entry, "size", high=MAX_CORE_SIZE) if "size" in entry else None,
        sha256=_take(entry, "sha256", SHA256) if "sha256" in entry else None,
    )
    if ".." in core.path.split("/"):
        raise ManifestError("path leads out of the repository")
    return core


def load_manifest(path: Path = MANIFEST_PATH) -> Manifest:
    """Read the manifest of this package; raises ManifestError, or OSError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError("it is not UTF-8") from error
    return parse_manifest(text)


def render_pinned(text: str, core: PinnedCore) -> str:
    """The text of a manifest with size and SHA-256 added to the entry of `core`; everything else is unchanged.

    Args:
        text: the manifest.
        core: a core with size and sha256; its entry is found by architecture and order.

    Raises:
        ManifestError: there is no such entry, or the result would be invalid.
    """
    parts = re.split(r"(?m)^(?=\[\[core\]\])", text)
    for index, part in enumerate(parts[1:], start=1):
        entry = parse_toml(part)["core"][0]  # type: ignore[index]
        if (entry["architecture"], entry["order"]) == (core.architecture, core.order):
            kept = re.sub(r"(?m)^(?:size|sha256) *=.*\n?", "", part).rstrip("\n")
            tail = "\n" if index == len(parts) - 1 else "\n\n"
            parts[index] = f'{kept}\nsize = {core.size}\nsha256 = "{core.sha256}"{tail}'
    result = "".join(parts)
    if core not in parse_manifest(result).cores:
        raise ManifestError("there is no such entry")
    return result
