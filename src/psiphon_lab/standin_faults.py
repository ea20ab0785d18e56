"""How the stand-in core is told to misbehave: a JSON file, read again whenever it changes.

The file holds {"faults": [{"kind": KIND, "after": SECONDS, ...}, ...]}; `after` (default 0) counts from the moment the
file was read. An empty or missing file means no fault. Kinds, with their own fields:

exit (code)             end with that code, no farewell
signal (number)         die by that signal
hang                    do nothing more: no packets, no notices, no reaction to SIGTERM
silent                  work, but write no notice at all
close_stderr            close standard error and go on
flood (bytes)           write that much junk to standard error, in lines (default 8 MiB)
junk                    write lines that are no notices: bad JSON, wrong types, control characters, deep nesting
oversize (bytes)        write one notice of that length (default 8 MiB) as one line
liar                    claim a tunnel without making one
blackhole               make the tunnel, carry nothing
no_packet_channel       make the tunnel, fail to open its packet channel (a warning, no retry), carry nothing
flap (period)           report Tunnels 0, 1, 0, ... every period/2 seconds (default 0.2) whatever is true
disconnect              drop the tunnel's connection and make no new one
datastore               another process holds the data store: "error in init", code 1
datastore_broken        the data store cannot be opened, whatever is there: "error in init", code 1
datastore_crash         the data store makes it crash, whatever is there: a trace, code 2
port_in_use             SocksProxyPortInUse, code 0, no farewell
no_region               no candidate server, for ever, though servers are known
empty_list              no server is known at all, for ever
wrong_clock (seconds)   the server's clock is so far from ours (default an hour ahead)
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
    """One misbehaviour. due: the monotonic time from which it acts. options: the fields of its own."""

    kind: str
    due: float
    options: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        """A numeric option."""
        return float(self.options.get(name, default))


def parse_faults(text: str, *, now: float) -> list[Fault]:
    """The faults of a file's text. Raises ValueError on anything that is not understood: a test must not pass by it."""
    faults: list[Fault] = []
    for item in (json.loads(text) if text.strip() else {}).get("faults", []):
        kind = item["kind"]
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}")
        options = {key: value for key, value in item.items() if key not in ("kind", "after")}
        faults.append(Fault(kind=kind, due=now + float(item.get("after", 0)), options=options))
    return faults


class FaultPlan:
    """The faults of one file, current after each `reload`. path None: never any."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._faults: list[Fault] = []
        self._done: set[int] = set()
        self.reload()

    def reload(self) -> None:
        """Read the file again if it is another than before."""
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
        """The fault of that kind which acts now."""
        now = time.monotonic()
        return next((fault for fault in self._faults if fault.kind == kind and fault.due <= now), None)

    def take(self, kind: str) -> Fault | None:
        """Like `find`, once for each fault in the file."""
        fault = self.find(kind)
        if fault is None or id(fault) in self._done:
            return None
        self._done.add(id(fault))
        return fault


def act_on_process_faults(plan: FaultPlan, notices: Notices) -> None:
    """The misbehaviour that does not depend on what the core is doing."""
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
    """Write the file that a running stand-in core reads, in one step. No faults: it behaves again."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps({"faults": list(faults)}), encoding="utf-8")
    temporary.chmod(0o644)
    temporary.rename(path)
