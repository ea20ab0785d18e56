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

from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import Host
from psiphon_vpn.system.layout import GROUP, USER

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
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60) -> float:
    """Wait; returns how long it took, in seconds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            pytest.fail(f"{what} did not come within {seconds:g} s")
        time.sleep(0.005)
    return time.monotonic() - begin


@contextlib.contextmanager
def run_bus(path: Path, client: Host | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A message bus of our own at this path; its address and its process.

    client: the host of the laboratory that it runs on. A bus knows only users that have a name, so the host gets one.
    """
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is missing: install the package 'dbus' (Fedora: 'dbus-daemon')")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    config = path.with_suffix(".conf")
    config.write_text(CONFIG.format(path=path))
    argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog"]
    if client is None:
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    else:
        _name_user(client, path.parent)
        process = client.spawn(argv, stderr=subprocess.DEVNULL)
    try:
        wait_until(path.exists, "the bus")
        path.chmod(0o666)
        yield f"unix:path={path}", process
    finally:
        process.kill()
        process.wait()


def _name_user(client: Host, directory: Path) -> None:
    for name, line in (
        ("passwd", f"{USER}:x:{LAB_UID}:{LAB_UID}::/:/usr/sbin/nologin\n"),
        ("group", f"{GROUP}:x:{LAB_UID}:\n"),
    ):
        original = Path("/etc") / name
        text = original.read_text(encoding="utf-8")
        # In this host's own view of the files only.
        own = directory / name
        own.write_text(text + ("" if line.split(":")[0] + ":" in text else line), encoding="utf-8")
        client.run(["mount", "--bind", own, original])


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


class Logind:
    """The mock of logind: what it was asked for, and what it announces."""

    def __init__(self, address: str) -> None:
        self._address = address

    def inhibitors(self) -> int:
        """How many delay locks for sleep of ours there are now."""
        listing = call(self._address, *LOGIND[:2], f"{LOGIND[2]}.ListInhibitors")
        return listing.count('"psiphon-vpn"')

    def announce(self, *, sleep: bool) -> None:
        """PrepareForSleep."""
        code = (
            "import dbus,sys;b=dbus.bus.BusConnection(sys.argv[1]);"
            "o=b.get_object(sys.argv[2],sys.argv[3]);"
            "o.EmitSignal(sys.argv[4],'PrepareForSleep','b',[sys.argv[5]=='1'],"
            "dbus_interface='org.freedesktop.DBus.Mock')"
        )
        subprocess.run([MOCK_PYTHON, "-c", code, self._address, *LOGIND, "1" if sleep else "0"], check=True, timeout=60)


_ANNOUNCER = (
    "import dbus,sys;b=dbus.bus.BusConnection(sys.argv[1])\n"
    "for line in sys.stdin:\n"
    " o=b.get_object(sys.argv[2],sys.argv[3])\n"
    " o.EmitSignal(sys.argv[4],'PrepareForSleep','b',[line=='1\\n'],dbus_interface='org.freedesktop.DBus.Mock')\n"
    " print(flush=True)\n"
)


@contextlib.contextmanager
def run_announcer(address: str) -> Iterator[Callable[[bool], None]]:
    """PrepareForSleep of the mock of logind, again and again: what `Logind.announce` does, by one process."""
    process = subprocess.Popen(
        [MOCK_PYTHON, "-c", _ANNOUNCER, address, *LOGIND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines_in, lines_out = process.stdin, process.stdout

    def announce(sleep: bool) -> None:
        lines_in.write("1\n" if sleep else "0\n")
        lines_in.flush()
        assert lines_out.readline() == "\n", "the announcer ended"

    with process:
        try:
            yield announce
        finally:
            process.kill()
