# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files: owners, modes, and whether root trusts a file that others can write (R12)."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.diagnose import verify
from psiphon_vpn.diagnose.facts import Facts, describe_mode
from psiphon_vpn.diagnose.model import INSTALL_AGAIN, RESTORE, Outcome, check, fail, mark, ok
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy.ruleset import Table
from psiphon_vpn.system import layout as places

NO_LOGIN: Final = ("nologin", "false")
ROOT: Final = 0


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How a path must be. service: it must belong to psiphon-user; otherwise to root."""

    path: Path
    mode: int
    service: bool = False
    optional: bool = False


def list_expected(facts: Facts) -> Iterator[Expected]:
    """The paths of an installation, except the core's (a group of checks) and config.toml's (a separate check)."""
    at = facts.layout
    for path in (at.program_dir, at.rules_dir, at.config_dir, at.data_dir, at.core_dir):
        yield Expected(path=path, mode=0o755)
    for path in (at.program_manifest, at.boot_rules, at.guard_rules, at.frame_rules, at.drop_rules):
        yield Expected(path=path, mode=0o644)
    for path in (at.command, at.daemon):
        yield Expected(path=path, mode=0o755)
    for name in places.UNIT_FILES:
        yield Expected(path=at.unit_dir / name, mode=0o644)
    yield Expected(path=at.state_dir, mode=0o700, service=True)
    yield Expected(path=at.runtime_dir, mode=0o755, service=True, optional=True)
    yield Expected(path=at.install_journal, mode=0o600, optional=True)
    yield Expected(path=at.readers, mode=0o644, optional=True)
    yield Expected(path=at.bridges, mode=0o644, optional=True)
    yield Expected(path=at.bridge_rules, mode=0o644, optional=True)


@check(
    "files.installed",
    mark("The service is installed and set up"),
    mark("Install the service: sudo ./Psiphon-Linux-VPN-Service-Setup.sh install"),
)
def installed(facts: Facts) -> Outcome:
    """Is any part of an installation there?"""
    if facts.installed and facts.set_up:
        return ok(str(facts.layout.program_dir))
    if facts.installed:
        return fail(
            _("it is installed and not set up: nothing locks this machine, now or at the next boot"),
            _("Set it up: sudo psiphon-vpn setup"),
        )
    return fail(_("nothing is installed: at the next boot nothing will lock this machine"))


@check("files.owners", mark("Every file has its owner and mode"), INSTALL_AGAIN)
def owners(facts: Facts) -> Outcome:
    """Check every path of the layout."""
    facts.need_installed()
    wrong, count = [], 0
    for entry in list_expected(facts):
        if not facts.exists(entry.path):
            if not entry.optional:
                wrong.append(_("{path} is missing").format(path=entry.path))
            continue
        status, count = facts.system.stat(entry.path), count + 1
        owner = facts.identity.uid if entry.service else ROOT
        if stat.S_ISLNK(status.st_mode):
            wrong.append(_("{path} is a link").format(path=entry.path))
        elif status.st_uid != owner:
            wrong.append(_("{path} belongs to user {owner}").format(path=entry.path, owner=status.st_uid))
        # A rule file's mode may be stricter; no mode may be wider.
        elif stat.S_IMODE(status.st_mode) & ~entry.mode:
            wrong.append(_("{path} has mode {mode}").format(path=entry.path, mode=describe_mode(status)))
    return fail("; ".join(wrong[:4])) if wrong else ok(_("{count} paths").format(count=count))


@check(
    "files.trust",
    mark("Root trusts no file that others can write"),
    mark("Remove the permission: sudo chmod go-w PATH; sudo chown root PATH. Then find out who used it."),
)
def trust(facts: Facts) -> Outcome:
    """Check what root executes or loads, and every parent directory: who can write to one can replace the file."""
    facts.need_installed()
    seen: set[Path] = set()
    for path in _list_trusted(facts):
        for place in (path, *path.parents):
            if place in seen or not place.is_relative_to(facts.layout.root):
                continue
            seen.add(place)
            if not facts.exists(place):
                continue
            status = facts.system.stat(place)
            if stat.S_ISLNK(status.st_mode):
                # A link's own mode means nothing; its target is trusted too.
                status = facts.system.stat(place, follow=True)
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            loose = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != ROOT)
            if status.st_uid != ROOT or (loose and not sticky):
                text = _("{path} can be written by others (user {owner}, mode {mode})")
                return fail(text.format(path=place, owner=status.st_uid, mode=describe_mode(status)))
    return ok(_("{count} paths").format(count=len(seen)))


def _list_trusted(facts: Facts) -> Iterator[Path]:
    at = facts.layout
    yield from (
        at.boot_rules,
        at.guard_rules,
        at.frame_rules,
        at.drop_rules,
        at.command,
        at.daemon,
        at.program_manifest,
    )
    yield from (at.core_record, at.install_journal)
    yield from (at.unit_dir / name for name in places.UNIT_FILES)
    yield from verify.walk(facts.system, at.program_dir)


@check(
    "files.manifest",
    mark("Every installed file is as it was installed"),
    mark("See which one: sudo psiphon-vpn verify. Then install again."),
)
def manifest(facts: Facts) -> Outcome:
    """Run `verify`."""
    facts.need_installed()
    if not facts.exists(facts.layout.program_manifest):
        return fail(_("there is no manifest"))
    report = verify.verify(facts.system, facts.layout)
    if report.troubles:
        return fail(
            _("files that differ: {count}, for example {path}").format(
                count=len(report.troubles), path=report.troubles[0].path
            )
        )
    return ok(_("{count} files").format(count=report.count))


@check("files.config", mark("The configuration is usable"), mark("Correct it; until then the machine stays locked."))
def config(facts: Facts) -> Outcome:
    """Parse it as the service does."""
    if not facts.exists(facts.layout.config):
        facts.need_installed()
        return ok(_("there is none: the defaults hold"))
    try:
        facts.settings  # noqa: B018  raises
    except UserError as error:
        return fail(error.why, error.next_step)
    return ok(str(facts.layout.config))


@check(
    "files.config-mode",
    mark("Only the service reads and writes the configuration"),
    mark("Close it: sudo chmod 600 /etc/psiphon-vpn/config.toml"),
)
def config_mode(facts: Facts) -> Outcome:
    """psiphon-user's, mode 600."""
    path = facts.layout.config
    if not facts.exists(path):
        raise Skip(_("there is none"))
    status = facts.system.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return fail(_("{path} is not an ordinary file").format(path=path))
    if status.st_uid == ROOT != facts.identity.uid and not status.st_mode & stat.S_IROTH:
        why = _("{path} belongs to root, so the service, which is not root, cannot read it").format(path=path)
        return fail(why, _("Give it to the service: sudo psiphon-vpn reload"))
    if status.st_uid not in {ROOT, facts.identity.uid}:
        return fail(_("{path} belongs to user {owner}").format(path=path, owner=status.st_uid))
    if stat.S_IMODE(status.st_mode) & ~0o600:
        return fail(_("{path} has mode {mode}").format(path=path, mode=describe_mode(status)))
    return ok(describe_mode(status))


