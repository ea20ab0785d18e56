# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An nft as on a smaller kernel: text that needs a missing part is refused as a whole."""

from __future__ import annotations

import shlex

from psiphon_lab.world import World

# What a kernel without a part of nf_tables answers to the whole transaction. The real one does everything else.
_WRAPPER = """#!/bin/sh
file=""; before=""
for word in "$@"; do [ "$before" = "-f" ] && file="$word"; before="$word"; done
[ -n "$file" ] || exec /usr/sbin/nft "$@"
[ "$file" != - ] || file=/dev/stdin
text=$(mktemp) && cat "$file" >"$text"
if grep -qE {pattern} "$text"; then
    rm "$text"; echo "/dev/stdin:1:1-1: Error: Could not process rule: No such file or directory" >&2; exit 1
fi
exec 3<"$text"; rm "$text"
[ "$file" = /dev/stdin ] || exec /usr/sbin/nft "$@"
exec /usr/sbin/nft "$@" <&3
"""


def put_limited_nft(world: World, pattern: str) -> None:
    """Make every nft on the client refuse text that matches an extended regular expression."""
    directory = world.directory / "limited"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    wrapper = directory / "nft"
    wrapper.write_text(_WRAPPER.format(pattern=shlex.quote(pattern)))
    wrapper.chmod(0o755)
    # The first directory of the fixed PATH (run.py), for this host alone: it has a mount namespace of its own.
    world.client.run(["mount", "--bind", directory, "/usr/local/sbin"])
