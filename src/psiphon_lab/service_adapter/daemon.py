# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the daemon as its unit does, but without a service manager, and talks to it."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from psiphon_lab.launch import SOURCE_ROOT
from psiphon_vpn import client
from psiphon_vpn.config import parse_settings
from psiphon_vpn.core.record import RECORD_NAME
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.errors import UserError

DAEMON: Final = ("-m", "psiphon_vpn.service")
"""What Python runs as the daemon."""
CAPABILITIES: Final = ("net_admin", "net_raw", "net_bind_service")
"""The daemon's capabilities (R8), as setpriv(1) writes them."""
CORE_FLAG: Final = "-tunDevice"
"""A flag on the command line of every core that the daemon starts."""
STATUS_SECONDS: Final = 30.0
WATCHDOG_SECONDS: Final = 20
"""WatchdogSec= of the unit: the daemon wakes for it, so what counts its wake-ups needs it too."""


def render_settings(settings: Mapping[str, Any], *, entry: str | None) -> str:
    """The text of a configuration file.

    Args:
        settings: options of its top level.
        entry: the only server that the core may use; None leaves it without any.
    """
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += ["[core.advanced]"]
    lines += [] if entry is None else [f"TargetServerEntry = {json.dumps(entry)}"]
    return "\n".join([*lines, "DisableRemoteServerListFetcher = true", ""])


def build_arguments(
    *, config: Path, core: Path, core_sha256: str | None = None, servers: Path | None = None
) -> list[str | Path]:
    """The daemon's arguments.

    Args:
        config: the configuration file.
        core: the core's program, or the record of an installed one.
        core_sha256: the SHA-256 that the daemon expects; None for the program's real one, or the record's.
        servers: the directory of root's server lists; None if there are none.
    """
    if core.name == RECORD_NAME and core_sha256 is None:
        chosen: list[str | Path] = ["--core-record", core]
    else:
        chosen = ["--core", core, "--core-sha256", core_sha256 or hashlib.sha256(core.read_bytes()).hexdigest()]
    chosen += [] if servers is None else ["--servers", servers]
    return ["--config", config, *chosen]


def build_environment(*, state_dir: Path, runtime_dir: Path) -> dict[str, str]:
    """The environment in which a unit starts the daemon."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(SOURCE_ROOT),
        "STATE_DIRECTORY": str(state_dir),
        "RUNTIME_DIRECTORY": str(runtime_dir),
        "WATCHDOG_USEC": f"{WATCHDOG_SECONDS * 1_000_000}",
        "LC_ALL": "C.UTF-8",
    }


def run_daemon() -> int:
    """Run the daemon in this process; its exit code."""
    from psiphon_vpn.service import __main__ as daemon

    return daemon.main()


def request_status(runtime_dir: Path) -> dict[str, Any] | None:
    """The daemon's status by its control socket, or None if it does not answer."""
    try:
        return dict(client.request_status(runtime_dir, timeout=STATUS_SECONDS))
    except UserError:
        return None


def send_command(runtime_dir: Path, name: str) -> dict[str, Any]:
    """Send a command to the control socket; the status after it.

    Raises:
        UserError: the daemon does not answer, or refuses.
    """
    return dict(client.send_command(runtime_dir, name))


def build_client_command(runtime_dir: Path) -> list[str]:
    """The beginning of a command line that runs `psiphon-vpn` from this checkout for a daemon of the laboratory."""
    return [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(runtime_dir)]


def build_quick_command(runtime_dir: Path, byte_code: Path) -> list[str]:
    """The same, run like the installed program: without site packages, with byte code in a given directory."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE_ROOT)!r}); from psiphon_vpn.__main__ import main; main()"
    interpreter = [sys.executable, "-IS", "-X", f"pycache_prefix={byte_code}"]
    return [*interpreter, "-c", code, "--runtime-dir", str(runtime_dir)]


def render_client_command(runtime_dir: Path) -> str:
    """The same for a shell."""
    return shlex.join(build_client_command(runtime_dir))


def render_bare_core_config(*, entry: str | None, data_dir: Path) -> dict[str, Any]:
    """The configuration that the daemon would write for its core: for a core that runs without the service.

    entry: see `render_settings`.
    """
    text = render_settings({}, entry=entry)
    return dict(render_core_config(parse_settings(text.encode()), data_dir=data_dir, network_id="WIRED-bare"))
