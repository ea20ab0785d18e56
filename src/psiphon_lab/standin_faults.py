# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of the stand-in core, which a JSON file selects. The core reads the file again whenever it changes.

The file contains {"faults": [{"kind": KIND, "after": SECONDS, ...}, ...]}; `after` (default 0) counts from the moment
when the file is read. An empty or missing file means no fault. Kinds, with their own fields:

exit (code)             end with that code, without a notice
signal (number)         die by that signal
hang                    do nothing more: no packets, no notices, no reaction to SIGTERM
silent                  work, but write no notices
close_stderr            close standard error and go on
flood (bytes)           write that much junk to standard error, in lines (default 8 MiB)
junk                    write lines that are not notices: bad JSON, wrong types, control characters, deep nesting
oversize (bytes)        write one notice of that length (default 8 MiB) as one line
liar                    report a tunnel without making one
blackhole               make the tunnel, carry nothing
no_packet_channel       make the tunnel, fail to open its packet channel (a warning, no retry), carry nothing
flap (period)           report Tunnels 0, 1, 0, ... every period/2 seconds (default 0.2), true or not
disconnect              drop the tunnel's connection and make no new one
datastore               another process holds the data store: "error in init", code 1
datastore_broken        the data store cannot be opened, whatever its content: "error in init", code 1
datastore_crash         the data store makes it crash, whatever its content: a trace, code 2
port_in_use             SocksProxyPortInUse, code 0, no Exiting notice
no_region               never a candidate server, although servers are known
empty_list              never a known server
wrong_clock (seconds)   the server's clock differs from the machine's by so much (default an hour ahead)
upstream_error          UpstreamProxyError, never connects
establish_timeout       EstablishTunnelTimeout, code 0
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psiphon_lab.standin_notices import JUNK, Notices

KINDS = frozenset(
    "exit signal hang silent close_stderr flood junk oversize liar blackhole no_packet_channel flap disconnect"
    " datastore datastore_broken datastore_crash port_in_use no_region"
    " empty_list wrong_clock upstream_error establish_timeout".split()
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault. due: the monotonic time from which it acts. options: its own fields."""

    kind: str
    due: float
    options: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        """A numeric option."""
        return float(self.options.get(name, default))


def parse_faults(text: str, *, now: float) -> list[Fault]:
    """The faults in a file's text. Raises ValueError for an unknown kind, so that no test passes without its fault."""
    faults: list[Fault] = []
    for item in (json.loads(text) if text.strip() else {}).get("faults", []):
        kind = item["kind"]
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}")
        options = {key: value for key, value in item.items() if key not in ("kind", "after")}
        faults.append(Fault(kind=kind, due=now + float(item.get("after", 0)), options=options))
    return faults


class FaultPlan:
    """The faults of one file, updated by `reload`. path: None for no faults."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._faults: list[Fault] = []
        self._done: set[int] = set()
        self.reload()

    def reload(self) -> None:
        """Read the file again if it has changed."""
        if self._path is None:
            return
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._faults = parse_faults(self._path.read_text(encoding="utf-8"), now=time.monotonic())
                self._done.clear()
                self._stamp = stamp
        except FileNotFoundError:
            self._faults = []
            self._stamp = None

    def find(self, kind: str) -> Fault | None:
        """A fault of that kind that acts now, or None."""
        now = time.monotonic()
        return next((fault for fault in self._faults if fault.kind == kind and fault.due <= now), None)

    def take(self, kind: str) -> Fault | None:
        """Like `find`, but returns each fault in the file only once."""
        fault = self.find(kind)
        if fault is None or id(fault) in self._done:
            return None
        self._done.add(id(fault))
        return fault


def act_on_process_faults(plan: FaultPlan, notices: Notices) -> None:
    """Carry out the faults that do not depend on what the core is doing."""
    notices.silent = plan.find("silent") is not None
    if fault := plan.find("exit"):
        os._exit(int(fault.number("code", 1)))
    if fault := plan.find("signal"):
        number = int(fault.number("number", signal.SIGKILL))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if plan.take("junk"):
        for line in JUNK:
            notices.write(line)
    if fault := plan.take("oversize"):
        notices.write(
            b'{"noticeType":"Info","data":{"message":"' + b"A" * int(fault.number("bytes", 8 << 20)) + b'"}}\n'
        )
    if fault := plan.take("flood"):
        line = b"junk " * 200 + b"\n"
        for _ in range(int(fault.number("bytes", 8 << 20)) // len(line)):
            notices.write(line)
    if plan.take("close_stderr"):
        os.close(2)
    if plan.find("hang"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
        while True:
            time.sleep(3600)


def write_faults(path: Path, *faults: dict[str, Any]) -> None:
    """Write the file that a running stand-in core reads, atomically. Without faults it behaves normally again."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps({"faults": list(faults)}), encoding="utf-8")
    temporary.chmod(0o644)
    temporary.rename(path)
