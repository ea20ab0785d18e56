# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The units of systemd: there, wanted, running, and not weakened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import INSTALL_AGAIN, RESTORE, Check, Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip
from psiphon_vpn.diagnose.unit_facts import MANAGERS
from psiphon_vpn.i18n import _
from psiphon_vpn.system import layout as places

WANTED_BY: Final = {
    places.KILLSWITCH_UNIT: "sysinit.target",
    places.GUARD_UNIT: "sysinit.target",
    places.SERVICE_UNIT: "multi-user.target",
    places.SLEEP_UNIT: "sleep.target",
    places.SERVERS_TIMER: "timers.target",
}
SETTING: Final = re.compile(r"([A-Za-z]\w*)\s*=")
HARMLESS: Final = re.compile(
    r"(Description|Documentation|Timeout\w*|Log\w*|CPU\w*|Memory\w*|Tasks\w*|IO\w*|Nice|OOMScoreAdjust|After|Wants)\Z"
)
"""Settings that others may change in the service's units; all other settings decide what a unit does and may do."""
VENDOR: Final = "service.d"
"""Drop-ins by which a distribution sets something for every service."""


def _is_there(facts: Facts, name: str) -> dict[str, str] | Outcome:
    unit = facts.units.need_installed(name)
    if unit.get("LoadState") == "masked":
        return fail(_("it is masked"), _("Unmask it: sudo systemctl unmask {name}").format(name=name))
    if unit.get("LoadState") != "loaded":
        return fail(_("systemd does not know it ({state})").format(state=unit.get("LoadState", "")), _(INSTALL_AGAIN))
    return unit


def _make(id: str, title: str, step: str, name: str, substate: str) -> Check:
    @check(id, title, step)
    def running(facts: Facts) -> Outcome:
        unit = _is_there(facts, name)
        if isinstance(unit, Outcome):
            return unit
        if unit.get("ActiveState") != "active" or unit.get("SubState") != substate:
            state = f"{unit.get('ActiveState')} ({unit.get('SubState')}, {unit.get('Result')})"
            return fail(_("it is {state}").format(state=state))
        return ok(f"{unit.get('ActiveState')} ({unit.get('SubState')})")

    return running


killswitch = _make(
    "units.killswitch",
    mark("The boot lock was loaded"),
    mark("Find out why: journalctl -b -u psiphon-killswitch; then: sudo systemctl start psiphon-killswitch"),
    places.KILLSWITCH_UNIT,
    "exited",
)
guard = _make(
    "units.guard",
    mark("The holder of the wire guard runs"),
    mark("Find out why: journalctl -b -u psiphon-guard; then: sudo systemctl start psiphon-guard"),
    places.GUARD_UNIT,
    "running",
)
service = _make(
    "units.service",
    mark("The service runs"),
    mark("Find out why: sudo psiphon-vpn log; then: sudo psiphon-vpn start"),
    places.SERVICE_UNIT,
    "running",
)


@check("units.wanted", mark("The lock and the service start at every boot"), RESTORE)
def wanted(facts: Facts) -> Outcome:
    """Does a target want each of them?"""
    missing = []
    for name, target in WANTED_BY.items():
        unit = facts.units.need_installed(name)
        if unit.get("LoadState") == "loaded" and target not in unit.get("WantedBy", "").split():
            missing.append(name)
    return (
        fail(_("nothing starts them at boot: {names}").format(names=", ".join(missing)))
        if missing
        else ok(", ".join(sorted(set(WANTED_BY.values()))))
    )


@check("units.order", mark("The lock comes before any network at boot"), INSTALL_AGAIN)
def order(facts: Facts) -> Outcome:
    """Is the killswitch before network-pre.target, and does it want that target, so that the order counts?"""
    unit = facts.units.need_installed(places.KILLSWITCH_UNIT)
    if unit.get("LoadState") != "loaded":
        raise Skip(_("systemd does not know the unit"))
    if "network-pre.target" not in unit.get("Before", "").split():
        return fail(_("the boot lock does not come before network-pre.target"))
    if "network-pre.target" not in unit.get("Wants", "").split():
        return fail(_("the boot lock does not want network-pre.target, so nothing waits for it"))
    return ok("psiphon-killswitch < network-pre.target")


@check(
    "units.boot",
    mark("At this boot the lock was there before the network"),
    mark("Restart the machine and check again. If it stays so: journalctl -b -u psiphon-killswitch -u NetworkManager"),
)
def boot(facts: Facts) -> Outcome:
    """Their start times, on the same clock."""
    unit = facts.units.need_installed(places.KILLSWITCH_UNIT)
    loaded = int(unit.get("ActiveEnterTimestampMonotonic") or 0)
    if not loaded:
        raise Skip(_("the boot lock is not loaded"))
    if _was_installed_since_boot(facts):
        raise Skip(_("it was installed after the machine started"))
    earlier = []
    for name in MANAGERS:
        started = int(facts.units.read(name).get("ExecMainStartTimestampMonotonic") or 0)
        if 0 < started < loaded:
            earlier.append(name)
    if earlier:
        return warn(_("started before it: {names}").format(names=", ".join(earlier)))
    return ok(_("loaded {seconds:.1f} s after the kernel started").format(seconds=loaded / 1e6))


