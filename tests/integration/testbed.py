# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A world with the real service on its client, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cores import install_script
from tests.integration.transitions import list_ends

from psiphon_lab.addresses import CORE_PORTS, LAN_A, Lan
from psiphon_lab.commit_watch import CommitWatch
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.leaktest.testbed import reserve_core_ports
from psiphon_lab.machine import LAB_UID, Machine
from psiphon_lab.probe import ProbeResult, probe_specs
from psiphon_lab.probe_runner import NOBODY, run_probes, unseen_probes
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.standin_faults import write_faults
from psiphon_lab.world import World


@dataclass
class Testbed:
    """World, server and machine; `faults` is the file that the stand-in core reads."""

    world: World
    server: ServerProcess
    machine: Machine
    faults: Path
    salt: int = 0
    claimed: tuple[str, ...] = ()
    """Networks that are the client's too, besides the address plan's."""

    def set_faults(self, *faults: dict[str, Any]) -> None:
        """Set the stand-in core's faults; without any it behaves."""
        write_faults(self.faults, *faults)

    def read_status(self) -> dict[str, Any]:
        """The service's status; fails if the service does not answer."""
        status = self.machine.read_status()
        assert status is not None
        return status

    def watch_ends(self) -> Callable[[], list[str]]:
        """Begin to watch; returns a function that lists why open tunnels have ended since (`transitions.list_ends`)."""
        begin = len(self.machine.read_log())
        return lambda: list_ends(self.machine.read_log()[begin:])

    def let_it_renew(self, times: int = 1) -> None:
        """Wait until the daemon has renewed the lease so many times: by then it has looked at everything before."""
        pid = self.machine.daemon_pid
        with CommitWatch(self.world.client) as commits:
            # A renewal that was already under way does not count.
            self.machine.wait_for(lambda: commits.count_by(pid) > times, "the lease, renewed")

    def remove_card_filter(self, lan: Lan = LAN_A) -> None:
        """Remove the filter at the card's traffic control, which outlives the daemon and `nft flush ruleset`.

        It drops what lacks the guards' mark, so no positive control would see anything. A kernel without such filters
        has none.
        """
        self.world.client.run(["tc", "qdisc", "del", "dev", lan.interface, "clsact"], check=False)

    def probe(self, lan: Lan = LAN_A) -> dict[str, ProbeResult]:
        """Run all probes as root and as a user; fail if any is seen, or if anything leaked."""
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
        # Frames are read first: the server records a flow after its first frames.
        frames = self.world.frames_since(mark)
        # A core that ends while it connects leaves a flow that no server recorded; its source port tells it.
        evidence = world_evidence(self.server.read_flows(), core_ports=CORE_PORTS, claimed=self.claimed)
        leaks = find_leaks(frames, evidence)
        assert not leaks, [leak.text for leak in leaks[:10]]

    def page(self, family: int = 4, *, limit: float = 10.0) -> str:
        """The address that a page on the internet sees of the client, or the outcome without an answer in `limit` s."""
        self.salt += 1
        wanted = f"root-tcp-ipv{family}-internet-plain"
        specs = tuple(spec for spec in probe_specs(salt=self.salt, label="root") if spec.id == wanted)
        result = run_probes(self.world.client, specs, limit=limit)[wanted]
        return result.answer or result.outcome


@contextlib.contextmanager
def open_testbed(
    *, start: bool = True, settings: dict[str, Any] | None = None, installed: bool = False
) -> Iterator[Testbed]:
    """A testbed, locked as at boot; with `start` the daemon runs and the tunnel is open.

    With `installed` the core is where an installation puts it, below "root" in the world's directory, with a record.
    """
    with World() as world, run_server(world) as server:
        reserve_core_ports(world)
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
            testbed = Testbed(world, server, machine, faults)
            if start:
                machine.start_daemon()
                machine.wait_state("OPEN")
            yield testbed
