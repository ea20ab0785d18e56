"""psiphon-vpnd: puts the parts together. Runs as psiphon-user with CAP_NET_ADMIN, CAP_NET_RAW, CAP_NET_BIND_SERVICE."""

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
from psiphon_vpn.linux.core_sockets import read_core_uses
from psiphon_vpn.linux.enforcer import Enforcer
from psiphon_vpn.linux.features import Features, probe_features
from psiphon_vpn.linux.identity import find_identity
from psiphon_vpn.linux.links import read_snapshot
from psiphon_vpn.linux.monitor import open_network_monitor
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nft import lease_remains
from psiphon_vpn.linux.nftimage import is_owned
from psiphon_vpn.linux.routes import apply_routes, apply_rules
from psiphon_vpn.linux.rtnetlink import RouteSocket
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.own_tables import BRIDGES as BRIDGES_TABLE
from psiphon_vpn.policy.routing import build_routes, build_rules
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.service.bridges import FILE_NAME as BRIDGES
from psiphon_vpn.service.bridges import Allowed, Standing, explain_standing, judge_bridges, list_in_force, load_bridges
from psiphon_vpn.service.choice import Use, carries_on
from psiphon_vpn.service.control import ControlServer
from psiphon_vpn.service.events import (
    LinksChanged,
    OnLinkChanged,
    SettingsBad,
    SettingsGood,
    UplinkSeen,
    UserRestart,
    UserStart,
    UserStop,
)
from psiphon_vpn.service.healer import Healer
from psiphon_vpn.service.intent import load_intent
from psiphon_vpn.service.memory import Tidier, end_without_memory
from psiphon_vpn.service.model import Model
from psiphon_vpn.service.parts import Part
from psiphon_vpn.service.readers import FILE_NAME, load_readers
from psiphon_vpn.service.runner import Runner, Surroundings
from psiphon_vpn.service.sdnotify import notify
from psiphon_vpn.service.single import claim_machine
from psiphon_vpn.service.sleep import SleepGuard
from psiphon_vpn.service.status import StatusReader
from psiphon_vpn.service.uplink import (
    Snapshot,
    Uplink,
    find_conflicts,
    find_headerless,
    find_inner,
    find_leading,
    find_neighbourhood,
    find_odd_wires,
    find_ownerless_uplink,
    find_wires,
    has_odd_uplink,
    list_uplinks,
)
from psiphon_vpn.service.watchers import watch_commits, watch_network
from psiphon_vpn.tasks import beside, call_at_signal, describe

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = (0.02, 0.1, 0.5)
TELL_SECONDS = 0.05
"""Watchers are told so much after a change: reading the kernel for them must not slow the change itself down."""
MIN_WATCHDOG_SECONDS = 1.0
BRIDGE_GUARD_SECONDS = 2.0
"""How often the bridge guard is looked for: that a holder ended the kernel tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where the daemon finds and keeps its things."""

    config: Path
    state_dir: Path
    runtime_dir: Path
    core: CoreSource


