# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What only packages contain: the licences of everything in them, the changelog, and words for apt and lintian.

The licences of the Python packages are those that they bring themselves, so that an updated one brings its own.
"""

from __future__ import annotations

import gzip
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final

from psiphon_vpn import __version__
from psiphon_vpn.system.dependencies import collect_dependencies, read_pins
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.payload_file import PayloadFile, make_file
from psiphon_vpn.system.resources import render_resource

NAME: Final = "psiphon-vpn"
RELEASE: Final = "1"
MAINTAINER: Final = "Psiphon Linux VPN Service <psiphon-vpn@project.invalid>"
"""There is no mail address yet; the name below .invalid exists nowhere (RFC 2606)."""
DATE: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Date of every file in a package, and of the package: the time of the build would differ from build to build."""
CHANGE: Final = "This version of the program; what changed in it is in changelog.gz."
AUTHORS: Final = "2026 The Psiphon Linux VPN Service authors"
LICENSE: Final = "GPL-2.0-or-later"
_DOCUMENTS: Final = Path("/usr/share/doc") / NAME
_COPYRIGHT: Final = re.compile(r"\bcopyright\b.*(\d{4}|\([Cc]\))|^\s*\([Cc]\) ?\d{4}", re.IGNORECASE)
_CLASSIFIER: Final = "License :: OSI Approved :: "


def collect_documents(checkout: Path, kind: str) -> tuple[PayloadFile, ...]:
    """The further files of a package.

    Args:
        checkout: the project's directory.
        kind: "deb" or "rpm".
    """
    copyright_text = render_copyright(checkout / "requirements.lock")
    found = [
        make_file(_DOCUMENTS / "copyright", copyright_text),
        # Compressed as Debian's policy wants it (12.7), without a time, so that the same text gives the same bytes.
        make_file(_DOCUMENTS / "changelog.gz", compress((checkout / "CHANGELOG.md").read_bytes())),
    ]
    if kind == "deb":
        found.append(make_file(_DOCUMENTS / "changelog.Debian.gz", compress(_render_debian_changelog().encode())))
        found.append(make_file(Path("/usr/share/lintian/overrides") / NAME, render_resource("lintian-overrides")))
    else:
        found.append(make_file(Path("/usr/share/licenses") / NAME / "LICENSE", (checkout / "LICENSE").read_bytes()))
    return tuple(found)


def collect_settings(kind: str) -> tuple[PayloadFile, ...]:
    """The files in /etc that the package manager keeps if root has changed them."""
    if kind != "deb":
        return ()
    # Removing the package opens the network: never as a by-product of another removal (apt.conf(5)).
    return (make_file(Path("/etc/apt/apt.conf.d/01autoremove-psiphon-vpn"), render_resource("apt.conf")),)


def _render_debian_changelog() -> str:
    """The package's own changelog (Debian's policy, 4.4), which refers to the program's."""
    return (
        f"{NAME} ({__version__}-{RELEASE}) unstable; urgency=medium\n\n  * {CHANGE}\n\n"
        f" -- {MAINTAINER}  {format_datetime(DATE)}\n"
    )


def compress(content: bytes) -> bytes:
    """Like "gzip -9n": no name, no time."""
    return gzip.compress(content, compresslevel=9, mtime=0)


def render_copyright(lock: Path) -> str:
    """The file `copyright` in the form of Debian (copyright-format 1.0): the project, and each Python package in it."""
    library = str(Layout().python_dir).lstrip("/")
    stanzas = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: Psiphon Linux VPN Service",
        f"Files: *\nCopyright: {AUTHORS}\nLicense: {LICENSE}\n"
        + _indent(
            "This program is free software; you can redistribute it and/or modify it under the terms of the GNU\n"
            "General Public License as published by the Free Software Foundation; either version 2 of the License,\n"
            "or (at your option) any later version.\n\n"
            "This program is distributed in the hope that it will be useful, but WITHOUT ANY WARRANTY; without even\n"
            "the implied warranty of MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE. See the GNU General\n"
            "Public License for more details.\n\n"
            "On Debian systems the text of version 2 is in /usr/share/common-licenses/GPL-2; in other packages of\n"
            f"this program it is in /usr/share/licenses/{NAME}/LICENSE."
        ),
    ]
    files = dict(collect_dependencies(lock))
    for name in sorted(read_pins(lock)):
        package = metadata.distribution(name)
        parts = {PurePosixPath(str(file)).parts[0] for file in package.files or () if str(file) in files}
        code = sorted(part for part in parts if not part.endswith(".dist-info"))
        texts = [
            content.decode("utf-8", "replace")
            for path, content in sorted(files.items())
            if path.startswith(tuple(f"{part}/" for part in parts - set(code))) and _is_license(path)
        ]
        where = "\n".join(f" {library}/{part}{'' if part.endswith('.py') else '/*'}" for part in code)
        stanzas.append(
            f"Files:\n{where}\nCopyright:\n{_indent(chr(10).join(_find_holders(texts, package)))}\n"
            f"License: {_name_license(package).replace(' ', '-')}-{name}\n{_indent(chr(10).join(texts).strip())}"
        )
    return "\n\n".join(stanzas) + "\n"


def _is_license(path: str) -> bool:
    return PurePosixPath(path).name.lower().startswith(("licen", "copying", "notice"))


def _find_holders(texts: list[str], package: metadata.Distribution) -> list[str]:
    found = [line.strip() for text in texts for line in text.splitlines() if _COPYRIGHT.search(line)]
    return list(dict.fromkeys(found)) or _read(package, "Author") or _read(package, "Author-email") or [package.name]


def _name_license(package: metadata.Distribution) -> str:
    """What the package says of itself."""
    for named in (*_read(package, "License-Expression"), *_read(package, "License")):
        if "\n" not in named and named != "UNKNOWN":
            return named
    classifiers = (text for text in _read(package, "Classifier") if text.startswith(_CLASSIFIER))
    return next((text.removeprefix(_CLASSIFIER) for text in classifiers), "other")


def _read(package: metadata.Distribution, name: str) -> list[str]:
    return package.metadata.get_all(name) or []


def _indent(text: str) -> str:
    return "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in text.splitlines())
