"""What the daemon is made of that runs beside the state machine, and what the failure of each leads to."""

import enum
from typing import Final


class Part(enum.StrEnum):
    """Every part, by the name that log and status give it."""

    EVENTS = "handling of events"
    SETTINGS = "reading of the configuration"
    VERIFICATION = "verification"
    LEASE = "keeping of the lease"
    CORE_NOTICES = "reading of the core's notices"
    LINKS = "watching of links"
    ROUTES = "watching of routes"
    RULES = "watching of rules"
    TRAFFIC = "watching of traffic control"
    NEWS = "reading of the kernel's news"
    TIMERS = "timers"
    CLOCK = "watching of the clock"
    WAKING = "beginning anew after a sleep"
    REHEARSAL = "preparation of the opening"
    TELLING = "telling of changes"
    BRIDGES = "watching of bridges"
    WATCHDOG = "word to the service manager"
    TIDYING = "tidying of memory"
    LOOP = "event loop"


VERIFIED_AGAIN: Final = frozenset({Part.VERIFICATION, Part.LEASE})
"""Their failure says nothing about core and network: closed, and verified again."""
ONLY_TOLD: Final = frozenset({Part.REHEARSAL, Part.TELLING, Part.WATCHDOG, Part.TIDYING, Part.TRAFFIC})
"""Nothing that is open rests on them: their failure is logged. Of all others' it is closed and begun anew."""
