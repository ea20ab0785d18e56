# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a checkout with the public network's addresses and keys, for the laboratory's own in their place."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.core.manifest import compute_blob_id

PROFILE: Final = "src/psiphon_vpn/servers/psiphon.toml"
MANIFEST: Final = "src/psiphon_vpn/core/manifest.toml"
_REPOSITORY, _COMMIT, _PATH = "laboratory/cores", "1" * 40, "linux/core"
CORE_PATH: Final = f"{_REPOSITORY}/{_COMMIT}/{_PATH}"
"""The core's path on its host."""


def render_manifest(core: bytes, *, host: str) -> str:
    """A manifest that pins one core for x86_64, as the public one does: by git's name for its content.

    Args:
        core: the core's content.
        host: name of the host where it can be downloaded.
    """
    return (
        f'repository = "{_REPOSITORY}"\n'
        f'url = "https://{host}/{{repository}}/{{commit}}/{{path}}"\n'
        "[[core]]\n"
        "order = 1\n"
        'architecture = "x86_64"\n'
        'revision = "1111111111"\n'
        f'commit = "{_COMMIT}"\n'
        f'path = "{_PATH}"\n'
        f'blob = "{compute_blob_id([core], len(core))}"\n'
    )
