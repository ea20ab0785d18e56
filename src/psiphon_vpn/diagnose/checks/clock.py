# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The clock: certificates and the tunnel's handshake need the right time; while locked no time server is reachable."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from psiphon_vpn.core.record import RecordError, parse_record
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip
from psiphon_vpn.i18n import _

SET: Final = mark(
    "Set it by hand, with the right time: sudo date --set '2026-01-31 12:00 UTC'. "
    "No time server is reached while locked."
)
WRITTEN: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""This program is younger than any earlier time."""
MAX_SKEW_SECONDS: Final = 120.0
RTC: Final = Path("/sys/class/rtc/rtc0/since_epoch")


@check("clock.past", mark("The clock is not behind"), SET)
def past(facts: Facts) -> Outcome:
    """Is it later than known past events?"""
    now = facts.system.read_time()
    known = {_("this program was written"): WRITTEN.timestamp()}
    installed = _read_installed_at(facts)
    if installed is not None:
        known[_("the tunnel program was installed")] = installed
    for what, moment in known.items():
        if now < moment - MAX_SKEW_SECONDS:
            return fail(_("it is earlier than when {what}").format(what=what))
    return ok(datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"))


def _read_installed_at(facts: Facts) -> float | None:
    text = facts.find_text(facts.layout.core_record)
    try:
        return None if text is None else datetime.fromisoformat(parse_record(text.encode()).installed_at).timestamp()
    except RecordError:
        return None


@check("clock.hardware", mark("The clock agrees with the hardware clock"), SET)
def hardware(facts: Facts) -> Outcome:
    """The hardware clock, as the kernel reads it. It may be in local time: whole quarters of an hour do not count."""
    text = facts.find_text(RTC)
    if text is None:
        raise Skip(_("there is no hardware clock"))
    difference = abs(int(text) - facts.system.read_time())
    skew = min(difference % 900, 900 - difference % 900) if difference < 15 * 3600 else difference
    if skew > MAX_SKEW_SECONDS:
        return warn(_("they differ by {seconds:.0f} s").format(seconds=difference))
    return ok(_("they agree"))


@check(
    "clock.synchronised",
    mark("The clock is being set by time servers"),
    mark("Nothing to do while the time is right. systemd-timesyncd works through the tunnel once it is open."),
)
def synchronised(facts: Facts) -> Outcome:
    """The answer of timedatectl."""
    facts.units.need_systemd()
    answer = facts.system.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if not answer.good:
        raise Skip(_("timedatectl does not answer"))
    return ok(_("yes")) if answer.out.strip() == "yes" else warn(_("not since the machine started"))


CHECKS: Final = (past, hardware, synchronised)
