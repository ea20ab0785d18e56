# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The entries of systemd's journal about the service, in plain words. Pure.

An entry is one JSON object of `journalctl --output=json` (systemd.journal-fields(7)). The daemon's own lines are known
here by their form; every other line is shown as it is, without what a terminal would obey.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psiphon_vpn.client import clean_text
from psiphon_vpn.errors import join_line
from psiphon_vpn.i18n import _
from psiphon_vpn.local_time import show_time
from psiphon_vpn.policy.model import State
from psiphon_vpn.service.reasons import Reason, explain
from psiphon_vpn.wrapping import wrap

MARGIN: Final = 10
_LOGGED: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]{1,80}: (?:\(\d+ lines left out\) )?(.*)", re.S)
_MOVE: Final = re.compile(r"[A-Z]{4,12} -> ([A-Z]{4,12}): ([a-z0-9_]{1,40}) (.*)", re.S)
_NEXT: Final = re.compile(r"next: (.{1,200}), at (\d{4}-\S{5,40})")
_ASKED: Final = re.compile(r"uid (\d{1,10}) requests: ([a-z-]{1,20})")
_SAID_AGAIN: Final = ("configuration: line ", "next: giving this attempt up")
"""Beginnings of lines that say no more than the one beside them."""


@dataclass(frozen=True)
class LogLine:
    """One entry for people.

    Attributes:
        at: when, in this machine's time zone; None if the entry does not say.
        text: what happened.
        step: what to do about it, if anything.
        bad: a warning or an error.
    """

    at: datetime | None
    text: str
    step: str | None = None
    bad: bool = False


def read_entry(line: str) -> LogLine | None:
    """Read an entry of the journal.

    Returns:
        The entry; None for what people need not see, and for what is no entry.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    message = _read_message(entry)
    logged = _LOGGED.fullmatch(message)
    level, said = (logged[1], logged[2]) if logged else ("", message)
    if not said or level == "DEBUG" or said.startswith(_SAID_AGAIN):
        return None
    at = _read_time(entry)
    if (move := _MOVE.fullmatch(said)) is not None and (found := _read_move(at, *move.groups())) is not None:
        return found
    if (following := _NEXT.fullmatch(said)) is not None:
        return LogLine(at, _("next: {what}, at {time}").format(what=following[1], time=show_time(following[2])))
    if (asked := _ASKED.fullmatch(said)) is not None:
        return LogLine(at, _("user number {uid} asked for: {command}").format(uid=asked[1], command=asked[2]))
    return LogLine(at, said, bad=level in {"WARNING", "ERROR", "CRITICAL"})


def _read_message(entry: Mapping[str, object]) -> str:
    message = entry.get("MESSAGE")
    if isinstance(message, list):
        # The journal gives bytes that are not UTF-8, or not printable, as numbers.
        numbers = [byte for byte in message if isinstance(byte, int) and 0 <= byte < 256]
        message = bytes(numbers).decode("utf-8", "replace")
    return join_line(clean_text(message)) if isinstance(message, str) else ""


def _read_time(entry: Mapping[str, object]) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(str(entry.get("__REALTIME_TIMESTAMP"))) / 1e6).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def _read_move(at: datetime | None, state: str, code: str, rest: str) -> LogLine | None:
    states = {
        State.LOCKED: _("locked"),
        State.CONNECTING: _("connecting"),
        State.VERIFYING: _("checking"),
        State.OPEN: _("connected"),
        State.FAILED: _("locked, and it needs your help"),
    }
    try:
        name, reason = states[State(state)], Reason(code)
    except ValueError:
        return None  # of another version of this program
    explanation = explain(reason)
    # The line has the reason's detail, and then its sentence as the daemon writes it.
    detail = rest.removesuffix(explanation.sentence).removesuffix(": ").strip() if rest else ""
    if detail == rest.strip():
        return LogLine(at, f"{name}: {rest.strip()}", explanation.next_step, bad=state == State.FAILED)
    told = explain(reason, detail)
    return LogLine(at, f"{name}: {told.sentence}", told.next_step, bad=state == State.FAILED)


class LogWriter:
    """Writes entries one after the other: the date when it changes, and each next step once in a row.

    Args:
        width: columns.
    """

    def __init__(self, width: int) -> None:
        self._width = max(40, width)
        self._date = ""
        self._step: str | None = None

    def write(self, line: LogLine) -> Iterator[str]:
        """The lines on the screen for an entry."""
        date = line.at.strftime("%Y-%m-%d %Z").strip() if line.at else self._date
        if date != self._date:
            self._date = date
            yield date
        time = line.at.strftime("%H:%M:%S") if line.at else ""
        text = _("warning: {text}").format(text=line.text) if line.bad else line.text
        yield from wrap(text, self._width, first=time.ljust(MARGIN), rest=" " * MARGIN)
        if line.step and line.step != self._step:
            yield from wrap(_("do: {step}").format(step=line.step), self._width, first=" " * MARGIN, rest=" " * MARGIN)
        self._step = line.step or self._step