def _was_installed_since_boot(facts: Facts) -> bool:
    """Every installation and upgrade writes its journal."""
    uptime = facts.find_text(PROC / "uptime")
    if uptime is None or not facts.exists(facts.layout.install_journal):
        return False
    started = facts.system.read_time() - float(uptime.split()[0])
    return facts.system.stat(facts.layout.install_journal).st_mtime > started


@check("units.managers", mark("Without the lock no interface comes up at boot"), RESTORE)
def managers(facts: Facts) -> Outcome:
    """Does each installed network manager require the boot lock, in force?"""
    facts.need_installed()
    there = [name for name in MANAGERS if facts.units.read(name).get("LoadState") == "loaded"]
    loose = [
        name
        for name in there
        if places.KILLSWITCH_UNIT not in facts.units.read(name).get("Requires", "").split()
        or places.KILLSWITCH_UNIT not in facts.units.read(name).get("After", "").split()
    ]
    if loose:
        return fail(_("they do not require it: {names}").format(names=", ".join(loose)))
    return ok(", ".join(there) or _("there is none"))


def _list_dropins(facts: Facts) -> Iterator[tuple[str, Path]]:
    """Every drop-in of the service's units; the installation itself has none for them."""
    for name in places.UNIT_FILES:
        for text in facts.units.need_installed(name).get("DropInPaths", "").split():
            yield name, facts.at(text)


@check(
    "units.dropins",
    mark("The service's units are not weakened"),
    mark("See what was added: systemctl cat psiphon-vpn psiphon-killswitch psiphon-guard"),
)
def dropins(facts: Facts) -> Outcome:
    """Read each drop-in."""
    others = []
    for name, path in _list_dropins(facts):
        for line in facts.read_text(path).splitlines():
            found = SETTING.match(line.strip())
            if found and not HARMLESS.match(found[1]):
                return fail(_("{path} changes {key} of {name}").format(path=path, key=found[1], name=name))
        if path.parent != facts.layout.unit_dir / VENDOR:
            others.append(str(path))
    return warn(_("others added: {names}").format(names=", ".join(others))) if others else ok(_("there is none"))


@check(
    "units.override",
    mark("The service's units are not replaced"),
    mark("Remove the other file, then: sudo systemctl daemon-reload"),
)
def override(facts: Facts) -> Outcome:
    """A file of the same name in /etc takes precedence."""
    for name in places.UNIT_FILES:
        path = facts.units.need_installed(name).get("FragmentPath", "")
        if path and facts.at(path) != facts.layout.unit_dir / name and not _is_same(facts, path, name):
            return fail(_("{name} comes from {path}").format(name=name, path=path))
    return ok(str(facts.layout.unit_dir))


def _is_same(facts: Facts, path: str, name: str) -> bool:
    """On a system with merged /usr, /lib/systemd is the same directory."""
    try:
        one = facts.system.stat(facts.at(path), follow=True)
        other = facts.system.stat(facts.layout.unit_dir / name, follow=True)
    except OSError:
        return False
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


@check(
    "units.reload",
    mark("systemd has read the units as they are on disk"),
    mark("Have it read them: sudo systemctl daemon-reload"),
)
def reload(facts: Facts) -> Outcome:
    """NeedDaemonReload."""
    stale = [name for name in places.UNIT_FILES if facts.units.need_installed(name).get("NeedDaemonReload") == "yes"]
    return fail(_("changed since: {names}").format(names=", ".join(stale))) if stale else ok(_("as on disk"))


@check("units.watchdog", mark("A service that hangs or dies is started again"), INSTALL_AGAIN)
def watchdog(facts: Facts) -> Outcome:
    """Restart= and WatchdogSec= in force."""
    unit = facts.units.need_installed(places.SERVICE_UNIT)
    if unit.get("LoadState") != "loaded":
        raise Skip(_("systemd does not know the unit"))
    seconds = unit.get("WatchdogUSec", "0")
    if unit.get("Restart") != "always":
        return fail(_("systemd does not start it again (Restart={value})").format(value=unit.get("Restart")))
    if seconds in {"", "0", "infinity"}:
        return fail(_("systemd does not notice when it hangs (no watchdog)"))
    return ok(_("watchdog {seconds}").format(seconds=seconds))


CHECKS: Final = (killswitch, guard, service, wanted, order, boot, managers, dropins, override, reload, watchdog)
