"""Private message buses for tests, with python-dbusmock's services on them. Nothing touches the machine's own bus."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
MOCK_PYTHON = "/usr/bin/python3"
"""The distribution's, for which it packages python-dbusmock: its bindings are built for no other."""


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> float:
    """Wait; returns how long it took, in seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            pytest.fail(f"{what} did not come within {seconds:g} s")
        time.sleep(0.005)
    return time.monotonic() - begin


@contextlib.contextmanager
def run_bus(path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A message bus of our own at this path; its address and its process."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is missing: install the package 'dbus' (Fedora: 'dbus-daemon')")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    config = path.with_suffix(".conf")
    config.write_text(CONFIG.format(path=path))
    argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the bus")
        path.chmod(0o666)
        yield f"unix:path={path}", process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def run_mock(
    address: str, template: str, *parameters: str, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """python-dbusmock with one of its templates, on the bus of that address; what it is asked for is in `log`."""
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address, "DBUS_SESSION_BUS_ADDRESS": address}
    have = subprocess.run([MOCK_PYTHON, "-c", "import dbusmock"], check=False, capture_output=True)
    if have.returncode:
        pytest.skip("python-dbusmock is missing: install the package 'python3-dbusmock' ('python3-dbusmock' on Fedora)")
    written = [] if log is None else ["--logfile", str(log)]
    process = subprocess.Popen(
        [MOCK_PYTHON, "-m", "dbusmock", "--system", *written, "--template", template, *parameters],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def call(address: str, *arguments: str) -> str:
    """Call a method with dbus-send(1): destination, path, interface.method, arguments; the answer as it prints it."""
    destination, path, method, *rest = arguments
    done = subprocess.run(
        ["dbus-send", f"--bus={address}", "--print-reply", f"--dest={destination}", path, method, *rest],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout if done.returncode == 0 else ""
