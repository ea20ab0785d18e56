# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the daemon that run beside the state machine, and the consequence of each one's failure."""

import enum
from typing import Final


class Part(enum.StrEnum):
    """Every part, by its name in log and status."""

    EVENTS = "event handling"
    SETTINGS = "configuration reader"
    VERIFICATION = "verification"
    LEASE = "lease renewal"
    CORE_NOTICES = "reader of the core's notices"
    LINKS = "watch of links"
    ROUTES = "watch of routes"
    RULES = "watch of rules"
    TRAFFIC = "watch of traffic control"
    GUARDS = "watch of guards"
    ANNOUNCEMENTS = "reader of the kernel's announcements"
    TIMERS = "timers"
    CLOCK = "watch of the clock"
    WAKING = "reconnection after a sleep"
    RESCUE = "rescue"
    HINTS = "keeper of hints"
    REHEARSAL = "preparation of the opening"
    PUBLISHING = "publishing of changes"
    BRIDGES = "watch of bridges"
    WATCHDOG = "watchdog notification"
    TIDYING = "memory tidying"
    LOOP = "event loop"


VERIFIED_AGAIN: Final = frozenset({Part.VERIFICATION, Part.LEASE})
"""Their failure says nothing about core and network: close, and verify again."""
ONLY_LOGGED: Final = frozenset(
    {Part.REHEARSAL, Part.RESCUE, Part.HINTS, Part.PUBLISHING, Part.WATCHDOG, Part.TIDYING, Part.TRAFFIC, Part.GUARDS}
)
"""Being open does not depend on them: their failure is only logged. After all other failures the service locks."""
