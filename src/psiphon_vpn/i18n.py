"""Translation of every string that users see; log messages stay English.

`_` looks the string up when it is called. So a module constant must never hold the result of `_`, or the language would
not follow the environment (`LANGUAGE`, `LC_ALL`, `LC_MESSAGES`, `LANG`; gettext(3)).
"""

import functools
import gettext
from pathlib import Path

DOMAIN = "psiphon-vpn"
LOCALE_DIR = Path(__file__).parent / "locale"


@functools.cache
def load_translations() -> gettext.NullTranslations:
    """Return the catalogue of the user's language, or one that returns every string as it is."""
    return gettext.translation(DOMAIN, localedir=LOCALE_DIR, fallback=True)


def _(message: str) -> str:
    """Translate a string shown to the user."""
    return load_translations().gettext(message)


def ngettext(singular: str, plural: str, n: int) -> str:
    """Translate a string that depends on a number."""
    return load_translations().ngettext(singular, plural, n)