class Daemon:
    """The parts, and the wires between them. Also what the control socket talks to."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._identity = find_identity()
        self._runner: Runner
        self._enforcer: Enforcer
        self._status: StatusReader
        self._control: ControlServer
        self._sleep: SleepGuard
        self._changed = asyncio.Event()
        self._tidier: Tidier
        self._ways: tuple[tuple[int, tuple[str, ...], tuple[int, ...], tuple[InterfaceName, ...]], ...] = ()
        """What the rules may have to name of each uplink that there is."""
        self._leading: frozenset[int] = frozenset()
        """Indexes of the interfaces that lead out, or did."""
        self._allowed: tuple[InterfaceName, ...] = ()
        """Bridges that root named."""
        self._list_read = asyncio.Event()
        self._looking = asyncio.Lock()
        """Not only one of us looks, and what was read first is told first."""

    async def run(self) -> None:
        """Run until a signal says otherwise. Stopping opens nothing.

        Raises:
            UserError: the machine lacks what not even a lock can do without.
        """
        claim = claim_machine(self._paths.runtime_dir / "daemon.lock")
        netlink = NftSocket()
        features = await probe_features()
        if not features.nftables:
            await self._lock_by_routing_alone()
            raise UserError(
                _("The lock cannot be closed"),
                _("nftables does not work on this machine; only the routes are blocked, which is not enough"),
                _("Install the package 'nftables', and see that the kernel has nf_tables; until then stay offline."),
            )
        self._netlink, self._features = netlink, features
        self._control_group = await find_control_group()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            call_at_signal(number, stopping.set)
        commits = Commits()
        self._enforcer = Enforcer(identity=self._identity, netlink=netlink, features=features, commits=commits)
        await self._serve(stopping, netlink, features, commits)
        commits.close()
        netlink.close()
        if claim is not None:
            os.close(claim)

    def _hear_of_fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the event loop has nobody to tell of. Connections of clients are no part of what the lock rests on."""
        error = context.get("exception")
        if isinstance(error, MemoryError):
            end_without_memory()
        if error is None or {"transport", "socket", "server", "client_connected_cb"} & context.keys():
            loop.default_exception_handler(context)
        else:
            self._runner.lose(Part.LOOP, error)

    async def _lock_by_routing_alone(self) -> None:
        """What can be locked without rules: no program finds a route but by asking for an interface itself."""
        rules = [rule for rule in build_rules(self._identity) if rule.uid_range is None]
        with contextlib.closing(RouteSocket()) as socket:
            await apply_routes(socket, build_routes(tun=False, open_ipv4=False, open_ipv6=False), None)
            await apply_rules(socket, rules)

    async def _serve(self, stopping: asyncio.Event, netlink: NftSocket, features: Features, commits: Commits) -> None:
        self._runner = Runner(
            surroundings=Surroundings(
                identity=self._identity,
                core=self._paths.core,
                state_dir=self._paths.state_dir,
                control_group=self._control_group,
            ),
            enforcer=self._enforcer,
            model=Model(intent=load_intent(self._paths.state_dir / "intent")),
            settings=Settings(),
            on_change=self._changed.set,
            has_slept=self._check_clock,
        )
        self._sleep = SleepGuard(runner=self._runner, lease_remains=lease_remains, look_at_links=self._look_at_links)
        self._status = StatusReader(
            runner=self._runner,
            enforcer=self._enforcer,
            features=features,
            generation=lambda: commits.find_origin(netlink.read_generation()),
        )
        self._control = ControlServer(self._paths.runtime_dir / "control.sock", gid=self._identity.gid, backend=self)
        tasks = self._runner.tasks
        asyncio.get_running_loop().set_exception_handler(self._hear_of_fault)
        call_at_signal(signal.SIGHUP, tasks.guard(Part.SETTINGS, self._reload))
        self._tidier = Tidier(self._is_quiet, tasks)
        handling = tasks.start(Part.EVENTS, self._runner.run())
        # The settings first: no core is started with any but the user's own.
        self._reload()
        # Locked before anything else is looked at, and could fail.
        await self._runner.settle()
        healer = Healer(runner=self._runner, enforcer=self._enforcer, look_at_links=self._look_at_links)
        watch_commits(commits, healer.on_commit, tasks)
        watch_network(open_network_monitor(), healer.on_network, tasks)
        try:
            await self._look_at_links()
        except Exception as error:  # noqa: BLE001  the watch of links goes on with it
            self._runner.lose(Part.LINKS, error)
            healer.on_network(None)
        # Locked before anybody is answered.
        await self._runner.settle()
        tasks.keep(Part.LINKS, healer.watch_network)
        tasks.keep(Part.ROUTES, healer.watch_routes)
        tasks.keep(Part.RULES, healer.watch_rules)
        tasks.keep(Part.TRAFFIC, healer.watch_filters)
        tasks.keep(Part.TELLING, self._publish_changes)
        tasks.keep(Part.WATCHDOG, self._feed_watchdog)
        tasks.keep(Part.BRIDGES, self._watch_bridges)
        await self._enforcer.get_ready()
        self._sleep.watch_jumps()
        await self._control.start()
        notify("READY=1")
        try:
            async with beside(stopping.wait()) as stopped, beside(tasks.wait_broken()) as broken:
                await asyncio.wait({handling, stopped, broken}, return_when=asyncio.FIRST_COMPLETED)
                if not stopped.done():
                    # A defect, and nothing is left that could say so but the service manager.
                    raise RuntimeError("the service handles no events any more") from tasks.broken
        finally:
            notify("STOPPING=1")
            self._tidier.cancel()
            await self._runner.stop()
            await tasks.close()
            await self._control.close()
            self._enforcer.shut_down()

    async def status(self) -> dict[str, object]:
        """The status object of the control protocol."""
        return await self._status.read()

    async def command(self, name: str) -> dict[str, object]:
        """Carry a command out as far as the state machine decides at once.

        Raises:
            UserError: the configuration is not usable.
        """
        match name:
            case "start":
                self._runner.post(UserStart())
            case "stop":
                self._runner.post(UserStop())
            case "restart":
                self._runner.post(UserRestart())
            case "sleep-begins":
                await self._sleep.prepare()
                # Said at once: the machine waits for it, and not for the end of the core.
                return {}
            case "sleep-ended":
                await self._sleep.resume()
            case "reload":
                error = self._reload()
                if tuple(item.name for item in self._runner.bridges) != self._allowed:
                    await self._judge_anew()
                if error is not None:
                    await self._runner.settle()
                    raise error
        await self._runner.settle()
        return await self.status()

    def _check_clock(self) -> bool:
        return self._sleep.check_clock()

    def _reload(self) -> ConfigError | None:
        self._control.allow(load_readers(self._paths.config.with_name(FILE_NAME)))
        self._allowed = load_bridges(self._paths.config.with_name(BRIDGES))
        self._list_read.set()
        try:
            settings = load_settings(self._paths.config)
        except ConfigError as error:
            log.error("configuration: line %s: not usable", error.line)
            self._runner.post(SettingsBad(error.why))
            return error
        except Exception as error:  # noqa: BLE001  whatever a file can hold: locked, and it is said to be the file
            log.error("configuration: not usable: %s", describe(error))
            self._runner.post(SettingsBad(describe(error)))
            return ConfigError(self._paths.config, describe(error), "")
        self._runner.settings = settings
        logging.getLogger().setLevel(settings.log_level.upper())
        self._runner.post(SettingsGood(settings.establish_timeout, settings.uplink))
        return None

    async def _publish_changes(self) -> None:
        """Tell watchers and the service manager; changes that come together are told together."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(TELL_SECONDS)
            self._changed.clear()
            if self._control.watched:
                self._control.publish(await self.status())
            notify(f"STATUS={self._runner.shown.state}: {self._runner.shown.reason}")
            self._tidier.changed()

    def _is_quiet(self) -> bool:
        return not self._runner.busy and self._runner.model.state not in {State.CONNECTING, State.VERIFYING}

    async def _look_at_links(self) -> None:
        async with self._looking:
            snapshot = await self._read_links()
        self._leading = find_leading(snapshot, self._leading)
        uplinks, wires = list_uplinks(snapshot), find_wires(snapshot, self._leading)
        ways = tuple((uplink.index, uplink.hops, uplink.versions, uplink.stack) for uplink in uplinks)
        inner = find_inner(snapshot, self._leading)
        bridges = self._judge_bridges(snapshot)
        changed = (wires, inner, ways, list_in_force(bridges)) != (
            self._runner.wires,
            self._runner.inner,
            self._ways,
            list_in_force(self._runner.bridges),
        )
        self._ways = ways
        self._runner.wires, self._runner.inner = wires, inner
        self._tell_of_bridges(bridges)
        self._runner.odd_wires = self._enforcer.odd_wires = find_odd_wires(snapshot, self._leading)
        self._runner.odd_uplink = has_odd_uplink(snapshot)
        self._runner.ownerless_uplink = find_ownerless_uplink(snapshot)
        self._runner.conflicts = find_conflicts(snapshot)
        self._runner.headerless = find_headerless(snapshot, self._leading)
        on_link, self._runner.on_link = self._runner.on_link, find_neighbourhood(snapshot, self._leading)
        # Posted even when it is the one that the model has now: an event that says otherwise may still wait its turn.
        best, others = (uplinks[0], uplinks[1:]) if uplinks else (None, ())
        self._runner.post(UplinkSeen(best, others, await self._find_uses(uplinks)))
        if changed:
            self._runner.post(LinksChanged())
        elif on_link != self._runner.on_link:
            self._runner.post(OnLinkChanged())

    def _is_bridge_guarded(self) -> bool:
        try:
            return is_owned(self._netlink, *BRIDGES_TABLE.address)
        except OSError as error:
            log.warning("whether the bridge guard stands cannot be seen: %s", error)
            return False

    def _judge_bridges(self, snapshot: Snapshot) -> tuple[Allowed, ...]:
        if not self._allowed:
            return ()
        return judge_bridges(
            snapshot,
            self._allowed,
            leading=self._leading,
            guarded=self._is_bridge_guarded(),
            supported=self._features.bridge_ports and self._features.owner_flag,
        )

    def _tell_of_bridges(self, bridges: tuple[Allowed, ...]) -> None:
        before = {item.name: item for item in self._runner.bridges}
        for item in bridges:
            if item != before.get(item.name):
                log.warning("bridge %s: %s", item.name, explain_standing(item)[0])
        if bridges != self._runner.bridges:
            self._changed.set()
        self._runner.bridges = bridges

    async def _judge_anew(self) -> None:
        """The list is another one: closed for it only if what is in force changes."""
        try:
            await self._look_at_links()
        except Exception as error:  # noqa: BLE001  closed, told, and begun anew
            self._runner.lose(Part.LINKS, error)

    async def _watch_bridges(self) -> None:
        """Judge them anew when root's list was read, and when their guard came or went."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._list_read.wait(), BRIDGE_GUARD_SECONDS)
            self._list_read.clear()
            standings = {item.standing for item in self._runner.bridges} & {Standing.IN_FORCE, Standing.UNGUARDED}
            guarded = {Standing.IN_FORCE if self._is_bridge_guarded() else Standing.UNGUARDED} if standings else set()
            if standings != guarded or tuple(item.name for item in self._runner.bridges) != self._allowed:
                await self._look_at_links()

    async def _find_uses(self, uplinks: tuple[Uplink, ...]) -> frozenset[Use] | None:
        """What the core uses of its uplink, if something of that is gone: else it is not asked.

        Or if a version came: a call that began without a route has a source of some other interface, and would go on.
        """
        footing = self._runner.model.footing
        if footing is None:
            return None
        if any(carries_on(footing, uplink) and footing.versions == uplink.versions for uplink in uplinks):
            return None
        return await asyncio.to_thread(read_core_uses, self._identity.uid, footing.index)

    async def _read_links(self) -> Snapshot:
        """Read the links; once more where the kernel says that they changed while it listed them."""
        for pause in LOOK_AGAIN_SECONDS:
            try:
                return await read_snapshot()
            except OSError as error:
                log.warning("the links could not be read, once more: %s", error)
                await asyncio.sleep(pause)
        return await read_snapshot()

    async def _feed_watchdog(self) -> None:
        """WATCHDOG=1 at half of what the service manager allows (sd_watchdog_enabled(3))."""
        allowed = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        if allowed <= 0:
            await asyncio.Event().wait()
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(max(MIN_WATCHDOG_SECONDS, allowed / 2))


def read_paths(*, config: Path, core: CoreSource) -> Paths:
    """The directories as the service manager gives them (systemd.exec(5))."""
    return Paths(
        config=config,
        core=core,
        state_dir=Path(os.environ.get("STATE_DIRECTORY", "/var/lib/psiphon-vpn")),
        runtime_dir=Path(os.environ.get("RUNTIME_DIRECTORY", "/run/psiphon-vpn")),
    )
