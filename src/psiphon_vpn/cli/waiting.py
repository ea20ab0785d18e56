# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting until the tunnel is open, or until it is clear that it will not open by itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from psiphon_vpn import client
from psiphon_vpn.cli import view
from psiphon_vpn.client import Status, clean_text
from psiphon_vpn.countries import name_region
from psiphon_vpn.errors import EXIT_FAILURE, EXIT_TRY_LATER, DaemonDownError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.terminal import echo
from psiphon_vpn.wrapping import fit

LASTING_SECONDS: Final = 5.0
"""A reason that needs a person has to stay so long: a first report of the tunnel program may be out of date."""
POLL_SECONDS: Final = 1.0
SET_UP_SECONDS: Final = 30.0
"""How long `install` and `setup` wait for the tunnel at most."""


def wait_until_open(runtime_dir: Path, seconds: float) -> int:
    """Wait, and show each reason once.

    Args:
        runtime_dir: the daemon's runtime directory.
        seconds: at most.

    Returns:
        0 when open, 1 for a reason that does not go away by itself, 75 after `seconds`.

    Raises:
        DaemonDownError: the daemon ended.
    """
    statuses = client.watch_status(runtime_dir, refresh=POLL_SECONDS)
    status, code = follow(statuses, seconds, clock=time.monotonic, tell=lambda text: echo(fit(text, sys.stdout)))
    echo(view.render_text(status))
    if code == EXIT_TRY_LATER:
        text = _("There is no tunnel after {seconds:g} seconds. The service goes on; see: psiphon-vpn status --watch")
        echo(fit(text.format(seconds=seconds), sys.stderr), err=True)
    return code


def follow(
    statuses: Iterable[Status], seconds: float, *, clock: Callable[[], float], tell: Callable[[str], object]
) -> tuple[Status, int]:
    """Follow statuses to the first that ends the waiting.

    Args:
        statuses: one now, and further ones at least every second.
        seconds: how long at most.
        clock: seconds on a clock that only goes forward.
        tell: takes each new reason.

    Returns:
        The last status, and the exit code.
    """
    begin = clock()
    lasting: tuple[object, float] | None = None
    told: object = None
    status: Status = {}
    for status in statuses:
        now, reason = clock(), status.get("reason_code")
        if status.get("state") == "OPEN":
            return status, 0
        if status.get("state") == "FAILED":
            return status, EXIT_FAILURE
        if reason != told:
            told = reason
            tell(clean_text(status.get("reason")))
        if not status.get("lasting"):
            lasting = None
        elif lasting is None or lasting[0] != reason:
            lasting = (reason, now)
        elif now - lasting[1] >= LASTING_SECONDS:
            return status, EXIT_FAILURE
        if now - begin >= seconds:
            break
    return status, EXIT_TRY_LATER


def describe_end_of_set_up(
    watch: Callable[[], Iterator[Status]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    seconds: float = SET_UP_SECONDS,
) -> str:
    """Wait for the first tunnel, and say in a sentence or two how it went.

    Never raises for what the service does or does not do: the set-up is done, whatever comes of its first connection.

    Args:
        watch: begins to follow the daemon's statuses; it may not run yet, or end.
        clock: seconds on a clock that only goes forward.
        sleep: waits so many seconds.
        seconds: how long at most.

    Returns:
        For the user: connected and where, or why not and the next step.
    """
    begin, failure = clock(), ""
    while (left := seconds - (clock() - begin)) > 0:
        try:
            status, code = follow(watch(), left, clock=clock, tell=lambda _text: None)
        except DaemonDownError as error:
            # systemd has been asked to start it, or to start it again.
            failure = str(error)
            sleep(POLL_SECONDS)
        except UserError as error:
            return str(error)
        else:
            return describe_result(status, code)
    return failure


def describe_result(status: Status, code: int) -> str:
    """The sentence for the last status that `follow` has seen, and its exit code."""
    if code == 0:
        if not (region := clean_text(status.get("region") or "")):
            return _("Connected.")
        return _("Connected: you appear on the internet in {region} ({name}).").format(
            region=region, name=name_region(region)
        )
    step = clean_text(status.get("next_step") or "")
    if not step:
        step = _("The service goes on by itself; to see how: psiphon-vpn status --watch")
    text = _("Not connected: {reason}. {step}") if code == EXIT_FAILURE else _("Not connected yet: {reason}. {step}")
    return text.format(reason=clean_text(status.get("reason") or _("it is starting")), step=step)
