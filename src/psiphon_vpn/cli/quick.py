# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers the quick commands (`quick_options`) without click, which costs more than all of their work.

It takes a command line only if every word of it is plain. Everything else, help and mistakes included, is click's,
which has the same commands and options from the same values.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from psiphon_vpn import PROGRAM, __version__
from psiphon_vpn.cli.failures import guard
from psiphon_vpn.cli.quick_options import DEBUG, DEFAULT_RUNTIME_DIR, QUICK, RUNTIME_DIR, START, STATUS, VERSION
from psiphon_vpn.terminal import echo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from psiphon_vpn.cli.quick_options import Option, QuickCommand
    from psiphon_vpn.cli.view import Prepare

COMPLETION: Final = "_PSIPHON_VPN_COMPLETE"
"""Variable by which a shell asks click for completions instead of the command."""
_MAX_DIGITS: Final = 9
_PREPARING: Final = (STATUS, START)
"""The commands that may read the kernel, and have to prepare it then."""


class Words:
    """A command line that was understood.

    Attributes:
        command: None for `--version`.
        runtime_dir: the daemon's.
        debug: whether failures show where they came from.
        parameters: the command's own, by name.
    """

    def __init__(self, *, runtime_dir: str, debug: bool) -> None:
        self.command: QuickCommand | None = None
        self.runtime_dir = runtime_dir
        self.debug = debug
        self.parameters: dict[str, Any] = {}


def parse(argv: Sequence[str]) -> Words | None:
    """Understand a command line, without the program's name; None if it is click's."""
    if list(argv) == [VERSION]:
        return Words(runtime_dir=DEFAULT_RUNTIME_DIR, debug=False)
    rest = list(reversed(argv))
    words = Words(runtime_dir=DEFAULT_RUNTIME_DIR, debug=False)
    while rest and rest[-1].startswith("-"):
        word = rest.pop()
        if word == DEBUG:
            words.debug = True
            continue
        flag, equals, value = word.partition("=")
        if flag != RUNTIME_DIR or not (equals or rest):
            return None
        words.runtime_dir = value if equals else rest.pop()
        if not _is_plain_directory(words.runtime_dir):
            return None
    name = rest.pop() if rest else ""
    words.command = next((command for command in QUICK if command.name == name), None)
    if words.command is None or not _read_parameters(words.command, rest, words.parameters):
        return None
    return words


def _is_plain_directory(value: str) -> bool:
    """Whether click would take it as it is; it refuses a file."""
    return value.isprintable() and not value.startswith("-") and value != "" and _is_no_file(value)


def _is_no_file(value: str) -> bool:
    return os.path.isdir(value) or not os.path.lexists(value)


def _read_parameters(command: QuickCommand, rest: list[str], found: dict[str, Any]) -> bool:
    options = {option.flag: option for option in command.options}
    found.update({option.name: option.default for option in command.options})
    while rest:
        word = rest.pop()
        if word in command.words and "word" not in found:
            found["word"] = word
            continue
        flag, equals, value = word.partition("=")
        option = options.get(flag)
        if option is None:
            return False
        if option.low is None:
            if equals:
                return False
            found[option.name] = True
            continue
        number = _read_number(option, value if equals else rest.pop() if rest else "")
        if number is None:
            return False
        found[option.name] = number
    return not command.words or "word" in found


def _read_number(option: Option, text: str) -> float | None:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        return None
    assert option.low is not None
    assert option.high is not None
    return float(text) if option.low <= int(text) <= option.high else None


def run_quick(argv: Sequence[str], *, prepare: Prepare | None = None) -> int | None:
    """Answer a quick command.

    Args:
        argv: without the program's name.
        prepare: called before nft may run.

    Returns:
        Its exit code; None if the command line is click's, and nothing was done.
    """
    words = None if COMPLETION in os.environ else parse(argv)
    if words is None:
        return None
    if words.command is None:
        return guard(lambda: echo(f"{PROGRAM}, version {__version__}"), debug=False)
    from psiphon_vpn.cli.quick_actions import ACTIONS

    action = ACTIONS[words.command.name]
    parameters = {**words.parameters, **({"prepare": prepare} if words.command in _PREPARING else {})}
    return guard(lambda: action(words.runtime_dir, **parameters), debug=words.debug)
