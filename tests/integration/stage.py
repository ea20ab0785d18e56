"""A world with the real service on its client, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cores import install_script

from psiphon_lab.addresses import CORE_PORTS, LAN_A, Lan
from psiphon_lab.battery import NOBODY, run_probes, unseen_probes
from psiphon_lab.commits import CommitWatch
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.machine import LAB_UID, Machine
from psiphon_lab.probe import ProbeResult, probe_specs
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.world import World


@dataclass
class Stage:
    """World, server and machine; `faults` is what the stand-in core reads."""

    world: World
    server: ServerProcess
    machine: Machine
    faults: Path
    salt: int = 0
    claimed: tuple[str, ...] = ()
    """Networks that are the client's too, besides the address plan's."""
    core_ports: range = range(0)
    """Source ports that only the core can have here: so calls that no server saw are known for the core's."""

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Tell the stand-in core how to misbehave; nothing means well."""
        write_faults(self.faults, *faults)

    def know_core_ports(self) -> None:
        """Keep the core's source ports for it alone: one that is ended while it calls has a call that no server saw."""
        self.world.client.set_sysctls({"ipv4/ip_local_reserved_ports": f"{CORE_PORTS.start}-{CORE_PORTS.stop - 1}"})
        self.core_ports = CORE_PORTS

    def let_it_renew(self, times: int = 1) -> None:
        """Until the daemon has renewed the lease so often: what came before has been looked at by then."""
        pid = self.machine.daemon_pid
        with CommitWatch(self.world.client) as commits:
            # One that was on its way already does not count.
            self.machine.wait_for(lambda: commits.count_by(pid) > times, "the lease, renewed")

    def remove_card_filter(self, lan: Lan = LAN_A) -> None:
        """Take the filter at the card's traffic control away, which outlives the daemon and `nft flush ruleset`.

        It drops what lacks the guards' mark, so that no positive control would see anything. A kernel without such
        filters has nothing there.
        """
        self.world.client.run(["tc", "qdisc", "del", "dev", lan.interface, "clsact"], check=False)

    def probe(self, lan: Lan = LAN_A) -> dict[str, ProbeResult]:
        """Run the battery as root and as a user; fail unless none of it is seen and nothing leaked."""
        mark = self.world.mark()
        results: dict[str, ProbeResult] = {}
        specs = []
        for label, uid in (("root", 0), ("user", NOBODY)):
            self.salt += 1
            own = probe_specs(salt=self.salt, interface=lan.interface, label=label)
            specs += list(own)
            results |= run_probes(self.world.client, own, uid=uid)
        frames = self.world.frames_since(mark)
        assert len(unseen_probes(specs, frames)) == len(specs)
        self.assert_no_leak(mark)
        return results

    def assert_no_leak(self, mark: dict[str, int]) -> None:
        """Judge everything that came out of the client since `mark`."""
        # The frames first: a flow is recorded after its first frames.
        frames = self.world.frames_since(mark)
        evidence = world_evidence(self.server.read_flows(), core_ports=self.core_ports, claimed=self.claimed)
        leaks = find_leaks(frames, evidence)
        assert not leaks, [leak.text for leak in leaks[:10]]

    def page(self, family: int = 4, *, limit: float = 10.0) -> str:
        """What a page on the internet sees of the client, or the outcome when there is no answer in `limit` seconds."""
        self.salt += 1
        wanted = f"root-tcp-ipv{family}-internet-plain"
        specs = tuple(spec for spec in probe_specs(salt=self.salt, label="root") if spec.id == wanted)
        result = run_probes(self.world.client, specs, limit=limit)[wanted]
        return result.answer or result.outcome


@contextlib.contextmanager
def open_stage(
    *, start: bool = True, settings: dict[str, Any] | None = None, installed: bool = False
) -> Iterator[Stage]:
    """A stage, locked as at boot; with `start` the daemon runs and the tunnel is open.

    With `installed` the core lies where an installation puts it, below "root" in the world's directory, with a record.
    """
    with World() as world, run_server(world) as server:
        directory = world.directory / "core"
        directory.mkdir()
        directory.chmod(0o755)
        faults = directory / "faults.json"
        write_faults(faults)
        core = write_core_wrapper(directory, faults)
        if installed:
            core = install_script(world.directory / "root", core.read_bytes(), owner=LAB_UID)
        with Machine(world, core=core, entry=lambda: server.entry, settings=settings) as machine:
            machine.boot_lock()
            machine.hold_guard()
            stage = Stage(world, server, machine, faults)
            if start:
                machine.start_daemon()
                machine.wait_state("OPEN")
            yield stage
