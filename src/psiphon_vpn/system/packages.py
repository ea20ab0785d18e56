# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages for dpkg and rpm, made by nfpm from the payload: the same checkout gives the same bytes.

A package contains the files that do nothing by themselves (`payload`), and documents; its scriptlets (packaging/) call
commands of the program. What acts on the system comes with `setup` (`acting`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import click

from psiphon_vpn import __version__
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.run import run
from psiphon_vpn.system.interpreter import SYSTEM_PYTHON
from psiphon_vpn.system.package_documents import (
    CHANGE,
    DATE,
    LICENSE,
    MAINTAINER,
    NAME,
    RELEASE,
    collect_documents,
    collect_settings,
)
from psiphon_vpn.system.payload import CHECKOUT, collect_payload
from psiphon_vpn.system.payload_file import PayloadFile

FORMATS: Final = {"deb": f"{NAME}_{__version__}-{RELEASE}_all.deb", "rpm": f"{NAME}-{__version__}-{RELEASE}.noarch.rpm"}
"""nfpm's name of each format, and the name of the file."""
SCRIPTS: Final = ("preinstall", "postinstall", "preremove", "postremove")
DEPENDS: Final = {
    "deb": (
        "python3 (>= 3.11)",
        "nftables (>= 0.9.3)",
        "iproute2",
        "systemd (>= 245)",
        "ca-certificates",
        "openssl",
    ),
    "rpm": (
        "python3 >= 3.11",
        "nftables >= 0.9.3",
        "iproute",
        "util-linux",
        "systemd >= 245",
        "ca-certificates",
        "openssl",
    ),
}
_TIMEOUT_SECONDS: Final = 300
OTHERS_DIRECTORIES: Final = frozenset(
    "/ /usr /usr/bin /usr/sbin /usr/lib /usr/lib/systemd /usr/lib/systemd/system /usr/lib/systemd/network "
    "/usr/lib/sysusers.d /usr/lib/tmpfiles.d /usr/lib/sysctl.d /usr/lib/modules-load.d /usr/share /usr/share/man "
    "/usr/share/man/man5 /usr/share/man/man8 /usr/share/doc /usr/share/licenses /usr/share/lintian "
    "/usr/share/lintian/overrides /etc /etc/apt /etc/apt/apt.conf.d".split()
)
"""Directories of the system itself. All others are removed with the package, if nothing else is in them."""


def build_packages(commands: click.Group, output: Path) -> tuple[Path, ...]:
    """Build every package.

    Args:
        commands: the program's, of which man pages and completions are made.
        output: directory for them; created if necessary.

    Returns:
        The packages' paths.

    Raises:
        UserError: there is no checkout, or no nfpm.
        CommandError: nfpm failed.
    """
    payload = collect_payload(commands, python=SYSTEM_PYTHON)
    nfpm = _find_nfpm()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="psiphon-package-") as name:
        config, changelog = Path(name) / "nfpm.json", Path(name) / "changelog.json"
        changelog.write_text(json.dumps(_render_changelog()), encoding="utf-8")
        for kind, filename in FORMATS.items():
            files = (*payload, *collect_documents(CHECKOUT, kind))
            settings = collect_settings(kind)
            staging = Path(name) / kind
            staging.mkdir()
            for number, file in enumerate((*files, *settings)):
                # Files named by number: nfpm expands patterns and variables in names.
                (staging / str(number)).write_bytes(file.content)
            rendered = render_config(files, settings, staging, kind)
            if kind == "rpm":  # in its header; a .deb has a file of its own, in another form
                rendered["changelog"] = str(changelog)
            config.write_text(json.dumps(rendered), encoding="utf-8")
            argv = [nfpm, "package", "--config", str(config), "--packager", kind, "--target", str(output / filename)]
            run(argv, timeout=_TIMEOUT_SECONDS)
    return tuple(output / filename for filename in FORMATS.values())


def _find_nfpm() -> str:
    path = Path(sys.executable).with_name("nfpm")
    if not path.is_file():
        raise UserError(
            _("The packages cannot be built"),
            _("nfpm is missing"),
            _("Run the setup script with 'package' or 'test': they bring it."),
        )
    return str(path)


def _render_changelog() -> list[dict[str, Any]]:
    """The package's own changelog, which refers to the program's, as nfpm reads it (chglog)."""
    return [
        {
            "semver": f"{__version__}-{RELEASE}",
            "date": DATE.isoformat(),
            "packager": MAINTAINER,
            "changes": [{"note": CHANGE}],
        }
    ]


def render_config(
    payload: tuple[PayloadFile, ...], settings: tuple[PayloadFile, ...], staging: Path, kind: str
) -> dict[str, Any]:
    """The configuration of nfpm, as JSON, which is YAML.

    Args:
        payload: the files.
        settings: files that root may change, and whose changes the package manager keeps.
        staging: directory with each file under its number.
        kind: "deb" or "rpm".
    """
    mtime = DATE.isoformat()
    contents: list[dict[str, Any]] = [
        {"dst": str(path), "type": "dir", "file_info": _info(0o755, mtime)} for path in find_directories(payload)
    ]
    contents += [
        {"src": str(staging / str(number)), "dst": file.path, "file_info": _info(file.mode, mtime)}
        for number, file in enumerate(payload)
    ]
    contents += [
        {
            "src": str(staging / str(number)),
            "dst": file.path,
            "type": "config",
            "file_info": _info(file.mode, mtime),
        }
        for number, file in enumerate(settings, start=len(payload))
    ]
    return {
        "name": NAME,
        "arch": "all",
        "platform": "linux",
        "version": __version__,
        "release": RELEASE,
        "section": "net",
        "priority": "optional",
        "maintainer": MAINTAINER,
        "license": LICENSE,
        "description": "sends all traffic of a machine through Psiphon, and nothing past it\n"
        "Installing the package changes nothing about the network. The command\n"
        "'sudo psiphon-vpn setup' locks the machine: from then on nothing leaves it\n"
        "except through the tunnel, even when the service is stopped, broken or\n"
        "upgraded. Removing the package opens the network.",
        "disable_globbing": True,
        "mtime": mtime,
        "depends": list(DEPENDS[kind]),
        "contents": contents,
        "scripts": {name: str(CHECKOUT / "packaging" / f"{name}.sh") for name in SCRIPTS},
        "deb": {"compression": "xz"},
        "rpm": {"compression": "xz", "buildhost": "localhost", "group": "System Environment/Daemons"},
    }


def _info(mode: int, mtime: str) -> dict[str, Any]:
    return {"mode": mode, "owner": "root", "group": "root", "mtime": mtime}


def find_directories(payload: Iterable[PayloadFile]) -> list[PurePosixPath]:
    """The directories of the package, so that rpm removes them with it."""
    found = {parent for file in payload for parent in PurePosixPath(file.path).parents}
    return sorted(path for path in found if str(path) not in OTHERS_DIRECTORIES)
