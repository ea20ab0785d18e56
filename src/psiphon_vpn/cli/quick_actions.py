# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the quick commands do; `status` and its like need neither click nor asyncio."""

from __future__ import annotations

import os
from collections.abc import Callable

from psiphon_vpn import client
from psiphon_vpn.cli import quick_options, view
from psiphon_vpn.errors import NotRootError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.terminal import echo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from psiphon_vpn.cli.view import Prepare
    from psiphon_vpn.client import Directory


def status(runtime_dir: Directory, *, as_json: bool, watch: bool, prepare: Prepare | None = None) -> int:
    """Print the status and return its exit code. prepare: as `view.find_status`."""
    if watch:
        if prepare is not None:
            prepare()
        view.watch(runtime_dir, as_json=as_json)
        return 0
    found = view.find_status(runtime_dir, prepare=prepare)
    echo(view.render_json(found) if as_json else view.render_text(found))
    return view.find_exit_code(found)


def stop(runtime_dir: Directory) -> int:
    """Disconnect."""
    _need_root("stop")
    return _send(runtime_dir, "stop", _("The tunnel is closed."))


def restart(runtime_dir: Directory) -> int:
    """Disconnect and connect again."""
    _need_root("restart")
    _restore_owner(runtime_dir)
    return _send(runtime_dir, "restart", _("The service is connecting again."))


def reload(runtime_dir: Directory) -> int:
    """Read the configuration again."""
    _need_root("reload")
    _restore_owner(runtime_dir)
    return _send(runtime_dir, "reload", _("The configuration has been read again."))


def start(
    runtime_dir: Directory, *, cut_remote: bool, wait: bool, seconds: float, prepare: Prepare | None = None
) -> int:
    """Connect. On an installed machine this also ends `release`. prepare: called before the kernel is read."""
    _need_root("start")
    _restore_owner(runtime_dir)
    # Another runtime directory belongs to a laboratory's service, which must not touch the installed one.
    if _is_installed(runtime_dir) and not _runs_locked(runtime_dir):
        from psiphon_vpn.cli.starting import start_if_stopped
        from psiphon_vpn.system.linux_platform import open_platform

        if prepare is not None:
            prepare()
        start_if_stopped(open_platform(), cut_remote=cut_remote)
    found = client.send_command(runtime_dir, "start")
    if wait:
        from pathlib import Path

        from psiphon_vpn.cli.waiting import wait_until_open

        return wait_until_open(Path(runtime_dir), seconds)
    echo(_("The service is connecting."))
    echo(view.render_text(found))
    return 0


def system_sleep(runtime_dir: Directory, *, word: str) -> int:
    """Announce a sleep or its end. After "begin" returns, the kernel holds no lease."""
    _need_root("system-sleep")
    name = {"begin": "sleep-begins", "end": "sleep-ended"}[word]
    client.send_command(runtime_dir, name, timeout=client.SLEEP_SECONDS)
    return 0


def _need_root(name: str) -> None:
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {name}")


def _is_installed(runtime_dir: Directory) -> bool:
    return os.path.normpath(runtime_dir) == quick_options.DEFAULT_RUNTIME_DIR


def _runs_locked(runtime_dir: Directory) -> bool:
    """Whether the set-up is done, and the service runs and finds the kernel's rules locked: there is nothing to start.

    Whatever else it may be is looked at by `start_if_stopped`, which costs several times as much.
    """
    from psiphon_vpn.system.layout import Layout
    from psiphon_vpn.system.stage import Stage, read_stage

    try:
        if read_stage(Layout().install_journal) is not Stage.INSTALLED:
            return False
        return client.request_status(runtime_dir).get("locked") is True
    except UserError:
        return False


def _restore_owner(runtime_dir: Directory) -> None:
    if not _is_installed(runtime_dir):
        return
    from pathlib import Path

    from psiphon_vpn.cli.config_place import restore_configuration_owner

    restore_configuration_owner(Path(runtime_dir))


def _send(runtime_dir: Directory, name: str, done: str) -> int:
    found = client.send_command(runtime_dir, name)
    echo(done)
    echo(view.render_text(found))
    return 0


ACTIONS: Final[dict[str, Callable[..., int]]] = {
    quick_options.STATUS.name: status,
    quick_options.START.name: start,
    quick_options.STOP.name: stop,
    quick_options.RESTART.name: restart,
    quick_options.RELOAD.name: reload,
    quick_options.SYSTEM_SLEEP.name: system_sleep,
}
"""By name of the command. Each is called with the runtime directory, and with the command's parameters by name."""
