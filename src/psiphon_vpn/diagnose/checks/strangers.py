# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Other processes with the numbers of psiphon-user: the rules take them for psiphon-user and let them out in clear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names
from psiphon_vpn.system import layout as places

NETWORK: Final = "ns/net"


def _read_ids(status: dict[str, str], key: str) -> set[int]:
    """Real, effective, saved and file system id (proc(5)); rules match the last."""
    return {int(word) for word in status.get(key, "").split() if word.isdigit()}


def _list_processes(facts: Facts) -> Iterator[tuple[int, dict[str, str]]]:
    """Every process with its status, except one that ends meanwhile."""
    for name in facts.list_names(PROC):
        if name.isdigit():
            try:
                text = facts.system.read(PROC / name / "status").decode("utf-8", "replace")
            except OSError:
                continue
            yield (
                int(name),
                {key: value.strip() for key, _, value in (line.partition(":") for line in text.split("\n"))},
            )


def _is_ours(facts: Facts, pid: int, parents: dict[int, int], daemon: int | None) -> bool:
    """Whether it descends from the daemon, or is in its unit's control group, which only root can enter."""
    seen: set[int] = set()
    at = pid
    while at and at not in seen:
        if at == daemon:
            return True
        seen.add(at)
        at = parents.get(at, 0)
    try:
        groups = facts.system.read(PROC / str(pid) / "cgroup").decode("utf-8", "replace")
    except OSError:
        return False
    return any(line.endswith(f"/{places.SERVICE_UNIT}") for line in groups.splitlines())


def _is_here(facts: Facts, pid: int) -> bool:
    """Whether it is in this network namespace; rules do not see the owner of a socket in another one."""
    try:
        return facts.system.read_link(PROC / str(pid) / NETWORK) == facts.system.read_link(PROC / "self" / NETWORK)
    except OSError:
        return False


@check(
    "core.strangers",
    mark("No other process has psiphon-user's numbers"),
    mark(
        "End it, or run it as another user. A container on this machine's network gets its user by --user; see "
        "it with: ps -o pid,user,group,args -p PID"
    ),
)
def strangers(facts: Facts) -> Outcome:
    """Any process in this network namespace with the uid or the gid, except the service's own."""
    identity, service = facts.identity, facts.service_or_reason
    daemon = None if isinstance(service, UserError) else service.pid
    processes = dict(_list_processes(facts))
    parents = {pid: next(iter(_read_ids(status, "PPid")), 0) for pid, status in processes.items()}
    both: list[str] = []
    one: list[str] = []
    for pid, status in processes.items():
        uid = identity.uid in _read_ids(status, "Uid")
        gid = identity.gid in {*_read_ids(status, "Gid"), *_read_ids(status, "Groups")}
        if (uid or gid) and not _is_ours(facts, pid, parents, daemon) and _is_here(facts, pid):
            (both if uid and gid else one).append(f"{status.get('Name', '?')} ({pid})")
    if both:
        return fail(_("can send in clear like psiphon-user: {names}").format(names=", ".join(sorted(both))))
    if one:
        return warn(_("has one of its two numbers: {names}").format(names=", ".join(sorted(one))))
    return ok(_("user {uid}, group {gid}").format(uid=identity.uid, gid=identity.gid))


@check(
    "core.numbers",
    mark("No other account has psiphon-user's numbers"),
    mark("Give the other account another number, with usermod -u or groupmod -g, and change the owner of its files."),
)
def numbers(facts: Facts) -> Outcome:
    """To the kernel, accounts with the same number are one."""
    identity, others = facts.identity, []
    for path, own, number in (
        ("/etc/passwd", places.USER, identity.uid),
        ("/etc/group", places.GROUP, identity.gid),
    ):
        for line in (facts.find_text(facts.at(path)) or "").splitlines():
            words = line.split(":")
            if len(words) > 2 and words[2] == str(number) and words[0] != own:
                others.append(words[0])
    if others:
        return fail(_("shared with: {names}").format(names=", ".join(sorted(others))))
    if {identity.uid, identity.gid} != {names.ACCOUNT_NUMBER}:
        return ok(
            _("user {uid}, group {gid}; {usual} was taken, or the account is older than this version").format(
                uid=identity.uid, gid=identity.gid, usual=names.ACCOUNT_NUMBER
            )
        )
    return ok(_("user {uid}, group {gid}").format(uid=identity.uid, gid=identity.gid))


CHECKS: Final = (strangers, numbers)
