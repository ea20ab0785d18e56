# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core's process: started without privileges, its standard error always read, its end always noticed."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.core.events import CoreEvent
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.notices import MAX_LINE, parse_notice
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.policy import names
from psiphon_vpn.run import CLEAN_ENV
from psiphon_vpn.tasks import Supervisor, call_when_readable, describe, forget_readable

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""How long an orderly stop may take: the real core waits about a second for its server's last answer."""
_CHUNK = 65536


class CoreError(Exception):
    """The core cannot be started.

    Attributes:
        flaw: the flaw of its program; None if the reason is something else.
    """

    def __init__(self, detail: str, *, flaw: CoreFlaw | None = None) -> None:
        super().__init__(detail)
        self.flaw = flaw


@dataclass(frozen=True, kw_only=True)
class CorePlan:
    """Everything that a start of the core needs.

    Attributes:
        data_dir: its data directory, also its working directory: it moves files that it finds there
            (psiphon-tunnel-core's migration of old installations).
        config: its configuration, made by `render_core_config`.
        uplink: interface that all its sockets are bound to.
        dns_servers: resolvers for its own look-ups outside the tunnel; the firewall decides whether it can reach them.
        server_list: descriptor of the server entries that it knows from the start; None: there are none.
    """

    data_dir: Path
    config: dict[str, object]
    uplink: str
    dns_servers: tuple[str, ...] = ()
    server_list: int | None = None


# If the parent ended before setpriv requested the signal, none comes: then nothing must be started.
_ONLY_UNDER_PARENT = '[ "$PPID" = "$0" ] && unset PWD && exec "$@"'


def build_argv(plan: CorePlan, config_path: Path, *, program: str, parent: int) -> list[str]:
    """The command. setpriv(1) removes every capability permanently, and ties the core's life to the daemon's.

    The kernel kills the core when the daemon ends for any reason (PR_SET_PDEATHSIG), so that no core is left running
    without a daemon.

    Args:
        plan: what to start.
        config_path: path of its configuration.
        program: path of the sealed copy, as the new process sees it.
        parent: process id of the daemon.
    """
    return [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--pdeathsig=KILL",
        "--",
        "sh",
        "-c",
        _ONLY_UNDER_PARENT,
        str(parent),
        program,
        "-config",
        str(config_path),
        "-dataRootDirectory",
        str(plan.data_dir),
        "-tunDevice",
        names.TUN_NAME,
        "-tunBindInterface",
        plan.uplink,
        "-tunDNSServers",
        # Without the flag the core would query a public resolver of its own choice.
        ",".join(plan.dns_servers or (names.RESOLVER_IPV4,)),
        *(() if plan.server_list is None else ("-serverList", f"/proc/self/fd/{plan.server_list}")),
    ]


def write_config(path: Path, config: dict[str, object]) -> None:
    """Write the core's configuration atomically, readable by its owner alone."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(config, file)
    temporary.replace(path)


class CoreProcess:
    """One run of the core.

    Args:
        on_event: called for each event.
        on_exit: called once, when the process has ended and its output was read, unless `stop` ended it.
    """

    def __init__(self, *, on_event: Callable[[CoreEvent], None], on_exit: Callable[[int], None]) -> None:
        self._on_event = on_event
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._tasks = Supervisor(self._lose)
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def start(self, plan: CorePlan, sealing: Sealing) -> None:
        """Start the core from the sealed copy of its program, if that passed the check.

        Args:
            plan: what to start.
            sealing: the copy that is being made and checked.

        Raises:
            CoreError: the core cannot be started.
        """
        config_path = plan.data_dir / "config.json"
        try:
            plan.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_config(config_path, plan.config)
            image, program = await sealing.take()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *build_argv(plan, config_path, program=program, parent=os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=plan.data_dir,
                    env=dict(CLEAN_ENV),
                    umask=0o077,
                    start_new_session=True,
                    pass_fds=(image,) if plan.server_list is None else (image, plan.server_list),
                )
            finally:
                os.close(image)
        except CoreFlawError as error:
            raise CoreError(error.why, flaw=error.flaw) from error
        except OSError as error:
            raise CoreError(str(error)) from error
        _end_group_with(self._process.pid)
        self._reader = self._tasks.start("reading of notices", self._read(self._process))

    def _lose(self, part: str, error: BaseException) -> None:
        """End a core whose notices are no longer read, since it would stall on a full pipe, and report its end."""
        log.error("%s failed: %s; the core is ended", part, describe(error))
        if self._process is not None and self._process.returncode is None:
            self._signal(self._process, signal.SIGKILL)
        if not self._stopping:
            self._stopping = True
            self._on_exit(-signal.SIGKILL)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Read to the end, whatever arrives: a full pipe would stall the core, a closed one would kill it."""
        assert process.stderr is not None
        pending, skipping = b"", False
        while chunk := await process.stderr.read(_CHUNK):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if not skipping:
                    self._handle(line)
                skipping = False
            if len(pending) > MAX_LINE:
                # An endless line: its rest is discarded as it arrives.
                pending, skipping = b"", True
        code = await process.wait()
        if not self._stopping:
            self._on_exit(code)

    def _handle(self, line: bytes) -> None:
        event = parse_notice(line)
        if event is not None and not self._stopping:
            self._on_event(event)

    async def stop(self, *, graceful: bool) -> None:
        """End the core, gracefully or at once, and wait until it has ended."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self._signal(process, signal.SIGTERM if graceful else signal.SIGKILL)
            if graceful:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOP_SECONDS):
                        await process.wait()
            if process.returncode is None:
                self._signal(process, signal.SIGKILL)
            await process.wait()
        if self._reader is not None:
            with contextlib.suppress(TimeoutError):
                # A descendant that keeps the pipe open must not delay us.
                async with asyncio.timeout(1.0):
                    await asyncio.shield(self._reader)
            self._tasks.cancel(self._reader)

    @staticmethod
    def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
        # The core leads its own session: its children are killed with it.
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)


def _end_group_with(leader: int) -> None:
    """When the leader of a process group ends, kill the rest of the group.

    A descendant that keeps the pipe open would hide the core's end: only the pipe's end of file shows that everything
    was read. A pidfd is readable once its process has ended (pidfd_open(2), Linux 5.3).
    """

    def kill_group() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)

    def ended() -> None:
        forget_readable(descriptor)
        os.close(descriptor)
        kill_group()

    try:
        descriptor = os.pidfd_open(leader)
    except ProcessLookupError:
        kill_group()
        return
    call_when_readable(descriptor, ended)
