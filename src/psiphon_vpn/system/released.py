# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The record and the masks of `release`, for `status` and for `start`: all in /run, all gone at boot.

Released is a state of the kernel: the service's tables are absent. No program opens because of the record, and `status`
uses it only if the machine is open according to the kernel.
"""

from __future__ import annotations

import contextlib
import json
import syslog
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.stored_files import StoredError, parse_object, read_stored, take
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.platform import Platform
from psiphon_vpn.system.resources import render_resource
from psiphon_vpn.system.system_changes import ServiceReread, reread
from psiphon_vpn.system.tree_changes import write_file

RESOLVED_UNIT: Final = "systemd-resolved.service"
MAX_RECORD: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Released:
    """The content of the record.

    Attributes:
        since: when, ISO 8601.
        by: user id of the person who ran it, behind sudo if there is one.
    """

    since: str
    by: str


def read_record(layout: Layout) -> Released | None:
    """The record; None if there is none or it is not root's. Never raises."""
    try:
        if layout.release_record.lstat().st_uid != layout.root.stat().st_uid:
            return None
        stored = parse_object(read_stored(layout.release_record, high=MAX_RECORD))
        return Released(since=take(stored, "since", str), by=take(stored, "by", str))
    except (OSError, StoredError):
        return None


def write_record(layout: Layout, *, by: str) -> None:
    """Record who releases, and log it. Raises OSError."""
    record = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
    owner = layout.root.stat()
    _log(f"RELEASED by uid {by}: this machine is open until the next start or boot")
    write_file(layout.release_record, json.dumps(record).encode(), mode=0o644, uid=owner.st_uid, gid=owner.st_gid)


def clear(platform: Platform) -> None:
    """Forget a release, after the lock has closed."""
    if platform.layout.release_record.exists():
        platform.layout.release_record.unlink(missing_ok=True)
        _log("locked again")
    unmask_resolver(platform)


def list_masks(layout: Layout) -> tuple[tuple[ServiceReread, Path, str], ...]:
    """The services that read files of the installation, each with a file in /run that masks the one in /usr/lib.

    A mask lasts until the next boot (resolved.conf.d(5), NetworkManager.conf(5)).
    """
    resolved = "# Released: psiphon-vpn's own settings do not count until the next start.\n"
    return (
        (
            ServiceReread(unit=RESOLVED_UNIT, verb="restart"),
            layout.locate("/run/systemd/resolved.conf.d") / layout.resolved_dropin.name,
            resolved,
        ),
        *(
            (ServiceReread(unit=manager.units[0], verb=manager.reread), layout.locate(path), render_resource(name))
            for manager in MANAGERS
            if manager.reread is not None
            for path, name in manager.released_files.items()
        ),
    )


def mask_resolver(platform: Platform) -> None:
    """Let programs use the network's own resolvers: the one in the tunnel cannot be reached."""
    for service, path, text in list_masks(platform.layout):
        # The parent directory belongs to that service, which makes it when it starts.
        if platform.manager.is_active(service.unit) and path.parent.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
            path.chmod(0o644)
            reread(platform, service)


def unmask_resolver(platform: Platform) -> None:
    """Have programs use the resolver in the tunnel again."""
    for service, path, _text in list_masks(platform.layout):
        if path.exists():
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            reread(platform, service)


def _log(text: str) -> None:
    """Write to the system's log, under the service's name."""
    syslog.openlog("psiphon-vpn", 0, syslog.LOG_AUTH)
    syslog.syslog(syslog.LOG_WARNING, text)
    syslog.closelog()
