# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of attacks, faults and user commands against the real service. No frame may leak in any of them.

An episode is a world and a list of random steps from a seed. Programs and raw frames try to get out all the time. After
the last step all faults end, and the service must reopen by itself. If an episode fails, it is shrunk: steps are left
out as long as it still fails.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psiphon_lab.addresses import CORE_PORTS, LAN_A, LAN_B
from psiphon_lab.attacks import list_modules
from psiphon_lab.attacks.a10_routes_flushed import restore_rules
from psiphon_lab.fork_server import ForkServer
from psiphon_lab.judge import world_evidence
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.states import Transition
from psiphon_lab.leaktest.testbed import Testbed, open_testbed
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.leaktest.verdict import Tried, judge_recording
from psiphon_lab.namespace import LabError
from psiphon_lab.pcapng import read_recording, write_recording
from psiphon_lab.sending import volley
from psiphon_lab.service_adapter import names
from psiphon_vpn.errors import UserError

STEPS_PER_EPISODE = 14
LONGEST_PAUSE = 0.5
COMES_BACK_SECONDS = 60.0
SHRINKS = 24
BASE = ("inet", names.BASE_TABLE)
TRYING = Attack(
    id="chaos", name="chaos", reference="", summary="", actors=(Actor.ROOT, Actor.USER), recognised="", control="",
    run=lambda trial: volley(trial, "all the time"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong, and the steps that led to it."""

    what: str
    steps: tuple[str, ...]


@dataclass
class Episode:
    """A world in which steps are carried out."""

    testbed: Testbed
    wire: str = "a"

    def nft(self, *words: str) -> None:
        """Run nft as another program."""
        self.testbed.world.client.run(["nft", *words], check=False)

    def ip(self, *words: str) -> None:
        """Run ip as another program."""
        self.testbed.world.client.run(["ip", *words], check=False)

    def ask(self, command: str) -> None:
        """Send a user's command. A refusal or a missing answer is not a failure."""
        with contextlib.suppress(UserError, OSError):
            self.testbed.machine.command(command)

    def signal_core(self, number: signal.Signals) -> None:
        """Send a signal to the core, if there is one."""
        status = self.testbed.machine.read_status()
        if status is not None and status["core_pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status["core_pid"], number)

    def restart_daemon(self, *, kill: bool) -> None:
        """End the daemon, as the service manager or a crash would, and start it."""
        machine = self.testbed.machine
        machine.kill_daemon() if kill else machine.stop_daemon()
        machine.start_daemon()

    def freeze_daemon(self) -> None:
        """Stop the daemon for a moment."""
        self.testbed.machine.signal_daemon(signal.SIGSTOP)
        time.sleep(0.4)
        self.testbed.machine.signal_daemon(signal.SIGCONT)

    def misbehave(self, kind: str) -> None:
        """Set a fault of the core, or none."""
        self.testbed.set_faults(*([{"kind": kind}] if kind else []))

    def misconfigure(self) -> None:
        """Make a mistake in the configuration, and correct it."""
        for text in ("socks_prot = 1\n", None):
            self.testbed.machine.write_config(text)
            self.ask("reload")

    def move(self) -> None:
        """Move the uplink to the other provider."""
        world = self.testbed.world
        world.move_to_provider_b() if self.wire == "a" else world.move_to_provider_a()
        self.wire = "b" if self.wire == "a" else "a"

    def flap(self) -> None:
        """Take the link down and up again."""
        lan = LAN_A if self.wire == "a" else LAN_B
        self.testbed.world.set_carrier(lan, up=False)
        time.sleep(0.05)
        self.testbed.world.set_carrier(lan, up=True)

    def flush_rules(self) -> None:
        """Flush the routing rules, and restore the kernel's own."""
        for family in ("-4", "-6"):
            self.ip(family, "rule", "flush")
        trial: Any = self
        restore_rules(trial)

    @property
    def client(self) -> Any:
        """The machine under test."""
        return self.testbed.world.client


def _misbehaving(kind: str) -> Callable[[Episode], object]:
    return lambda it: it.misbehave(kind)


STEPS: dict[str, Callable[[Episode], object]] = {
    "start": lambda it: it.ask("start"),
    "stop": lambda it: it.ask("stop"),
    "restart": lambda it: it.ask("restart"),
    "reload": lambda it: it.ask("reload"),
    "bad configuration": lambda it: it.misconfigure(),
    "core killed": lambda it: it.signal_core(signal.SIGKILL),
    "core stopped": lambda it: it.signal_core(signal.SIGSTOP),
    "core continued": lambda it: it.signal_core(signal.SIGCONT),
    **{f"core: {kind}": _misbehaving(kind) for kind in ("liar", "blackhole", "flap", "exit")},
    "core behaves": lambda it: it.misbehave(""),
    "daemon killed": lambda it: it.restart_daemon(kill=True),
    "daemon restarted": lambda it: it.restart_daemon(kill=False),
    "daemon frozen": lambda it: it.freeze_daemon(),
    "ruleset flushed": lambda it: it.nft("flush", "ruleset"),
    "base table deleted": lambda it: it.nft("delete", "table", *BASE),
    "accept rule inserted": lambda it: it.nft("insert", "rule", *BASE, "output", "accept"),
    "policy opened": lambda it: it.nft("chain", *BASE, "output", "{ policy accept; }"),
    "egress guard deleted": lambda it: it.nft("delete", "table", "netdev", names.EGRESS_TABLE),
    "boot rules loaded": lambda it: it.testbed.machine.boot_lock(),
    "guards reloaded": lambda it: it.testbed.machine.reload_guard(),
    "routing rules flushed": lambda it: it.flush_rules(),
    "private routes flushed": lambda it: it.ip("route", "flush", "table", str(names.ROUTE_TABLE)),
    "TUN deleted": lambda it: it.ip("link", "del", names.TUN_NAME),
    "TUN down": lambda it: it.ip("link", "set", names.TUN_NAME, "down"),
    "link flaps": lambda it: it.flap(),
    "uplink moves": lambda it: it.move(),
}


def draw_steps(seed: str) -> tuple[str, ...]:
    """The steps of an episode, always the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return tuple(chance.choice(sorted(STEPS)) for _ in range(STEPS_PER_EPISODE))


def play_episode(steps: Sequence[str], fork_server: ForkServer, recording: Path) -> tuple[Failure | None, int]:
    """Play steps in a new world.

    Returns:
        What went wrong, or None, and the number of judged frames.
    """
    with open_testbed() as testbed:
        testbed.lock()
        # Frames from before the lock must not arrive after the mark: an unlocked client reports its groups by MLDv2.
        testbed.record_since(testbed.world.mark())
        mark = testbed.world.mark()
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        episode = Episode(testbed)
        numbers = itertools.count(1)
        frames, taken, tried = 0, list[str](), list[Tried]()
        for name in (*steps, ""):
            trial = Trial(
                testbed=testbed,
                fork_server=fork_server,
                mode=Mode.OPEN,
                attack=TRYING.id,
                families=TRYING.families,
                numbers=numbers,
            )
            volley(trial, "all the time", seconds=0.25, raw=True)
            try:
                if name:
                    taken.append(name)
                    STEPS[name](episode)
                    time.sleep(random.Random(name + str(len(taken))).uniform(0, LONGEST_PAUSE))  # noqa: S311
                else:
                    _come_back(episode)
            except LabError as error:
                return Failure(what=str(error).splitlines()[0], steps=tuple(taken)), frames
            finally:
                trial.settle()
            tried += [
                Tried(name=it.shot.name, by=it.by, family=it.shot.family, trace=it.trace) for it in trial.attempts
            ]
            found, dropped = testbed.record_since(mark)
            mark = testbed.world.mark()
            write_recording(recording, found, dropped)
            record = read_recording(recording)
            if not record.complete:
                return Failure(what="the capture lost frames", steps=tuple(taken)), frames
            evidence = world_evidence(testbed.server.read_flows(), core_ports=CORE_PORTS)
            judgement = judge_recording(record, tried[-200:], evidence)
            frames += judgement.frames
            if judgement.leaks:
                return Failure(what=f"leak: {judgement.leaks[0].text}", steps=tuple(taken)), frames
    return None, frames


def _come_back(episode: Episode) -> None:
    """End all faults: the service must reopen by itself, or by the user's start after a stop."""
    machine = episode.testbed.machine
    episode.misbehave("")
    episode.signal_core(signal.SIGCONT)
    Transition(episode.testbed).leave()
    machine.write_config()
    episode.ask("reload")
    episode.ask("start")
    machine.wait_state("OPEN", seconds=COMES_BACK_SECONDS)
    machine.wait_for(machine.lease_remains, "the lease")


def shrink(failure: Failure, fork_server: ForkServer, recording: Path) -> Failure:
    """Leave out steps as long as the episode still fails."""
    smallest = failure
    left = SHRINKS
    size = max(1, len(smallest.steps) // 2)
    while size and left:
        at = 0
        while at < len(smallest.steps) and left:
            left -= 1
            candidate = smallest.steps[:at] + smallest.steps[at + size :]
            found, _ = play_episode(candidate, fork_server, recording)
            if found is not None:
                smallest = found
            else:
                at += size
        size //= 2
    return smallest


def run_chaos(
    *, seed: int, minutes: float, directory: Path, say: Callable[[str], None], episodes: int | None = None
) -> dict[str, Any]:
    """Play episodes until the time is over or one fails.

    Args:
        seed: determines all episodes.
        minutes: how long.
        directory: for the last recording, and for that of a failure.
        say: called with a line for each episode.
        episodes: the maximum number.
    """
    begin = time.monotonic()
    played = frames = 0
    failure: Failure | None = None
    failed_at = ""
    with ForkServer(list_modules()) as fork_server:
        for number in itertools.count():
            if time.monotonic() - begin > minutes * 60 or (episodes is not None and number >= episodes):
                break
            name = f"{seed}:{number}"
            steps = draw_steps(name)
            failure, judged = play_episode(steps, fork_server, directory / "chaos.pcapng")
            played, frames = played + 1, frames + judged
            say(f"episode {name}: {len(steps)} steps, {judged} frames, {failure.what if failure else 'held'}")
            if failure is not None:
                failed_at = name
                say(f"shrinking: {', '.join(failure.steps)}")
                failure = shrink(failure, fork_server, directory / "shrink.pcapng")
                say(f"smallest failing sequence: {', '.join(failure.steps) or 'no step'}: {failure.what}")
                break
    return {
        "held": failure is None and played > 0,
        "seed": seed,
        "episodes": played,
        "frames_judged": frames,
        "seconds": round(time.monotonic() - begin, 1),
        "failed": None if failure is None else {"episode": failed_at, **asdict(failure)},
    }
