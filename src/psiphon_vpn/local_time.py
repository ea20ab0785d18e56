# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Times for people: in this machine's own time zone. Programs get UTC (ISO 8601)."""

from __future__ import annotations

from datetime import datetime

from psiphon_vpn.i18n import _


def _read(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def show_moment(text: str) -> str:
    """Date, time and time zone of a moment.

    Args:
        text: ISO 8601 with its offset. Anything else is returned as it is.
    """
    found = _read(text)
    return text if found is None else found.strftime("%Y-%m-%d %H:%M:%S %Z").rstrip()


def show_time(text: str) -> str:
    """The time of day of a moment, as `show_moment`."""
    found = _read(text)
    return text if found is None else found.strftime("%H:%M:%S")


def show_duration(seconds: int) -> str:
    """A duration in its two largest units."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return _("{days} d {hours} h").format(days=days, hours=hours % 24)
    if hours:
        return _("{hours} h {minutes} min").format(hours=hours, minutes=minutes % 60)
    if minutes:
        return _("{minutes} min {seconds} s").format(minutes=minutes, seconds=seconds % 60)
    return _("{seconds} s").format(seconds=seconds)
