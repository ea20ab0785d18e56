"""Random sequences of attacks, faults and user commands against the real service; no frame may leak in any of them.

An episode is a world of its own and a list of steps, drawn from a seed. Programs and raw frames try to get out all the
time. After the last step everybody is of good will again, and the service must come back by itself. A failing episode
is made smaller: steps are left out for as long as it still fails.
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
from psiphon_lab.attacks._send import volley
from psiphon_lab.attacks.a10_routes_flushed import restore_rules
from psiphon_lab.hands import Hands
from psiphon_lab.judge import world_evidence
from psiphon_lab.leaktest.arena import Arena
from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.stage import Stage, open_stage
from psiphon_lab.leaktest.states import Transition
from psiphon_lab.leaktest.terms import Actor, Mode
from psiphon_lab.leaktest.verdict import Tried, judge_recording
from psiphon_lab.namespace import LabError
from psiphon_lab.pcapng import read_recording, write_recording
from psiphon_vpn.errors import UserError
from psiphon_vpn.policy import names

STEPS_PER_EPISODE = 14
LONGEST_PAUSE = 0.5
COMES_BACK_SECONDS = 60.0
SHRINKS = 24
BASE = ("inet", names.BASE_TABLE)
TRYING = Attack(
    id="chaos", name="chaos", reference="", plain="", actors=(Actor.ROOT, Actor.USER), recognised="", control="",
    run=lambda arena: volley(arena, "all the time"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong, and in which steps."""

    what: str
    steps: tuple[str, ...]


@dataclass
class Episode:
    """A world in which steps are taken."""

    stage: Stage
    wire: str = "a"

    def nft(self, *words: str) -> None:
        """Somebody's nft."""
        self.stage.world.client.run(["nft", *words], check=False)

    def ip(self, *words: str) -> None:
        """Somebody's ip."""
        self.stage.world.client.run(["ip", *words], check=False)

    def ask(self, command: str) -> None:
        """A user's command; that it is refused or not answered is no failure."""
        with contextlib.suppress(UserError, OSError):
            self.stage.machine.command(command)

    def signal_core(self, number: signal.Signals) -> None:
        """A signal to the core, if there is one."""
        status = self.stage.machine.read_status()
        if status is not None and status["core_pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status["core_pid"], number)

    def restart_daemon(self, *, kill: bool) -> None:
        """Ended and started, by the service manager or after a crash."""
        machine = self.stage.machine
        machine.kill_daemon() if kill else machine.stop_daemon()
        machine.start_daemon()

    def freeze_daemon(self) -> None:
        """Stopped for a moment."""
        self.stage.machine.signal_daemon(signal.SIGSTOP)
        time.sleep(0.4)
        self.stage.machine.signal_daemon(signal.SIGCONT)

    def misbehave(self, kind: str) -> None:
        """The core, from now on."""
        self.stage.set_faults(*([{"kind": kind}] if kind else []))

    def misconfigure(self) -> None:
        """A mistake in the configuration, and then none."""
        for text in ("socks_prot = 1\n", None):
            self.stage.machine.write_config(text)
            self.ask("reload")

    def move(self) -> None:
        """To the other provider."""
        world = self.stage.world
        world.move_to_provider_b() if self.wire == "a" else world.move_to_provider_a()
        self.wire = "b" if self.wire == "a" else "a"

    def flap(self) -> None:
        """The link goes and comes back."""
        lan = LAN_A if self.wire == "a" else LAN_B
        self.stage.world.set_carrier(lan, up=False)
        time.sleep(0.05)
        self.stage.world.set_carrier(lan, up=True)

    def flush_rules(self) -> None:
        """`ip rule flush`, and what any system puts back."""
        for family in ("-4", "-6"):
            self.ip(family, "rule", "flush")
        arena: Any = self
        restore_rules(arena)

    @property
    def client(self) -> Any:
        """The machine under test."""
        return self.stage.world.client


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
    "core goes on": lambda it: it.signal_core(signal.SIGCONT),
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
    "boot rules loaded": lambda it: it.stage.machine.boot_lock(),
    "guards reloaded": lambda it: it.stage.machine.reload_guard(),
    "routing rules flushed": lambda it: it.flush_rules(),
    "private routes flushed": lambda it: it.ip("route", "flush", "table", str(names.ROUTE_TABLE)),
    "TUN deleted": lambda it: it.ip("link", "del", names.TUN_NAME),
    "TUN down": lambda it: it.ip("link", "set", names.TUN_NAME, "down"),
    "link flaps": lambda it: it.flap(),
    "uplink moves": lambda it: it.move(),
}


