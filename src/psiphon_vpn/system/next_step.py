# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The one next step of a user whose command needs what this machine does not have now.

Each command says what it needs; only this module decides, from what the machine is, how to get it. So no two commands
send a user to different places, and none sends him in a circle.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import SERVICE_UNIT, Layout
from psiphon_vpn.system.set_up import SetUp, find_set_up


class Need(enum.Enum):
    """What a command needs."""

    SERVICE = enum.auto()
    """The service that answers."""
    TUNNEL = enum.auto()
    """The open tunnel."""
    SERVERS = enum.auto()
    """A list of servers."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to tell.

    Attributes:
        step: what the user can do, a whole sentence, translated.
        why: why the machine does not have it, as part of a sentence, translated; empty if the command knows it better.
    """

    step: str
    why: str = ""

    @property
    def sentence(self) -> str:
        """Both, where nothing else is said."""
        return f"{self.why[:1].upper()}{self.why[1:]}. {self.step}" if self.why else self.step


def advise(need: Need, layout: Layout, *, status: Mapping[str, object] | None = None) -> Advice:
    """The one next step. Reads files that everybody may read, and asks nobody.

    Args:
        need: what the command lacks.
        layout: the paths of the installation.
        status: of the service; None if it did not answer or was not asked.
    """
    found = find_set_up(layout)
    if found is SetUp.NO and not status:  # one that answers without a set-up is a laboratory's
        return Advice(why=_("this computer is not set up"), step=_describe_set_up(layout))
    if found is SetUp.UNFINISHED:
        why = _("the set-up of this computer was begun and did not come to its end")
        return Advice(why=why, step=_("Finish it: sudo psiphon-vpn setup. Or undo it: sudo psiphon-vpn uninstall"))
    if found is SetUp.REMOVING:
        why = _("the removal of the service was begun and did not come to its end")
        step = _("Finish it: sudo psiphon-vpn uninstall. Or set it up again: sudo psiphon-vpn setup")
        return Advice(why=why, step=step)
    if need is Need.SERVERS:
        return _advise_servers(layout)
    if need is Need.TUNNEL and status:
        return _advise_tunnel(status)
    return _advise_service(layout)


def need_set_up(runtime_dir: Path, what: str) -> None:
    """Refuse a command that changes an installation where there is none.

    Args:
        runtime_dir: the service's; another one than the installation's belongs to a laboratory, which needs none.
        what: what is not done then, translated, without a full stop.

    Raises:
        UserError: nobody has set up this computer.
    """
    layout = Layout()
    if runtime_dir == layout.runtime_dir and find_set_up(layout) is SetUp.NO:
        advice = advise(Need.SERVICE, layout)
        raise UserError(what, advice.why, advice.step)


def _describe_set_up(layout: Layout) -> str:
    if layout.command.exists():
        return _("Set it up: sudo psiphon-vpn setup")
    return _("Install the service: sudo ./Psiphon-Linux-VPN-Service-Setup.sh install")


def _advise_servers(layout: Layout) -> Advice:
    if not layout.core_record.exists():
        return Advice(step=_("Bring a file that has it, and the tunnel program: sudo psiphon-vpn setup --bundle FILE"))
    return Advice(step=_("Bring one: sudo psiphon-vpn servers import FILE"))


def _advise_tunnel(status: Mapping[str, object]) -> Advice:
    if status.get("state") == "OPEN":
        return Advice(step=_("What does not work: sudo psiphon-vpn diagnose --quiet"))
    if status.get("intent") == "stopped":
        return Advice(why=_("the connection was stopped"), step=_("Connect: sudo psiphon-vpn start --wait"))
    # The service knows what it lacks, and what helps; to start it again would not.
    if step := status.get("next_step"):
        return Advice(why=str(status.get("reason") or ""), step=str(step))
    return Advice(why=str(status.get("reason") or ""), step=_("Wait for the tunnel: sudo psiphon-vpn start --wait"))


def _advise_service(layout: Layout) -> Advice:
    if not (layout.unit_dir / SERVICE_UNIT).exists():
        return Advice(
            why=_("its unit {name} is missing").format(name=SERVICE_UNIT),
            step=_("Install it again, which opens nothing: psiphon-vpn help stranded says how"),
        )
    if not layout.locate("/run/systemd/system").is_dir():
        return Advice(
            why=_("this system was not started by systemd"),
            step=_("Start the computer itself; a system in a chroot or without systemd has no service."),
        )
    # Late: it leads to a third of the program, and few ever need it.
    from psiphon_vpn.system.released import read_record

    if read_record(layout) is not None:
        return Advice(why=_("'release' has ended it"), step=_("Lock and connect again: sudo psiphon-vpn start"))
    return Advice(step=_("Start it: sudo psiphon-vpn start. Why it ended: sudo psiphon-vpn log"))
