# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""psiphon-vpnd: connects the parts. Runs as psiphon-user with CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE."""

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psiphon_vpn.config import Settings, load_settings
from psiphon_vpn.core.image import CoreSource
from psiphon_vpn.errors import ConfigError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.linux.commits import Commits
from psiphon_vpn.linux.controlgroup import find_control_group
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.linux.frame_guard import read_guarded_cards
from psiphon_vpn.linux.identity import find_identity
from psiphon_vpn.linux.lease import holds_lease
from psiphon_vpn.linux.lock import Lock
from psiphon_vpn.linux.monitor import open_network_monitor
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nft import lease_remains
from psiphon_vpn.linux.nftimage import find_owner
from psiphon_vpn.linux.queueing import find_own_port
from psiphon_vpn.linux.routes import apply_routes, apply_rules
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.network.bridges import FILE_NAME as BRIDGES
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.own_tables import GUARD
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.run import CommandError
from psiphon_vpn.servers.errors import ListError
from psiphon_vpn.servers.fetched import FILE_NAME as FETCHED_LIST
from psiphon_vpn.servers.fetched import FetchedLists
from psiphon_vpn.servers.handing import Handing
from psiphon_vpn.servers.profile import PROFILES
from psiphon_vpn.servers.record import ListRecord
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.service.control import ControlServer
from psiphon_vpn.service.culprit import OwnPorts
from psiphon_vpn.service.events import (
    SettingsBad,
    SettingsGood,
    UserRestart,
    UserStart,
    UserStop,
)
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.intent import load_intent
from psiphon_vpn.service.memory import Tidier, end_without_memory
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.observer import Observer
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.sdnotify import notify
from psiphon_vpn.service.single_instance import claim_instance
from psiphon_vpn.service.sleep import SleepGuard
from psiphon_vpn.service.status import StatusReader
from psiphon_vpn.service.watchdog import Watchdog, read_allowed
from psiphon_vpn.service.watchers import watch_commits, watch_network
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.reader_list import FILE_NAME, load_readers
from psiphon_vpn.tasks import call_at_signal, describe, run_alongside

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.05
"""Delay before a change is published: reading the kernel for watchers must not slow the change itself down."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The daemon's files and directories."""

    config: Path
    state_dir: Path
    runtime_dir: Path
    core: CoreSource
    servers: Path | None = None
    """Root's server lists; None: there are none."""


