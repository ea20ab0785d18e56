"""Everything that a scenario on a booted computer needs: the world, the tunnel's server, the computer, its service."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from psiphon_lab import addresses as plan
from psiphon_lab.battery import unseen_probes
from psiphon_lab.booted.clone import WHEELS
from psiphon_lab.booted.computer import Computer
from psiphon_lab.booted.installation import Installation
from psiphon_lab.booted.prober import Prober, Watched
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import ProbeResult
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.world import World
from psiphon_vpn.system.layout import KILLSWITCH_UNIT


@dataclass(frozen=True, kw_only=True)
class BootTimes:
    """When things happened at a boot, in milliseconds after systemd began. first_frame: None if there was none."""

    lock: float
    network_pre: float
    first_frame: float | None


@dataclass
class Session:
    """A computer with a tunnel server somewhere in its world.

    Attributes:
        name: of the system, for reports.
        controls: ids of the probes that were seen without a lock; control_outcomes: what became of those.
    """

    name: str
    world: World
    server: ServerProcess
    computer: Computer
    service: Installation
    salts: Counter[str] = field(default_factory=Counter)
    controls: set[str] = field(default_factory=set)
    control_outcomes: Counter[str] = field(default_factory=Counter)

    def control(self) -> list[str]:
        """The positive control: without a lock, every probe must be seen outside. Returns the ids that were not."""
        prober = Prober(self.computer, self.salts)
        mark = self.world.mark()
        self.control_outcomes.update(result.outcome for result in prober.probe().values())
        unseen = {spec.id for spec in unseen_probes(prober.specs, self.world.frames_since(mark))}
        self.controls |= {spec.id for spec in prober.specs} - unseen
        return sorted(unseen)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watched]:
        """Probe all the time, and judge every frame of that time; the result is complete when the block has ended.

        The core must not be about to connect then: the server records a flow once it is authenticated.
        """
        found = Watched()
        prober = Prober(self.computer, self.salts)
        with prober:
            yield found
        found.take(prober.judge(self.server.read_flows()))
        found.uncontrolled = sorted({spec.id for spec in prober.specs} - self.controls)

    def probe(self) -> dict[str, ProbeResult]:
        """One battery, now, by itself; frames are judged by the `watch` around it."""
        return Prober(self.computer, self.salts).probe()

    def find_flaws_when_open(self, *, seconds: float = 15.0) -> list[str]:
        """What is not as it should be while the tunnel is open, in words: what still is not after some seconds.

        A loaded machine may be late with an answer. A wrong one is not forgiven by asking again: its frames are judged.
        """
        return _ask_again(self._find_flaws, seconds)

    def _find_flaws(self) -> list[str]:
        found = self.probe()
        flaws = []
        for label in ("root", "user"):
            for family, address in ((4, plan.SERVER4), (6, plan.SERVER6)):
                page = found[f"{label}-tcp-ipv{family}-internet-plain"]
                if page.answer != address:
                    flaws.append(f"an IPv{family} page sees {page.answer or page.outcome} as {label}")
            name = found[f"{label}-dns-udp-ipv4-lan-resolver-plain"]
            if name.answer != plan.MARK_TUNNEL:
                flaws.append(f"a name is answered by {name.answer or name.outcome} as {label}")
        return flaws

    def find_answers(self) -> list[str]:
        """Ids of probes that anything outside answered: none may be while it is locked."""
        return [result.id for result in self.probe().values() if result.outcome == "answered"]

    def ask_names(self, *, seconds: float = 15.0) -> list[str]:
        """What the system's own ways to look up a name say instead of the address; see resolvectl(1), getent(1).

        What still fails after some seconds: a resolver that was refused a moment ago does not ask again at once.
        """
        return _ask_again(self._ask_names, seconds)

    def _ask_names(self) -> list[str]:
        said = []
        for argv in (("resolvectl", "query", "-4", plan.ECHO_NAME), ("getent", "ahostsv4", plan.ECHO_NAME)):
            done = self.computer.run(argv, check=False, timeout=60)
            if plan.INTERNET4 not in done.stdout:
                said.append(f"{argv[0]}: {(done.stdout + done.stderr).strip()[:200]}")
        return said

    def list_outside_queries(self, since: float) -> list[str]:
        """Questions that the computer itself has asked of resolvers outside since then (Unix time)."""
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
        """When the lock was there at this boot. since: a mark from before power-on."""
        begin = int(self.computer.show("", "UserspaceTimestampMonotonic")["UserspaceTimestampMonotonic"])
        lock = self._read_moment(KILLSWITCH_UNIT)
        network_pre = self._read_moment("network-pre.target")
        frames = self.world.frames_since(since)
        # The kernel stamps frames with the time of day, systemd's moments are on the monotonic clock.
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
    tree: Path, wheels: Path, *, manager: str = "NetworkManager", short_leases: bool = False
) -> Iterator[Session]:
    """A computer with a tree's Debian, off, prepared for an installation.

    manager: see `Computer.choose_manager`. short_leases: see `start_provider`.
    """
    with (
        World() as world,
        run_server(world) as server,
        Computer(world, tree, binds=((wheels, WHEELS),), short_leases=short_leases) as computer,
    ):
        computer.choose_manager(manager)
        service = Installation(computer, entry=server.entry)
        service.prepare()
        yield Session(f"{tree.name.partition('-')[0]}, {manager}", world, server, computer, service)


def _ask_again(find: Callable[[], list[str]], seconds: float) -> list[str]:
    """What is found wrong, asked until nothing is or the time is over."""
    deadline = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
