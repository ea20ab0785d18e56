# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of `demo --system`: boot a Debian system, install the service, connect, reboot, uninstall."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from psiphon_lab import addresses as plan
from psiphon_lab.booted.kernel_state import read_kernel_state
from psiphon_lab.booted.session import Session
from psiphon_lab.namespace import LabError
from psiphon_lab.service_adapter.installed import Layout
from psiphon_lab.service_adapter.names import TUN_NAME
from psiphon_lab.step import StepResult
from psiphon_vpn.i18n import _


class SystemDemoSteps:
    """Plays the steps in order. A step is a method that returns its result.

    Args:
        session: a computer that is off.
        announce: called with a sentence before something happens.
    """

    def __init__(self, session: Session, *, announce: Callable[[str], None]) -> None:
        self._session = session
        self._announce = announce

    def play(self) -> Iterator[StepResult]:
        """Play all steps; yields each result at once. Stops after a step that could not be carried out."""
        steps: Sequence[Callable[[], StepResult]] = (
            self._positive_control,
            self._install,
            self._open,
            self._reboot,
            self._uninstall,
        )
        for step in steps:
            identifier = step.__name__.strip("_")
            try:
                result = step()
            except LabError as error:
                result = StepResult(name=identifier.replace("_", " "), done="")
                result.check(_("the step could be carried out"), False, str(error).splitlines()[0][:300])
                yield replace(result, id=identifier)
                return
            yield replace(result, id=identifier)

    @contextlib.contextmanager
    def _watching(self, result: StepResult) -> Iterator[None]:
        """Probe during the block, and add the verdict on every frame of that time to the result."""
        with self._session.watch() as watched:
            yield
        result.probes += watched.probes
        result.outcomes.update(watched.outcomes)
        result.frames += watched.frames
        result.kinds.update(watched.kinds)
        result.leaks += watched.leaks
        detail = f"{watched.probes} probes, {len(watched.seen)} seen"
        result.check(_("no frame of a probe outside"), watched.probes > 0 and not watched.seen, detail)
        result.check(_("every other frame is innocent"), not watched.leaks, f"{watched.frames} frames judged")
        controls = f"{len(self._session.controls)} controls"
        result.check(_("each probe had its positive control"), not watched.uncontrolled, controls)

    def _expect_tunnel(self, result: StepResult) -> None:
        flaws = self._session.find_flaws_when_open()
        result.check(
            _("pages see the server's address, names are answered inside the tunnel"), not flaws, "; ".join(flaws[:2])
        )
        failures = self._session.ask_names()
        result.check(_("the system's own resolver answers"), not failures, "; ".join(failures))

    # -- the steps --------------------------------------------------------------------------------------------------

    def _positive_control(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("positive control"), done=_("booted, no lock: every probe must be seen outside"))
        self._announce(_("The computer boots. There is no lock yet, so every probe must be seen outside."))
        mark = session.world.mark()
        session.computer.power_on()
        session.computer.wait_address()
        unseen = session.control()
        result.probes = len(session.controls) + len(unseen)
        result.outcomes.update(session.control_outcomes)
        result.frames = len(session.world.frames_since(mark))
        result.check(_("every probe is seen outside"), not unseen, ", ".join(unseen[:3]) or f"{result.probes} seen")
        return result

    def _install(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("install"), done=_("the setup script's 'install', from a clone; then locked"))
        self._announce(_("The service is installed from a clone, as a user would. It locks; it has no server yet."))
        begin = time.monotonic()
        session.service.install()
        result.figures[_("install, s")] = time.monotonic() - begin
        with self._watching(result):
            answered = session.find_answers()
        result.check(_("no probe is answered"), not answered, ", ".join(answered[:3]))
        result.check(_("the kernel has the lock"), session.service.read_status().get("locked") is True)
        return result

    def _open(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("open"), done=_("the configuration names a server: verified, leased, open"))
        self._announce(_("The configuration names a server, and the service connects. A page must see its address."))
        since = time.time()
        with self._watching(result):
            session.service.configure()
            begin = time.monotonic()
            session.service.command("reload")
            session.service.wait_open()
            result.figures[_("reload to open, ms")] = (time.monotonic() - begin) * 1000
            self._expect_tunnel(result)
        queries = session.list_outside_queries(since)
        result.check(_("no resolver outside got a query"), not queries, ", ".join(queries[:3]))
        return result

    def _reboot(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("reboot"), done=_("shutdown, a kernel without earlier state, boot, open again"))
        self._announce(_("The computer reboots. Probes and captures run from before its first frame."))
        with self._watching(result):
            mark = session.world.mark()
            begin = time.monotonic()
            session.computer.reboot()
            session.service.wait_open(seconds=60)
            result.figures[_("reboot to open, s")] = time.monotonic() - begin
            self._expect_tunnel(result)
        times = session.read_boot_times(mark)
        first = times.first_frame
        result.figures[_("systemd to lock, ms")] = times.lock
        result.figures[_("systemd to network-pre.target, ms")] = times.network_pre
        result.check(_("the lock is there before the network is set up"), times.lock < times.network_pre)
        result.check(_("the lock is there before the first frame"), first is not None and times.lock < first)
        return result

    def _uninstall(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("uninstall"), done=_("every change undone, the network opened last"))
        self._announce(_("The service is removed: every change is undone, and the network is open as before."))
        begin = time.monotonic()
        session.service.run_setup("uninstall", "--yes")
        result.figures[_("uninstall, s")] = time.monotonic() - begin
        session.computer.wait_address()
        results = session.probe()
        result.probes = len(results)
        result.outcomes.update(item.outcome for item in results.values())
        page = results["user-tcp-ipv4-internet-plain"]
        result.check(
            _("a page sees the computer's own address"), page.answer == plan.LAN_A.client4, page.answer or page.outcome
        )
        state = read_kernel_state(session.world.client)
        result.check(_("the kernel has no rules left"), not state.ruleset and TUN_NAME not in state.links)
        remaining = [
            path for path in (Layout().program_dir, Layout().data_dir, Layout().config_dir) if self._exists(path)
        ]
        result.check(_("no files are left"), not remaining, ", ".join(map(str, remaining)))
        return result

    def _exists(self, path: object) -> bool:
        return (self._session.computer.files / str(path).lstrip("/")).exists()
