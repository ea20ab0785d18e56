# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The quick commands with their options, as values: `commands` makes click's commands of them, `quick` parses them."""

from __future__ import annotations

from collections.abc import Callable

from psiphon_vpn.i18n import _

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Text = Callable[[], str]
    """A text for users, translated when it is called for."""

RUNTIME_DIR: Final = "--runtime-dir"
DEFAULT_RUNTIME_DIR: Final = "/run/psiphon-vpn"
DEBUG: Final = "--debug"
VERSION: Final = "--version"


class Option:
    """One option of a quick command.

    Attributes:
        flag: as it is typed.
        name: of the parameter that it sets.
        text: help.
        low: least value of a number; None for a flag without a value.
        high: greatest value.
        default: of a number.
    """

    def __init__(
        self,
        flag: str,
        name: str,
        text: Text,
        *,
        low: float | None = None,
        high: float | None = None,
        default: float | None = None,
    ) -> None:
        self.flag = flag
        self.name = name
        self.text = text
        self.low = low
        self.high = high
        self.default: float | bool = False if default is None else default


class QuickCommand:
    """One command that is answered without click.

    Attributes:
        name: as it is typed.
        text: help.
        short: help in the list of commands; None if it is the first sentence of the help.
        options: its options.
        words: the words one of which it takes as its argument, by the name `word`; empty if it takes none.
        hidden: not for people.
    """

    def __init__(
        self,
        name: str,
        text: Text,
        *,
        short: Text | None = None,
        options: tuple[Option, ...] = (),
        words: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.text = text
        self.short = short
        self.options = options
        self.words = words
        self.hidden = hidden


STATUS: Final = QuickCommand(
    "status",
    lambda: _("Say whether this machine is locked and connected, and why."),
    options=(
        Option("--json", "as_json", lambda: _("Print one JSON object for programs.")),
        Option("--watch", "watch", lambda: _("Stay and show every change; Ctrl-C ends it.")),
    ),
)
START: Final = QuickCommand(
    "start",
    lambda: _("Lock this machine if it is not, start the service if it does not run, and connect."),
    short=lambda: _("Lock this machine if it is not, and connect."),
    options=(
        Option(
            "--yes-cut-remote-sessions",
            "cut_remote",
            lambda: _("Agree that connections from outside end, if this machine is open now."),
        ),
        Option(
            "--wait",
            "wait",
            lambda: _(
                "Wait until the tunnel is open. Ends with 0 then, with 1 if it does not open without your help, and "
                "with 75 after the time of --timeout."
            ),
        ),
        Option(
            "--timeout",
            "seconds",
            lambda: _("How many seconds --wait lasts at most."),
            low=1,
            high=86400,
            default=120,
        ),
    ),
)
STOP: Final = QuickCommand("stop", lambda: _("Disconnect; the machine stays locked until the next start."))
RESTART: Final = QuickCommand("restart", lambda: _("Disconnect and connect again, locked meanwhile."))
RELOAD: Final = QuickCommand("reload", lambda: _("Read the configuration again, locked meanwhile."))
SYSTEM_SLEEP: Final = QuickCommand(
    "system-sleep",
    lambda: _(
        'Announce a sleep or its end, for psiphon-sleep.service. After "begin" returns, the kernel holds no lease.'
    ),
    words=("begin", "end"),
    hidden=True,
)

QUICK: Final = (STATUS, START, SYSTEM_SLEEP, STOP, RESTART, RELOAD)
