# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Brings a machine of the laboratory its list of servers, as `install`, `setup --bundle` and `servers refresh` do.

`python -m psiphon_lab.service_adapter.bring_list`, as root on the machine's host: by download, while nothing is locked;
from a bundle; through the open tunnel. The list goes into a directory of the laboratory's, not into the system's own.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from psiphon_vpn import client
from psiphon_vpn.cli.provisions import Missing, Provisions, download
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.servers.bundle import make_bundle, read_bundle_file
from psiphon_vpn.servers.isolated import read_signed_list
from psiphon_vpn.servers.profile import load_profile
from psiphon_vpn.servers.refresh import refresh
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.system.layout import Layout


def write_profile(root: Path, name: str, text: str) -> None:
    """Write a profile as root keeps it. root: in the place of the system's /."""
    path = Layout(root=root).profiles_dir / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def find_lists(root: Path) -> Path:
    """Where the lists are that were brought; for the daemon."""
    return Layout(root=root).servers_dir


def write_bundle(path: Path, server_list: bytes) -> None:
    """Write a bundle with a signed list, as `psiphon-vpn bundle` does on a friend's computer."""
    path.write_bytes(make_bundle(core=None, server_list=server_list))


def bring(root: Path, name: str, *, authority: Path, bundle: Path | None) -> None:
    """Bring the list and put it in use.

    Args:
        root: in the place of the system's /.
        name: of the profile.
        authority: the certificate that the list's host is checked by.
        bundle: the file to take it from; None: a download.

    Raises:
        UserError: it is refused, or does not come.
    """
    layout = Layout(root=root)
    provisions = Provisions(profile=load_profile(name, layout))
    if bundle is None:
        tls = ssl.create_default_context(cafile=str(authority))
        with download(layout, provisions, Missing(core=False, server_list=True), tls=tls) as gathered:
            gathered.install(layout)
        return
    server_list = read_bundle_file(bundle).server_list
    assert server_list is not None
    assert provisions.profile is not None
    read_signed_list(server_list, provisions.profile)
    replace(provisions, server_list=server_list, source="a bundle").install(layout)


def refresh_through(root: Path, name: str, *, runtime_dir: Path) -> None:
    """Fetch the list through the open tunnel, and put it in use.

    Raises:
        UserError: it does not come, or is refused.
    """
    layout = Layout(root=root)
    status = client.request_status(runtime_dir)
    refresh(ServerStore(layout), load_profile(name, layout), status, only_if_due=False, now=datetime.now(UTC))


def main() -> int:
    """Command line entry; the exit code."""
    parser = argparse.ArgumentParser(prog="bring_list", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--authority", type=Path, required=True)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--through", type=Path, help=_("runtime directory of the daemon whose tunnel is the way"))
    options = parser.parse_args()
    try:
        if options.through is not None:
            refresh_through(options.root, options.profile, runtime_dir=options.through)
            return 0
        bring(options.root, options.profile, authority=options.authority, bundle=options.bundle)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
