# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Private message buses for tests, with a notification service on them. Nothing touches the machine's own bus."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, MessageType, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_destination="*" eavesdrop="false"/> <allow receive_sender="*"/> <allow send_type="*"/>
  </policy>
</busconfig>
"""


@contextlib.contextmanager
def run_bus(path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A private message bus at this path; yields its address and its process."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is missing: install the package 'dbus' (Fedora: 'dbus-daemon')")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    config = path.with_suffix(".conf")
    config.write_text(CONFIG.format(path=path))
    argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog", "--print-address"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        # The bus prints its address once it listens. The socket's file exists earlier.
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"unix:"), "the bus did not start"
        path.chmod(0o666)
        yield f"unix:path={path}", process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def run_notifications(address: str) -> Iterator[list[tuple[Any, ...]]]:
    """A stand-in for a desktop's notification service; yields what it was asked to show, in order."""
    reported: list[tuple[Any, ...]] = []
    ended = threading.Event()
    with open_dbus_connection(address) as bus:
        bus.send_and_get_reply(message_bus.RequestName("org.freedesktop.Notifications"), timeout=60)

        def serve() -> None:
            while not ended.is_set():
                try:
                    message = bus.receive(timeout=0.05)
                except TimeoutError:
                    continue
                if message.header.message_type is MessageType.method_call:
                    assert message.header.fields[HeaderFields.member] == "Notify"
                    reported.append(message.body)
                    bus.send(new_method_return(message, "u", (len(reported),)))

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield reported
        finally:
            ended.set()
            server.join()
