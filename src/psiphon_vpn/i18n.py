# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Translation of every string that users see; log messages stay English.

`_` looks the string up when it is called. So a module constant must never hold the result of `_`, or the language would
not follow the environment (`LANGUAGE`, `LC_ALL`, `LC_MESSAGES`, `LANG`; gettext(3)).
"""

from __future__ import annotations

import functools
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import gettext

DOMAIN = "psiphon-vpn"
LOCALE_DIR = os.path.join(os.path.dirname(__file__), "locale")


@functools.cache
def load_translations() -> gettext.NullTranslations | None:
    """The catalogue of the user's language; None if every string stays as it is.

    Most commands end without a catalogue: gettext is only imported where one can be found.
    """
    if not find_language() or not os.path.isdir(LOCALE_DIR):
        return None
    import gettext

    return gettext.translation(DOMAIN, localedir=LOCALE_DIR, fallback=True)


def find_language() -> str:
    """The user's languages in the form of LANGUAGE, for a process with another environment; empty for none."""
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return value
    return ""


def _(message: str) -> str:
    """Translate a string shown to the user."""
    found = load_translations()
    return message if found is None else found.gettext(message)


def ngettext(singular: str, plural: str, n: int) -> str:
    """Translate a string that depends on a number."""
    found = load_translations()
    if found is None:
        return singular if n == 1 else plural
    return found.ngettext(singular, plural, n)
