# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario on a booted computer needs: the world, the tunnel's server, the computer, its service."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import CORE_PORTS
from psiphon_lab.booted.clone import WHEELS
from psiphon_lab.booted.computer import Computer
from psiphon_lab.booted.installation import CLONE, CORE, Installation
from psiphon_lab.booted.prober import Prober, Watched
from psiphon_lab.internet import PLACES, Internet, open_internet
from psiphon_lab.judge import Evidence, world_evidence
from psiphon_lab.list_host import LIST_URL
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import ProbeResult
from psiphon_lab.probe_runner import unseen_probes
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.service_adapter.installed import KILLSWITCH_UNIT
from psiphon_lab.service_adapter.public_values import CORE_PATH, MANIFEST, PROFILE, render_manifest
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_lab.world import World


@dataclass(frozen=True, kw_only=True)
class BootTimes:
    """When things happened at a boot, in milliseconds after systemd started. first_frame: None if there was none."""

    lock: float
    network_pre: float
    first_frame: float | None


@dataclass
class Session:
    """A computer with a tunnel server somewhere in its world.

    Attributes:
        name: the system's name, for reports.
        controls: ids of the probes that were seen without a lock; control_outcomes: how many had each outcome.
    """

    name: str
    world: World
    server: ServerProcess | Internet
    computer: Computer
    service: Installation
    salts: Counter[str] = field(default_factory=Counter)
    controls: set[str] = field(default_factory=set)
    control_outcomes: Counter[str] = field(default_factory=Counter)

    def control(self) -> list[str]:
        """Run the positive control: without a lock every probe must be seen outside. Returns the ids of the others."""
        prober = Prober(self.computer, self.salts)
        mark = self.world.mark()
        self.control_outcomes.update(result.outcome for result in prober.probe().values())
        unseen = {spec.id for spec in unseen_probes(prober.specs, self.world.frames_since(mark))}
        self.controls |= {spec.id for spec in prober.specs} - unseen
        return sorted(unseen)

    def judge_by(self) -> Evidence:
        """The current evidence, for a time in which the computer is locked."""
        if isinstance(self.server, Internet):
            return self.server.judge_tunnels()
        return world_evidence(self.server.read_flows())

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watched]:
        """Probe during the block, and judge every frame of that time. The result is complete after the block.

        At its end the core must not be connecting: the server records a flow only once it is authenticated.
        """
        watched = Watched()
        prober = Prober(self.computer, self.salts)
        with prober:
            yield watched
        watched.copy_from(prober.judge(self.judge_by()))
        watched.uncontrolled = sorted({spec.id for spec in prober.specs} - self.controls)

    def probe(self) -> dict[str, ProbeResult]:
        """Run all probes once. A `watch` around this judges the frames."""
        return Prober(self.computer, self.salts).probe()

    def find_flaws_when_open(self, *, seconds: float = 15.0) -> list[str]:
        """What is still wrong with the open tunnel after some seconds, in words.

        A busy machine may answer late, so this tries again. A leak still counts, because frames are judged.
        """
        return _try_again(self._find_flaws, seconds)

    def _find_flaws(self) -> list[str]:
        results = self.probe()
        flaws = []
        for label in ("root", "user"):
            for family, address in ((4, plan.SERVER4), (6, plan.SERVER6)):
                page = results[f"{label}-tcp-ipv{family}-internet-plain"]
                if page.answer != address:
                    flaws.append(f"an IPv{family} page sees {page.answer or page.outcome} as {label}")
            name = results[f"{label}-dns-udp-ipv4-lan-resolver-plain"]
            if name.answer != plan.MARK_TUNNEL:
                flaws.append(f"a name is answered by {name.answer or name.outcome} as {label}")
        return flaws

    def find_answers(self) -> list[str]:
        """Ids of probes that were answered. While the machine is locked there must be none."""
        return [result.id for result in self.probe().values() if result.outcome == "answered"]

    def ask_names(self, *, seconds: float = 15.0) -> list[str]:
        """Failures of the system's own ways to look up a name, after some seconds; see resolvectl(1), getent(1).

        A resolver whose query was refused does not try again at once.
        """
        return _try_again(self._ask_names, seconds)

    def _ask_names(self) -> list[str]:
        failures = []
        for argv in (("resolvectl", "query", "-4", plan.ECHO_NAME), ("getent", "ahostsv4", plan.ECHO_NAME)):
            done = self.computer.run(argv, check=False, timeout=60)
            if plan.INTERNET4 not in done.stdout:
                failures.append(f"{argv[0]}: {(done.stdout + done.stderr).strip()[:200]}")
        return failures

    def list_outside_queries(self, since: float) -> list[str]:
        """DNS queries from the computer itself to resolvers outside, since a moment (Unix time)."""
        own = {plan.LAN_A.client4, plan.LAN_B.client4}
        return [
            f"{record['name']} at {host}"
            for host in ("provider_a", "provider_b", "internet", "neighbour")
            for record in self.world.read_record(host)
            if record.get("service") == "dns"
            and record["time"] >= since
            and (record["caller"] in own or record["caller"].startswith(("2001:db8:a:", "2001:db8:b:")))
        ]

    def read_boot_times(self, since: dict[str, int]) -> BootTimes:
        """When the lock was complete at this boot. since: a mark from before power-on."""
        begin = int(self.computer.show("", "UserspaceTimestampMonotonic")["UserspaceTimestampMonotonic"])
        lock = self._read_moment(KILLSWITCH_UNIT)
        network_pre = self._read_moment("network-pre.target")
        frames = self.world.frames_since(since)
        # The kernel stamps frames with the time of day; systemd uses the monotonic clock.
        offset = time.time() - time.monotonic()
        booted = [frame.time - offset - begin / 1e6 for frame in frames]
        return BootTimes(
            lock=(lock - begin) / 1000,
            network_pre=(network_pre - begin) / 1000,
            first_frame=min((moment * 1000 for moment in booted if moment > 0), default=None),
        )

    def _read_moment(self, unit: str) -> int:
        value = int(self.computer.show(unit, "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
        if value == 0:
            raise LabError(f"{unit} has not been active at this boot")
        return value


@contextlib.contextmanager
def open_session(
    tree: Path,
    wheels: Path,
    *,
    manager: str = "NetworkManager",
    short_leases: bool = False,
    kind: type[Computer] = Computer,
) -> Iterator[Session]:
    """A computer with a tree's Debian system, off, prepared for an installation.

    manager: see `Computer.choose_manager`. short_leases: see `start_provider`. kind: the class of the computer.
    """
    with (
        World() as world,
        run_server(world) as server,
        kind(world, tree, binds=((wheels, WHEELS),), short_leases=short_leases) as computer,
    ):
        computer.choose_manager(manager)
        service = Installation(computer, entry=server.entry)
        service.prepare()
        yield Session(f"{tree.name.partition('-')[0]}, {manager}", world, server, computer, service)


@dataclass(frozen=True, kw_only=True)
class RealLike:
    """A computer whose provider leads to an internet like the real one.

    Attributes:
        session: the computer, off, with a clone. Nothing is configured in it.
        internet: servers in several regions, and the host with the signed list and the core.
        values: by path in a clone, the files that hold the laboratory's addresses and keys instead of the public ones.
    """

    session: Session
    internet: Internet
    values: Mapping[str, str]


@contextlib.contextmanager
def open_real_like(
    tree: Path, wheels: Path, *, manager: str = "NetworkManager", real: RealPrograms | None = None
) -> Iterator[RealLike]:
    """A computer with a tree's Debian system, off, and an internet with all that a newcomer needs.

    The computer trusts the laboratory's certificate authority as well as its system's. Its clone has the
    laboratory's addresses and keys in place of the public ones, in two files that belong to root like the program.
    Nothing else differs. So its manifest pins whatever core the laboratory offers, even a real one.

    Args:
        tree: of the Debian system.
        wheels: the locked packages.
        manager: see `Computer.choose_manager`.
        real: real programs instead of the stand-ins.

    Raises:
        UserError: a program that psiphond needs is missing.
    """
    with (
        World(expose=() if real is None else (real.server,)) as world,
        open_internet(world, program=None if real is None else real.server) as internet,
        Computer(world, tree, binds=((wheels, WHEELS),)) as computer,
    ):
        computer.choose_manager(manager)
        service = Installation(computer, entry=internet.entry, core=None if real is None else real.core)
        service.prepare()
        # As `Internet.keep_core_ports`; each boot has a new network namespace. The stand-in binds these ports itself.
        span = f"net.ipv4.ip_local_port_range = {CORE_PORTS.start} {CORE_PORTS.stop - 1}\n"
        (computer.files / "etc/sysctl.d/90-core-ports.conf").write_text(span if real is not None else "")
        core = (computer.files / CORE.lstrip("/")).read_bytes()
        internet.list_host.offer(CORE_PATH, core)
        internet.publish(*(place.region for place in PLACES))
        values = {
            PROFILE: internet.list_host.signer.render_profile(LIST_URL),
            MANIFEST: render_manifest(core, host=plan.LIST_NAME),
        }
        for name, text in values.items():
            (computer.files / CLONE.lstrip("/") / name).write_text(text, encoding="utf-8")
        trusted = computer.files / "usr/local/share/ca-certificates/laboratory.crt"
        trusted.write_bytes(internet.list_host.authority.certificate.read_bytes())
        computer.run_off(["update-ca-certificates"])
        session = Session(f"{tree.name.partition('-')[0]}, {manager}", world, internet, computer, service)
        yield RealLike(session=session, internet=internet, values=values)


def _try_again(find: Callable[[], list[str]], seconds: float) -> list[str]:
    """Call `find` until it finds nothing wrong or the time is over; returns what it found last."""
    deadline = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
