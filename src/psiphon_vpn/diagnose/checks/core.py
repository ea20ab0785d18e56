# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel core: the program in use, compared with the record of its verification."""

from __future__ import annotations

import stat
from typing import Final

from psiphon_vpn.core.record import CoreRecord, RecordError, parse_record
from psiphon_vpn.diagnose.basic_facts import PROC
from psiphon_vpn.diagnose.facts import Facts, describe_mode
from psiphon_vpn.diagnose.model import Outcome, check, fail, mark, ok, warn
from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.i18n import _
from psiphon_vpn.system import layout as places

UPDATE: Final = mark(
    "Bring a file that has it: sudo psiphon-vpn setup --bundle FILE, or sudo psiphon-vpn update --core-file FILE"
)
ELF_MACHINES: Final = {"x86_64": 62, "aarch64": 183, "armv7l": 40, "i686": 3, "riscv64": 243}
"""e_machine (elf.h) by the machine of uname(2)."""


def _need_core(facts: Facts) -> None:
    facts.need_installed()
    if not facts.exists(facts.layout.core_binary):
        raise Skip(_("there is no tunnel program"))


@check("core.present", mark("There is a tunnel program"), UPDATE)
def present(facts: Facts) -> Outcome:
    """Does the link lead to a program?"""
    facts.need_installed()
    if not facts.exists(facts.layout.core_current):
        return fail(_("none is installed: the machine stays locked and cannot connect"))
    if not facts.exists(facts.layout.core_binary):
        return fail(_("the link to it leads nowhere"))
    return ok(facts.system.read_link(facts.layout.core_current))


def read_record(facts: Facts) -> CoreRecord:
    """The record of the core in use. Skips if there is no core or no record."""
    _need_core(facts)
    text = facts.find_text(facts.layout.core_record)
    if text is None:
        raise Skip(_("there is no record"))
    try:
        return parse_record(text.encode())
    except RecordError as error:
        # Every start reads this record too: with an unusable one no core starts.
        raise Skip(_("the record cannot be used ({reason})").format(reason=error)) from error


@check("core.record", mark("What was verified about the tunnel program is on record"), UPDATE)
def record(facts: Facts) -> Outcome:
    """Is the record there, and does it name a checksum?"""
    _need_core(facts)
    try:
        found = read_record(facts)
    except Skip as why:
        return fail(str(why))
    return ok(_("revision {revision}").format(revision=found.revision or _("not recorded")))


@check("core.checksum", mark("The tunnel program is the one that was verified"), UPDATE)
def checksum(facts: Facts) -> Outcome:
    """Its SHA-256, compared with the record."""
    wanted = read_record(facts).sha256
    try:
        found = facts.system.hash(facts.layout.core_binary)
    except OSError as error:
        raise Unknowable(f"{facts.layout.core_binary}: {error.strerror}") from error
    if found != wanted:
        return fail(_("its SHA-256 is not the recorded one: it was changed, and will not be started"))
    return ok(found[:16])


@check("core.architecture", mark("The tunnel program is made for this processor"), UPDATE)
def architecture(facts: Facts) -> Outcome:
    """The ELF header, compared with uname(2)."""
    _need_core(facts)
    try:
        head = facts.system.read_head(facts.layout.core_binary, 20)
    except OSError as error:
        raise Unknowable(f"{facts.layout.core_binary}: {error.strerror}") from error
    machine = facts.system.read_machine()
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return fail(_("it is not a program (not an ELF file)"))
    if machine not in ELF_MACHINES:
        return warn(_("this program does not know the processor {machine}").format(machine=machine))
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    if number != ELF_MACHINES[machine]:
        return fail(_("it is made for another processor than {machine}").format(machine=machine))
    return ok(machine)


@check(
    "core.owner",
    mark("Nobody but root can put another tunnel program or another record there"),
    mark("Restore owners and modes: sudo psiphon-vpn setup (you can run it again at any time)"),
)
def owner(facts: Facts) -> Outcome:
    """Owners and modes: the directory and the record are root's, the program psiphon-user's (R12)."""
    _need_core(facts)
    layout, uid = facts.layout, facts.identity.uid
    for path, owners, mode in (
        (layout.core_dir, {0}, 0o755),
        (layout.core_current, {0}, 0o755),
        (layout.core_binary, {uid}, 0o755),
        (layout.core_record, {0}, 0o644),
    ):
        if not facts.exists(path):
            continue
        status = facts.system.stat(path, follow=True)
        if status.st_uid not in owners or stat.S_IMODE(status.st_mode) != mode:
            text = _("{path} has mode {mode} and owner {owner}")
            return fail(text.format(path=path, mode=describe_mode(status), owner=status.st_uid))
    return ok(_("they belong to root, and the program to {name}").format(name=places.USER))


@check(
    "core.running",
    mark("The running tunnel program is the installed one"),
    mark("Start it again: sudo psiphon-vpn restart"),
)
def running(facts: Facts) -> Outcome:
    """The SHA-256 of the running copy in memory (core/image.py), compared with the record."""
    wanted, pid = read_record(facts).sha256, facts.core_pid
    try:
        found = facts.system.hash(PROC / str(pid) / "exe")
    except OSError as error:
        raise Unknowable(error.strerror or str(error)) from error
    if found != wanted:
        return warn(_("a different one runs, from before the last update or from another place"))
    return ok(_("process {pid}").format(pid=pid))


@check(
    "core.known",
    mark("The tunnel program is one that this version of the service knows"),
    mark("If you did not bring it yourself: sudo psiphon-vpn update"),
)
def known(facts: Facts) -> Outcome:
    """Does the manifest of the package have an entry for it?"""
    revision = read_record(facts).revision
    if not revision:
        return warn(_("its checksum is known only from its own installation"))
    return ok(_("revision {revision}").format(revision=revision))


CHECKS: Final = (present, record, checksum, architecture, owner, running, known)
