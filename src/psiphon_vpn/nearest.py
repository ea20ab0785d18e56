# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the right word for a wrong one."""

import difflib
from collections.abc import Iterable


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to a wrong one; None if none is similar. Case, "_" and "-" do not matter."""

    def fold(text: str) -> str:
        return text.casefold().replace("_", "").replace("-", "")

    folded = {fold(key): key for key in known}
    found = difflib.get_close_matches(fold(name[:60]), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None
