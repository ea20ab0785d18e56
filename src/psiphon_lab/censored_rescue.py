# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A censor that blocks all known servers, and then the rescue too, in each way that it has.

The list's host then has a newer list with one more server. So either a page comes through that server, or the service
must say truthfully that none answers.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

from psiphon_lab import addresses as plan
from psiphon_lab.censored import Censored
from psiphon_lab.list_host import LIST_URL
from psiphon_lab.machine import Machine
from psiphon_lab.namespace import LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.provider_censor import (
    AfterBytes,
    ByAddress,
    ByPort,
    ByProtocol,
    ByReset,
    ByServerName,
    Censor,
    PoisonedNames,
    Throttle,
)

NETWORK = "lab"
KNOWN, NEW = ("NL", "DE"), "SE"
LIE = "192.0.2.99"
_HOSTS = (plan.LIST_HOST4, plan.LIST_HOST6)
ASKED = "rescue: a host of the server list"
"""The log line of the daemon for each host that a rescue asked, whatever the result."""


@dataclass(frozen=True, kw_only=True)
class RescueCensor:
    """censors: what is imposed besides the servers' addresses. survived: whether the rescue must get past it."""

    censors: tuple[Censor, ...]
    survived: bool


RESCUE_CENSORS = {
    "nothing else": RescueCensor(censors=(), survived=True),
    "the list's host by poisoned names": RescueCensor(censors=(PoisonedNames((plan.LIST_NAME,), LIE),), survived=True),
    "the list's host by its name in TLS": RescueCensor(censors=(ByServerName((plan.LIST_NAME,)),), survived=False),
    "the list's host by its address": RescueCensor(censors=(ByAddress(_HOSTS),), survived=False),
    "the list's host by resets": RescueCensor(censors=(ByReset(_HOSTS),), survived=False),
    "all ports but 80 and 443": RescueCensor(censors=(ByPort((80, 443)),), survived=True),
    "what is no TLS or HTTP": RescueCensor(censors=(ByProtocol(),), survived=True),
    "what a connection carries after 40 kB": RescueCensor(censors=(AfterBytes(40_000),), survived=True),
    "the list's host by throttling": RescueCensor(censors=(Throttle(_HOSTS, 20_000),), survived=True),
}
"""Cases by what is blocked besides all known servers."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a censored rescue.

    Attributes:
        region: of the server through which a page came; None if none came.
        page: seconds until the page.
        reason: code of the reason in the status before that; None if it only said that it connects.
        sentence: the text of that reason.
        reason_after: seconds until the status gave it.
    """

    region: str | None
    page: float
    reason: str | None
    sentence: str
    reason_after: float


@contextlib.contextmanager
def open_rescued(censored: Censored, *, program: list[str] | None = None) -> Iterator[Machine]:
    """The service, open, with a list of the known servers and hints of the list's host; program: as the daemon."""
    internet = censored.internet
    authority = internet.list_host.authority.certificate
    with Machine(censored.world, core=censored.plain_core, entry=lambda: internet.entry) as machine:
        machine.trust_authority(authority)
        machine.trust_network(NETWORK, internet.list_host.signer.render_profile(LIST_URL))
        internet.publish(*KNOWN)
        machine.bring_list(NETWORK, authority=authority)
        internet.publish(*KNOWN, NEW)
        machine.boot_lock()
        machine.hold_guard()
        machine.program = program or machine.program
        yield machine


def forget(machine: Machine) -> None:
    """Restart the service with only the known servers, and wait until it is open and has hints."""
    machine.stop_daemon()
    (machine.state_dir / "fetched-list").unlink(missing_ok=True)
    (machine.state_dir / "list-hints.json").unlink(missing_ok=True)
    shutil.rmtree(machine.state_dir / "core", ignore_errors=True)
    machine.start_daemon()
    machine.wait_state("OPEN")
    hints = machine.state_dir / "list-hints.json"
    machine.wait_for(lambda: hints.exists() and all(host in hints.read_text() for host in _HOSTS), "the hints")


def measure_rescue(censored: Censored, machine: Machine, censors: tuple[Censor, ...], *, seconds: float) -> Outcome:
    """Block all known servers, and more; returns the result: a page, or a failed rescue and a reason.

    Args:
        censored: a world in which nothing is censored yet.
        machine: just after `forget`.
        censors: what is imposed in addition.
        seconds: the time limit.
    """
    earlier = machine.read_log().count(ASKED)
    censored.censor.impose(ByAddress(censored.list_addresses(*KNOWN)), *censors)
    begin = time.monotonic()
    machine.command("restart")
    reason, sentence, reason_after = None, "", 0.0
    while (now := time.monotonic() - begin) < seconds:
        status = machine.read_status() or {}
        if reason is None and status.get("reason_code") not in {None, "connecting", "restarting", "starting"}:
            reason, sentence, reason_after = status["reason_code"], status["reason"], now
            if reason in {"tunnel_up", "verified", "new_list"}:
                reason = None
        region = censored.internet.find_region(fetch_page(censored.world.client))
        if region is not None:
            page = time.monotonic() - begin
            return Outcome(region=region, page=page, reason=reason, sentence=sentence, reason_after=reason_after)
        if reason is not None and machine.read_log().count(ASKED) > earlier + 1:
            return Outcome(region=None, page=0.0, reason=reason, sentence=sentence, reason_after=reason_after)
    raise LabError(f"neither a page nor a failed rescue within {seconds:g} s\n{machine.read_log()[-3000:]}")
