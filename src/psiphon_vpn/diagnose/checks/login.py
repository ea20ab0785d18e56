# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the guards accept the programs that log in to a network."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.i18n import _
from psiphon_vpn.system.logins import find_refused_logins


@check(
    "routes.login",
    mark("The programs that log in to a network run as root"),
    mark(
        "Run it as root, or no network with a login on a cable (802.1X) lets this machine in: "
        "sudo systemctl edit wpa_supplicant, add the lines [Service] and User=root, then restart it."
    ),
)
def login(facts: Facts) -> Outcome:
    """The guards accept EAPOL only from root's programs; they never see what a wireless card's own stack sends."""
    found = find_refused_logins(facts.system)
    shown = ", ".join(f"{each.name} ({each.pid}), {each.uid}" for each in found)
    if any(each.wired for each in found):
        return fail(_("cannot log in on a cable (process, user): {names}").format(names=shown))
    if found:
        return warn(_("cannot log in on a cable, only wireless (process, user): {names}").format(names=shown))
    return ok(_("no such program runs as another user"))


CHECKS: Final = (login,)