def _compare_rules(facts: Facts, path: Path, table: Table) -> Outcome:
    facts.need_installed()
    text = facts.find_text(path)
    if text is None:
        raise Skip(_("{path} is missing").format(path=path))
    if _strip(text) not in {_strip(table.render()), _strip(table.render_replacement())}:
        return fail(_("{path} is not what the policy says on this machine").format(path=path))
    return ok(str(path))


def _strip(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


@check("files.boot-rules", mark("The boot lock's file is what the policy says"), RESTORE)
def boot_rules(facts: Facts) -> Outcome:
    """Compared with the present numbers of the users."""
    from psiphon_vpn.policy.base import build_base_table
    from psiphon_vpn.policy.model import Policy, State

    table = build_base_table(Policy(state=State.LOCKED, identity=facts.identity))
    return _compare_rules(facts, facts.layout.boot_rules, table)


@check("files.drop-rules", mark("The emergency rules drop everything"), RESTORE)
def drop_rules(facts: Facts) -> Outcome:
    """The rules for when the boot lock's file does not load."""
    from psiphon_vpn.policy.base import build_base_table, build_drop_only
    from psiphon_vpn.policy.model import Policy, State

    table = build_drop_only(build_base_table(Policy(state=State.LOCKED, identity=facts.identity)))
    return _compare_rules(facts, facts.layout.drop_rules, table)


@check("files.guard-rules", mark("The wire guard's file is what the policy says"), RESTORE)
def guard_rules(facts: Facts) -> Outcome:
    """Compared with the present numbers of the users."""
    from psiphon_vpn.policy.guards import build_wire_guard

    return _compare_rules(facts, facts.layout.guard_rules, build_wire_guard(facts.identity))


@check(
    "files.user",
    mark("Nobody can log in as psiphon-user"),
    mark("Close it: sudo usermod --lock --shell /usr/sbin/nologin psiphon-user"),
)
def user(facts: Facts) -> Outcome:
    """The account that may use the wire."""
    facts.need_installed()
    found = facts.system.find_user(places.USER)
    if found is None:
        return fail(_("there is no user {name}").format(name=places.USER), _(RESTORE))
    if found.uid == ROOT:
        return fail(_("it is root"))
    if Path(found.login).name not in NO_LOGIN:
        return fail(_("its shell is {shell}").format(shell=found.login))
    try:
        password = _find_password(facts.system.read(facts.at("/etc/shadow")).decode("utf-8", "replace"))
    except FileNotFoundError:
        password = "!"  # noqa: S105  what "no password" looks like
    except OSError as error:
        raise Unknowable(f"/etc/shadow: {error.strerror}") from error
    if not password.startswith(("!", "*")):
        return fail(_("it has a password"))
    return ok(_("user {uid}").format(uid=found.uid))


def _find_password(shadow: str) -> str:
    for line in shadow.splitlines():
        name, _colon, rest = line.partition(":")
        if name == places.USER:
            return rest.partition(":")[0]
    return "!"


CHECKS: Final = (installed, owners, trust, manifest, config, config_mode, boot_rules, drop_rules, guard_rules, user)
