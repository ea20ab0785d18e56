"""The event sources: commits to the ruleset, and changes of links, addresses, routes and rules."""

import logging
import socket
from collections.abc import Callable
from typing import TypeVar

from psiphon_vpn.linux.monitor import NetworkChange, parse_changes
from psiphon_vpn.linux.nfnetlink import Generation, parse_generations
from psiphon_vpn.service.parts import Part
from psiphon_vpn.tasks import Supervisor, call_when_readable

log = logging.getLogger(__name__)

T = TypeVar("T")

_READS_AT_ONCE = 32
_LARGEST = 1 << 16


def _watch(
    monitor: socket.socket,
    parse: Callable[[bytes], tuple[T, ...]],
    on_event: Callable[[T | None], None],
    what: str,
    tasks: Supervisor,
) -> None:
    def receive() -> None:
        # Bounded: the loop calls again while there is more.
        for _ in range(_READS_AT_ONCE):
            try:
                data = monitor.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: the kernel dropped messages; the socket goes on.
                log.warning("%s were missed: %s", what, error)
                on_event(None)
                return
            try:
                for event in parse(data):
                    on_event(event)
            except Exception:
                on_event(None)  # the rest of it was missed
                raise

    call_when_readable(monitor.fileno(), tasks.guard(Part.NEWS, receive))


def watch_generations(
    monitor: socket.socket, on_commit: Callable[[Generation | None], None], tasks: Supervisor
) -> None:
    """Call for every commit to the ruleset; with None when some were missed and all must be read again."""
    _watch(monitor, parse_generations, on_commit, "commits to the ruleset", tasks)


def watch_network(monitor: socket.socket, on_change: Callable[[NetworkChange | None], None], tasks: Supervisor) -> None:
    """Call for every change of the network; with None when some were missed and all must be looked at."""
    _watch(monitor, parse_changes, on_change, "changes of the network", tasks)