def draw_steps(seed: str) -> tuple[str, ...]:
    """The steps of an episode: the same for the same seed, for ever."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    return tuple(chance.choice(sorted(STEPS)) for _ in range(STEPS_PER_EPISODE))


def play_episode(steps: Sequence[str], hands: Hands, recording: Path) -> tuple[Failure | None, int]:
    """Play steps in a world of their own.

    Returns:
        What went wrong, and how many frames were judged.
    """
    with open_stage() as stage:
        stage.lock()
        # What was sent before the lock must not arrive after the mark: an unlocked client reports its groups by MLDv2.
        stage.record_since(stage.world.mark())
        mark = stage.world.mark()
        stage.machine.start_daemon()
        stage.machine.wait_state("OPEN")
        episode = Episode(stage)
        numbers = itertools.count(1)
        frames, taken, tried = 0, list[str](), list[Tried]()
        for name in (*steps, ""):
            arena = Arena(
                stage=stage, hands=hands, mode=Mode.OPEN, attack=TRYING.id, families=TRYING.families, numbers=numbers
            )
            volley(arena, "all the time", seconds=0.25, raw=True)
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
                arena.settle()
            tried += [
                Tried(name=it.shot.name, by=it.by, family=it.shot.family, trace=it.trace) for it in arena.attempts
            ]
            found, dropped = stage.record_since(mark)
            mark = stage.world.mark()
            write_recording(recording, found, dropped)
            record = read_recording(recording)
            if not record.complete:
                return Failure(what="the capture lost frames", steps=tuple(taken)), frames
            evidence = world_evidence(stage.server.read_flows(), core_ports=CORE_PORTS)
            judgement = judge_recording(record, tried[-200:], evidence)
            frames += judgement.frames
            if judgement.leaks:
                return Failure(what=f"leak: {judgement.leaks[0].text}", steps=tuple(taken)), frames
    return None, frames


def _come_back(episode: Episode) -> None:
    """Everybody is of good will again: the service must open by itself, or by the user's start after a stop."""
    machine = episode.stage.machine
    episode.misbehave("")
    episode.signal_core(signal.SIGCONT)
    Transition(episode.stage).leave()
    machine.write_config()
    episode.ask("reload")
    episode.ask("start")
    machine.wait_state("OPEN", seconds=COMES_BACK_SECONDS)
    machine.wait_for(machine.lease_remains, "the lease")


def shrink(failure: Failure, hands: Hands, recording: Path) -> Failure:
    """Leave steps out for as long as it still fails."""
    smallest = failure
    left = SHRINKS
    size = max(1, len(smallest.steps) // 2)
    while size and left:
        at = 0
        while at < len(smallest.steps) and left:
            left -= 1
            candidate = smallest.steps[:at] + smallest.steps[at + size :]
            found, _ = play_episode(candidate, hands, recording)
            if found is not None:
                smallest = found
            else:
                at += size
        size //= 2
    return smallest


def run_chaos(
    *, seed: int, minutes: float, directory: Path, tell: Callable[[str], None], episodes: int | None = None
) -> dict[str, Any]:
    """Play episodes until the time is over or one fails.

    Args:
        seed: of the first; the following are drawn from it.
        minutes: how long.
        directory: for the last recording, and that of a failure.
        tell: called with a line for each episode.
        episodes: how many at the most.
    """
    begin = time.monotonic()
    played = frames = 0
    failure: Failure | None = None
    failed_at = ""
    with Hands(list_modules()) as hands:
        for number in itertools.count():
            if time.monotonic() - begin > minutes * 60 or (episodes is not None and number >= episodes):
                break
            name = f"{seed}:{number}"
            steps = draw_steps(name)
            failure, judged = play_episode(steps, hands, directory / "chaos.pcapng")
            played, frames = played + 1, frames + judged
            tell(f"episode {name}: {len(steps)} steps, {judged} frames, {failure.what if failure else 'held'}")
            if failure is not None:
                failed_at = name
                tell(f"making it smaller: {', '.join(failure.steps)}")
                failure = shrink(failure, hands, directory / "shrink.pcapng")
                tell(f"the smallest that fails: {', '.join(failure.steps) or 'no step at all'}: {failure.what}")
                break
    return {
        "held": failure is None and played > 0,
        "seed": seed,
        "episodes": played,
        "frames_judged": frames,
        "seconds": round(time.monotonic() - begin, 1),
        "failed": None if failure is None else {"episode": failed_at, **asdict(failure)},
    }
