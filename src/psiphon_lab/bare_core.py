# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The bare core: the same program on the same path without the service, which everything is compared with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import PATIENCE, LabError
from psiphon_lab.pages import fetch_page
from psiphon_lab.service_adapter import names
from psiphon_lab.service_adapter.daemon import render_bare_core_config
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

QUICK_SECONDS = 0.25
"""A page through a tunnel in the laboratory takes milliseconds, and a lost packet is sent again only after a second."""
LAUNCHES = 5


class BareCore:
    """A core with a TUN of its own, and without a lock. There must be none yet. A context manager for the TUN.

    Args:
        world: its client.
        core: the program.
        entry: the only server; None: the core's own list.
    """

    def __init__(self, world: World, core: Path, entry: str | None) -> None:
        self._world = world
        self._core = core
        self._data = world.directory / "bare"
        self._config = render_bare_core_config(entry=entry, data_dir=self._data)
        self._child: subprocess.Popen[bytes] | None = None
        self._connected = threading.Event()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir()
        os.chown(self._data, LAB_UID, LAB_UID)
        path = self._data / "config.json"
        path.write_text(json.dumps(self._config), encoding="utf-8")
        path.chmod(0o644)
        run = self._world.client.run
        run(["ip", "tuntap", "add", names.TUN_NAME, "mode", "tun", "user", str(LAB_UID)])
        run(["ip", "addr", "add", f"{names.TUN_IPV4}/24", "dev", names.TUN_NAME])
        run(["ip", "addr", "add", f"{names.TUN_IPV6}/64", "dev", names.TUN_NAME, "nodad"])
        run(["ip", "link", "set", names.TUN_NAME, "up"])
        # Found only by those that are bound to the TUN.
        run(["ip", "route", "add", "default", "dev", names.TUN_NAME, "metric", "9999"])
        run(["ip", "-6", "route", "add", "default", "dev", names.TUN_NAME, "metric", "9999"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._world.client.run(["ip", "link", "del", names.TUN_NAME])

    @property
    def pid(self) -> int:
        """The core's process id. Raises LabError if it does not run."""
        if self._child is None:
            raise LabError("the bare core does not run")
        return self._child.pid

    def start(self) -> None:
        """Start the core on the present uplink, without waiting for anything."""
        self._connected.clear()
        argv: list[str | Path] = [self._core, "-config", self._data / "config.json", "-dataRootDirectory", self._data]
        argv += ["-tunDevice", names.TUN_NAME, "-tunBindInterface", self._world.uplink.interface]
        argv += ["-tunDNSServers", names.RESOLVER_IPV4]
        self._child = self._world.client.spawn(
            argv, uid=LAB_UID, gid=LAB_UID, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=self._data
        )
        assert self._child.stderr is not None
        self._reader = threading.Thread(target=self._read_notices, args=(self._child.stderr,), daemon=True)
        self._reader.start()

    def _read_notices(self, notices: IO[bytes]) -> None:
        for line in notices:
            with contextlib.suppress(ValueError):
                notice: dict[str, Any] = json.loads(line)
                if notice.get("noticeType") == "Tunnels" and notice["data"]["count"] >= 1:
                    self._connected.set()

    def wait_tunnel(self) -> None:
        """Wait for its notice that it has a tunnel. Raises LabError if none comes."""
        if not self._connected.wait(PATIENCE):
            raise LabError("the bare core made no tunnel")

    def wait_page(self) -> None:
        """Wait for a page through it. Raises LabError if none comes."""
        client = self._world.client
        wait_until(
            lambda: fetch_page(client, interface=names.TUN_NAME, seconds=QUICK_SECONDS) is not None,
            "a page",
            pause=0.005,
        )

    def measure_start(self) -> float:
        """Seconds from the start of a new core to a page through it. The old one is killed before."""
        self.kill()
        begin = time.monotonic()
        self.start()
        self.wait_tunnel()
        self.wait_page()
        return time.monotonic() - begin

    def measure_stop(self) -> float:
        """Seconds from the order to end to the core's end."""
        assert self._child is not None
        begin = time.monotonic()
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(timeout=PATIENCE)
        took = time.monotonic() - begin
        self.kill()
        return took

    def kill(self) -> None:
        """End the core, if it runs."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._reader is not None:
                self._reader.join(PATIENCE)
            self._child = None


def measure_launch(world: World) -> float:
    """Seconds that any program takes to start on the client as the core's user: not the core's own time."""
    found = []
    for _ in range(LAUNCHES):
        begin = time.monotonic()
        world.client.spawn(["true"], uid=LAB_UID, gid=LAB_UID).wait()
        found.append(time.monotonic() - begin)
    return statistics.median(found)
