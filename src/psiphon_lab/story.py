"""The story that the demonstration tells: the service on a machine, step by step, each judged by frames outside it.

A step is a method that does something to the machine and probes it meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.battery import unseen_probes
from psiphon_lab.commits import CommitWatch
from psiphon_lab.namespace import LabError
from psiphon_lab.socks_client import fetch_by_socks
from psiphon_lab.trial import StepResult, Trial
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names


class Story(Trial):
    """Tells the steps in order; each is yielded as soon as it is judged."""

    def tell(self) -> Iterator[StepResult]:
        """All steps. Stops after one that could not even be carried out."""
        steps: Sequence[Callable[[], StepResult]] = (
            self._positive_control,
            self._boot_lock,
            self._connecting,
            self._open,
            self._core_killed,
            self._daemon_killed,
            self._rules_flushed,
            self._uplink_moved,
            self._stopped,
        )
        for step in steps:
            self._mark = self._world.mark()
            identifier = step.__name__.strip("_")
            try:
                result = step()
            except LabError as error:
                result = StepResult(name=identifier.replace("_", " "), done="")
                result.check(_("the step could be carried out"), False, str(error).splitlines()[0][:300])
                yield replace(result, id=identifier)
                return
            yield replace(result, id=identifier)

    # -- the steps --------------------------------------------------------------------------------------------------

    def _positive_control(self) -> StepResult:
        result = StepResult(
            name=_("positive control"), done=_("no lock: every probe, by both providers, must be seen outside")
        )
        self._announce(_("Without any lock: every probe must be seen outside, or seeing none later proves nothing."))
        for move, lan in (
            (None, LAN_A),
            (self._world.move_to_provider_b, LAN_B),
            (self._world.move_to_provider_a, None),
        ):
            if move is not None:
                move()
            if lan is None:
                continue
            mark = self._world.mark()
            probes = self._start_probes(lan)
            results = self._collect(probes)
            frames = self._world.frames_since(mark)
            unseen = {spec.id for spec in unseen_probes(probes[0], frames)}
            # The neighbour and A's resolver cannot be reached from B, but the attempt is seen there all the same.
            self._controls |= {spec.id for spec in probes[0]} - unseen
            result.probes += len(probes[0])
            result.frames += len(frames)
            result.outcomes.update(item.outcome for item in results.values())
            shown = ", ".join(sorted(unseen)[:3])
            result.check(
                _("every probe is seen on the wire of {wire}").format(wire=lan.name),
                not unseen,
                shown or f"{len(probes[0])} seen",
            )
        return result

    def _boot_lock(self) -> StepResult:
        result = StepResult(
            name=_("boot lock"), done=_("plain nft loads the base rules; the holder loads the wire guard")
        )
        self._announce(_("Boot: nft loads the lock from a file, before any daemon. Probing as root and as a user."))
        self._machine.boot_lock()
        self._machine.hold_guard()
        self._mark = self._world.mark()
        probes = self._start_probes(LAN_A)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        return result

    def _connecting(self) -> StepResult:
        result = StepResult(
            name=_("connecting"), done=_("the daemon starts; the server accepts, but does not answer yet")
        )
        self._announce(_("Connecting: the daemon starts its core, the server holds its answer back. Probing."))
        os.killpg(self._server.pid, signal.SIGSTOP)
        try:
            self._machine.start_daemon()
            self._machine.wait_state("CONNECTING")
            probes = self._start_probes(LAN_A)
            found = self._collect(probes)
            status = self._machine.read_status()
            result.check(_("it was connecting all the time"), status is not None and status["state"] == "CONNECTING")
        finally:
            os.killpg(self._server.pid, signal.SIGCONT)
        begin = time.monotonic()
        self._machine.wait_state("OPEN")
        result.figures[_("server answers to open, ms")] = (time.monotonic() - begin) * 1000
        # Judged only now: by then the server has recorded the core's own flow.
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        return result

    def _wait_ipv6(self) -> None:
        self._machine.wait_for(lambda: bool((self._machine.read_status() or {}).get("ipv6")), "IPv6 through the tunnel")

    def _open(self) -> StepResult:
        result = StepResult(name=_("open"), done=_("verified, leased, open: pages and names through the tunnel"))
        self._announce(_("Open: a page must see the server's address, a name must be resolved inside the tunnel."))
        status = self._machine.wait_state("OPEN")
        self._wait_ipv6()
        probes = self._start_probes(LAN_A)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_tunnel(result, found)
        inside = fetch_by_socks(self._world.client, "127.0.0.1", plan.INTERNET4)
        result.check(_("the SOCKS proxy serves this machine"), inside == plan.SERVER4, inside or "no answer")
        outside = fetch_by_socks(self._world.neighbour, LAN_A.client4, plan.INTERNET4)
        result.check(_("the SOCKS proxy serves nobody else"), outside is None, outside or "no connection from the LAN")
        result.check(_("locked, as read from the kernel"), status["locked"] is True)
        result.figures[_("daemon resident, KiB")] = float(self._machine.read_resident_kib())
        return result

    def _core_killed(self) -> StepResult:
        result = StepResult(name=_("core killed"), done=_("SIGKILL to the tunnel core while open"))
        self._announce(_("The core is killed with SIGKILL, with probes running. It must come back by itself."))
        status = self._machine.wait_state("OPEN")
        pid = status["core_pid"]
        probes = self._start_probes(LAN_A)
        time.sleep(0.25)
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self._machine.wait_for(self._reopened(pid), "another core and an open tunnel")
        result.figures[_("core killed to reopened, ms")] = (time.monotonic() - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        after = self._machine.wait_state("OPEN")
        result.check(_("reopened with a new core"), after["core_pid"] not in {pid, None})
        return result

    def _reopened(self, old: int) -> Callable[[], bool]:
        def ask() -> bool:
            status = self._machine.read_status()
            return status is not None and status["state"] == "OPEN" and status["core_pid"] not in {old, None}

        return ask

    def _daemon_killed(self) -> StepResult:
        result = StepResult(
            name=_("daemon killed"), done=_("SIGKILL to the daemon; the lease runs out; a fresh daemon")
        )
        self._announce(_("The daemon is killed with SIGKILL. Nobody is left to close anything: the lease runs out."))
        self._machine.wait_state("OPEN")
        self._machine.kill_daemon()
        probes = self._start_probes(LAN_A)
        seconds = self._machine.wait_for(lambda: not self._machine.lease_remains(), "the end of the lease")
        result.figures[_("daemon killed to lease gone, ms")] = seconds * 1000
        found = self._collect(probes)
        locked = self._start_probes(LAN_A)
        found_locked = self._collect(locked)
        self._expect_silence(result, found_locked)
        self._announce(_("A fresh daemon takes over, with probes running."))
        takeover = self._start_probes(LAN_A)
        begin = time.monotonic()
        self._machine.start_daemon()
        self._machine.wait_state("OPEN")
        result.figures[_("fresh daemon to open, ms")] = (time.monotonic() - begin) * 1000
        found_takeover = self._collect(takeover)
        self._judge(result, [probes, locked, takeover], [found, found_locked, found_takeover])
        return result

    def _rules_flushed(self) -> StepResult:
        result = StepResult(name=_("rules flushed"), done=_("root runs `nft flush ruleset` while open"))
        self._announce(
            "Root runs `nft flush ruleset`, with probes running. The wire guard stands, the rest comes back."
        )
        self._machine.wait_state("OPEN")
        probes = self._start_probes(LAN_A)
        time.sleep(0.25)
        with CommitWatch(self._world.client) as commits:
            self._world.client.run(["nft", "flush", "ruleset"])
            begin = commits.first_by("nft") or time.monotonic()
            guard = self._world.client.run(["nft", "list", "table", "inet", names.GUARD_TABLE], check=False)
            result.check(_("the wire guard outlives the flush"), guard.returncode == 0)
            self._machine.wait_for(self._base_stands, "the base rules")
            self._machine.wait_state("OPEN")
            self._machine.wait_for(self._machine.lease_remains, "the lease")
            result.figures[_("flushed to reopened, ms")] = (time.monotonic() - begin) * 1000
            healed = commits.next_after(begin)
        if healed is not None:
            result.figures[_("flushed to rules back, ms")] = (healed - begin) * 1000
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        return result

    def _base_stands(self) -> bool:
        chain = ["nft", "list", "chain", "inet", names.BASE_TABLE, "output"]
        return "policy drop" in self._world.client.run(chain, check=False).stdout

    def _uplink_moved(self) -> StepResult:
        result = StepResult(
            name=_("uplink moved"), done=_("the cable to provider A is pulled, provider B's is plugged in")
        )
        self._announce(_("The uplink moves to another provider: closed at once, then everything from the beginning."))
        status = self._machine.wait_state("OPEN")
        pid, daemon = status["core_pid"], self._machine.daemon_pid
        probes = self._start_probes(LAN_B)
        time.sleep(0.1)
        with CommitWatch(self._world.client) as commits:
            before = time.monotonic()
            self._world.disconnect_uplink(LAN_A)
            self._machine.wait_for(lambda: not self._machine.lease_remains(), "the end of the lease", seconds=4)
            lost = commits.first_loss()
            closed = commits.first_after(lost if lost is not None else before, pid=daemon)
        result.check(_("closed by the daemon, not by the lease's end"), closed is not None)
        if closed is not None and lost is not None:
            result.figures[_("link loss to closed, ms")] = (closed - lost) * 1000
        moved = time.monotonic()
        self._world.connect_uplink(LAN_B)
        self._machine.wait_for(self._reopened(pid), "an open tunnel by the other provider")
        result.figures[_("new uplink to reopened, ms")] = (time.monotonic() - moved) * 1000
        found = self._collect(probes)
        self._wait_ipv6()
        after = self._start_probes(LAN_B)
        found_after = self._collect(after)
        self._judge(result, [probes, after], [found, found_after])
        self._expect_tunnel(result, found_after)
        return result

    def _stopped(self) -> StepResult:
        result = StepResult(name=_("stopped"), done=_("`psiphon-vpn stop`: disconnected, and still locked"))
        self._announce(_("The user stops the connection. That must not open anything."))
        self._machine.command("stop")
        status = self._machine.wait_state("LOCKED")
        probes = self._start_probes(LAN_B)
        found = self._collect(probes)
        self._judge(result, [probes], [found])
        self._expect_silence(result, found)
        result.check(_("locked, as read from the kernel"), status["locked"] is True, status["reason_code"])
        return result