class Daemon:
    """The parts and their connections, and the backend of the control socket."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._identity = find_identity()
        self._store = None if paths.servers is None else ServerStore(Layout(), directory=paths.servers)
        self._handing = Handing(
            self._store,
            profiles_dir=paths.config.with_name(PROFILES),
            fetched=paths.state_dir / FETCHED_LIST,
        )
        self._runner: Runner
        self._lock: Lock
        self._status: StatusReader
        self._control: ControlServer
        self._sleep: SleepGuard
        self._observer: Observer
        self._changed = asyncio.Event()
        self._tidier: Tidier

    async def run(self) -> None:
        """Run until a signal. Stopping opens nothing.

        Raises:
            UserError: the machine lacks something that the lock cannot do without.
        """
        claim = claim_instance(self._paths.runtime_dir / "daemon.lock")
        netlink = NftSocket()
        try:
            features = await probe_features()
            self._control_group = await find_control_group() if features.nftables else None
        except CommandError:
            # Not known is not missing: the service manager starts the daemon anew.
            await self._lock_by_routing_alone()
            raise
        if not features.nftables:
            await self._lock_by_routing_alone()
            raise UserError(
                _("The lock cannot be closed"),
                _("nftables does not work on this machine; only the routes are blocked, which is not enough"),
                _("Install the package 'nftables', and see that the kernel has nf_tables; until then stay offline."),
            )
        self._netlink, self._features = netlink, features
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            call_at_signal(number, stopping.set)
        commits = Commits()
        routes = RouteSocket()
        self._own = OwnPorts(routes=routes.port, commits=netlink.port, queries=find_own_port())
        self._lock = Enforcer(
            identity=self._identity, netlink=netlink, routes=routes, features=features, commits=commits
        )
        await self._serve(stopping, netlink, features, commits)
        routes.close()
        commits.close()
        netlink.close()
        if claim is not None:
            os.close(claim)

    def _read_list(self) -> ListRecord | None:
        """The record of the stored list, for the status; whether the list may be used is decided where it is used."""
        try:
            return None if self._store is None else self._store.read_current()
        except ListError:
            return None

    def _hear_of_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error that the event loop could hand to nothing else. The lock does not depend on clients."""
        error = context.get("exception")
        if isinstance(error, MemoryError):
            end_without_memory()
        if error is None or {"transport", "socket", "server", "client_connected_cb"} & context.keys():
            loop.default_exception_handler(context)
        else:
            self._runner.lose(Part.LOOP, error)

    async def _lock_by_routing_alone(self) -> None:
        """Lock what can be locked without rules: only a program that is bound to an interface finds a route."""
        rules = [rule for rule in build_rules(self._identity) if rule.uid_range is None]
        with contextlib.closing(RouteSocket()) as socket:
            await apply_routes(socket, build_routes(tun=False, open_ipv4=False, open_ipv6=False), None)
            await apply_rules(socket, rules)

    async def _serve(self, stopping: asyncio.Event, netlink: NftSocket, features: Features, commits: Commits) -> None:
        watchdog = Watchdog(read_allowed())
        self._runner = Runner(
            surroundings=Surroundings(
                identity=self._identity,
                core=self._paths.core,
                state_dir=self._paths.state_dir,
                lists=FetchedLists(
                    self._paths.state_dir / FETCHED_LIST,
                    store=self._store,
                    profiles_dir=self._paths.config.with_name(PROFILES),
                ),
                control_group=self._control_group,
                handing=self._handing,
            ),
            lock=self._lock,
            model=Model(intent=load_intent(self._paths.state_dir / "intent")),
            on_change=self._changed.set,
            has_slept=self._check_clock,
            on_renewal=watchdog.renewed,
        )
        self._observer = Observer(
            runner=self._runner,
            netlink=netlink,
            features=features,
            uid=self._identity.uid,
            bridges=self._paths.config.with_name(BRIDGES),
        )
        self._sleep = SleepGuard(runner=self._runner, lease_remains=lease_remains, look_at_links=self._observer.look)
        self._status = StatusReader(
            runner=self._runner,
            lock=self._lock,
            features=features,
            # The first generation with the same rules, and the wire guard's holder: no commit tells of its end.
            rules=lambda: (commits.find_origin(netlink.read_generation()), find_owner(netlink, *GUARD.address)),
            guarded_cards=lambda: read_guarded_cards(netlink),
            holds_lease=lambda: holds_lease(netlink),
            boot_lock_failed=Layout().boot_lock_failure.exists,
            read_list=self._read_list,
        )
        self._control = ControlServer(self._paths.runtime_dir / "control.sock", gid=self._identity.gid, backend=self)
        tasks = self._runner.tasks
        asyncio.get_running_loop().set_exception_handler(self._hear_of_fault)
        call_at_signal(signal.SIGHUP, tasks.guard(Part.SETTINGS, self._reload))
        self._tidier = Tidier(self._is_quiet, tasks)
        handling = tasks.start(Part.EVENTS, self._runner.run())
        try:
            # The settings first, so that no core starts without the user's own.
            self._reload()
            # Locked before anything else is read, which could fail.
            await self._runner.settle()
            healer = Healer(runner=self._runner, lock=self._lock, own=self._own, look_at_links=self._observer.look)
            watch_commits(commits, healer.on_commit, tasks)
            watch_network(open_network_monitor(), healer.on_network, tasks)
            try:
                await self._observer.look()
            except Exception as error:  # noqa: BLE001  the watch of links goes on with it
                self._runner.lose(Part.LINKS, error)
                healer.on_network(None)
            # Locked before any client is answered.
            await self._runner.settle()
            tasks.keep(Part.LINKS, healer.watch_network)
            tasks.keep(Part.ROUTES, healer.watch_routes)
            tasks.keep(Part.RULES, healer.watch_rules)
            tasks.keep(Part.TRAFFIC, healer.watch_filters)
            tasks.keep(Part.GUARDS, healer.watch_guards)
            tasks.keep(Part.PUBLISHING, self._publish_changes)
            tasks.keep(Part.WATCHDOG, watchdog.run)
            tasks.keep(Part.BRIDGES, self._observer.watch_bridges)
            self._sleep.watch_jumps()
            await self._control.start()
            notify("READY=1")
            async with run_alongside(stopping.wait()) as stopped, run_alongside(tasks.wait_broken()) as broken:
                await asyncio.wait({handling, stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
                if not stopped.done():
                    # A defect that only the service manager can still report.
                    raise RuntimeError("the service no longer handles events") from tasks.broken
        finally:
            notify("STOPPING=1")
            self._tidier.cancel()
            self._observer.close()
            await self._runner.stop()
            await tasks.close()
            await self._control.close()

    async def status(self) -> dict[str, object]:
        """The status object of the control protocol."""
        return await self._status.read()

    async def command(self, name: str) -> dict[str, object]:
        """Carry out a command, as far as the state machine can decide at once.

        Raises:
            UserError: the configuration is not usable.
        """
        match name:
            case "start":
                await self._begin(UserStart)
            case "stop":
                self._runner.post(UserStop())
            case "restart":
                await self._begin(UserRestart)
            case "sleep-begins":
                await self._sleep.prepare()
                # Answered at once: the machine waits for it, and need not wait for the end of the core.
                return {}
            case "sleep-ended":
                await self._sleep.resume()
            case "reload":
                error = self._reload()
                await self._observer.judge_again()
                await self._raise_settled(error)
        await self._runner.settle()
        return await self.status()

    async def _begin(self, kind: type[UserStart | UserRestart]) -> None:
        """Connect as the configuration says now: a corrected mistake needs no command of its own.

        An unusable one is reported before the wish to connect, so that no core starts with the former one.
        """
        read = self._read_settings()
        if isinstance(read, Settings):
            self._runner.post(kind(read))
            return
        self._runner.post(SettingsBad(read.why))
        self._runner.post(kind())
        await self._raise_settled(read)

    async def _raise_settled(self, error: ConfigError | None) -> None:
        if error is not None:
            await self._runner.settle()
            raise error

    def _check_clock(self) -> bool:
        return self._sleep.check_clock()

    def _reload(self) -> ConfigError | None:
        self._control.allow(load_readers(self._paths.config.with_name(FILE_NAME)))
        self._observer.read_list()
        read = self._read_settings()
        if isinstance(read, ConfigError):
            self._runner.post(SettingsBad(read.why))
            return read
        self._runner.post(SettingsGood(read))
        return None

    def _read_settings(self) -> Settings | ConfigError:
        """The configuration, or what is wrong with it."""
        try:
            settings = load_settings(self._paths.config, profiles=self._paths.config.with_name(PROFILES))
        except ConfigError as error:
            log.error("configuration: line %s: not usable", error.line)
            return error
        except Exception as error:  # noqa: BLE001  whatever the file contains: locked, with the file as the reason
            log.error("configuration: not usable: %s", describe(error))
            return ConfigError(self._paths.config, describe(error), "")
        logging.getLogger().setLevel(settings.log_level.upper())
        return settings

    async def _publish_changes(self) -> None:
        """Send changes to watchers and the service manager; changes in quick succession are sent together."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(REPORT_SECONDS)
            self._changed.clear()
            if self._control.watched:
                self._control.publish(await self.status())
            notify(f"STATUS={self._runner.shown.state}: {self._runner.shown.reason}")
            self._tidier.changed()

    def _is_quiet(self) -> bool:
        return not self._runner.busy and self._runner.model.state not in {State.CONNECTING, State.VERIFYING}


def read_paths(*, config: Path, core: CoreSource, servers: Path | None = None) -> Paths:
    """The directories that the service manager provides (systemd.exec(5))."""
    return Paths(
        config=config,
        core=core,
        servers=servers,
        state_dir=Path(os.environ.get("STATE_DIRECTORY", "/var/lib/psiphon-vpn")),
        runtime_dir=Path(os.environ.get("RUNTIME_DIRECTORY", "/run/psiphon-vpn")),
    )
