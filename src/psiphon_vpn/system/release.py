"""`release`: the only way to open this machine without uninstalling, and the way back, `start`.

Released is a state of the kernel, nothing else: our tables are gone. The record in /run says who did it and when, for
`status`; no program ever takes it for a reason to be open. It is gone at boot, and boot always locks.
"""

from __future__ import annotations

import contextlib
import json
import syslog
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.changes import write_file
from psiphon_vpn.system.configure import RESOLVED_UNIT, relock
from psiphon_vpn.system.edges import Edges
from psiphon_vpn.system.install import Say
from psiphon_vpn.system.layout import GUARD_UNIT, SERVICE_UNIT, Layout

WORD: Final = "release"
"""What has to be typed; not translated, so that instructions hold in every language."""
MAX_RECORD: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Released:
    """What the record says.

    Attributes:
        since: when, ISO 8601.
        by: user id of who ran it: of the person behind sudo, where there is one.
    """

    since: str
    by: str


def read_record(layout: Layout) -> Released | None:
    """The record, None where there is none or it is not root's. Never raises."""
    try:
        if layout.release_record.lstat().st_uid != layout.root.stat().st_uid:
            return None
        with layout.release_record.open(encoding="utf-8") as file:
            stored = json.loads(file.read(MAX_RECORD))
        return Released(since=str(stored["since"]), by=str(stored["by"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def release(edges: Edges, *, by: str, say: Say) -> None:
    """Open this machine until the next start or boot.

    What is recorded is recorded before anything opens.

    Raises:
        UserError: it did not work. `status` says whether the machine is open.
    """
    layout, manager = edges.layout, edges.manager
    say(f"[#] systemctl stop {SERVICE_UNIT}")
    manager.stop(SERVICE_UNIT)
    if manager.is_active(SERVICE_UNIT):
        raise UserError(
            _("The network was not opened"),
            _("the service does not stop"),
            _("See why with: journalctl -u {unit}").format(unit=SERVICE_UNIT),
        )
    record = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
    _log(f"RELEASED by uid {by}: this machine is open until the next start or boot")
    say(f"[#] install /dev/stdin {layout.release_record}")
    uid = layout.root.stat().st_uid
    write_file(layout.release_record, json.dumps(record).encode(), mode=0o644, uid=uid, gid=layout.root.stat().st_gid)
    _mask_resolver(edges, say)
    say(f"[#] systemctl stop {GUARD_UNIT}")
    manager.stop(GUARD_UNIT)
    say("[#] ip link del PsiphonTUN; ip rule del ...; ip route flush table ... # ours")
    edges.kernel.remove_ways()
    say("[#] nft delete table ... # our tables: this opens")
    edges.kernel.remove_tables()


def start(edges: Edges, *, say: Say) -> None:
    """Lock, whatever the state, and then start the service.

    Raises:
        UserError: the lock does not close, or the service does not start; says which.
    """
    say(f"[#] nft -f {edges.layout.boot_rules}; systemctl start {GUARD_UNIT}")
    relock(edges)
    if edges.layout.release_record.exists():
        edges.layout.release_record.unlink(missing_ok=True)
        _log("locked again")
    _unmask_resolver(edges, say)
    say(f"[#] systemctl start {SERVICE_UNIT}")
    edges.manager.start(SERVICE_UNIT)


def _mask(layout: Layout) -> Path:
    """A file in /run takes the place of one of the same name in /usr/lib (resolved.conf.d(5)), until the next boot."""
    return layout.root / "run/systemd/resolved.conf.d" / layout.resolved_dropin.name


def _mask_resolver(edges: Edges, say: Say) -> None:
    """Let systemd-resolved ask the network's own resolvers: the one in the tunnel cannot be reached."""
    if not edges.manager.is_active(RESOLVED_UNIT):
        return
    path = _mask(edges.layout)
    say(f"[#] install /dev/stdin {path}; systemctl restart {RESOLVED_UNIT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# Released: psiphon-vpn's own settings do not count until the next start.\n", encoding="ascii")
    path.chmod(0o644)
    edges.manager.restart(RESOLVED_UNIT)


def _unmask_resolver(edges: Edges, say: Say) -> None:
    path = _mask(edges.layout)
    if not path.exists():
        return
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    if edges.manager.is_active(RESOLVED_UNIT):
        say(f"[#] systemctl restart {RESOLVED_UNIT}")
        edges.manager.restart(RESOLVED_UNIT)


def _log(text: str) -> None:
    """To the system's log, under the service's name."""
    syslog.openlog("psiphon-vpn", 0, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_WARNING, text)
    syslog.closelog()
