"""Whether the programs that log in to a network may."""

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
        "Let it run as root, or no network with a login on a cable (802.1X) lets this machine in: "
        "sudo systemctl edit wpa_supplicant, there the lines [Service] and User=root; then restart it."
    ),
)
def login(facts: Facts) -> Outcome:
    """The guards let by EAPOL of root's programs alone; what a wireless card's own stack sends, they never see."""
    found = find_refused_logins(facts.system)
    shown = ", ".join(f"{each.name} ({each.pid}), {each.uid}" for each in found)
    if any(each.wired for each in found):
        return fail(_("cannot log in on a cable (process, user): {names}").format(names=shown))
    if found:
        return warn(_("cannot log in on a cable, only wireless (process, user): {names}").format(names=shown))
    return ok(_("no other runs"))


CHECKS: Final = (login,)
