"""The story of `demo --system`: a Debian is booted, the service installed, opened, rebooted with, and removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from psiphon_lab import addresses as plan
from psiphon_lab.booted.kernel_state import read_kernel_state
from psiphon_lab.booted.session import Session
from psiphon_lab.namespace import LabError
from psiphon_lab.trial import StepResult
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import Layout


class SystemStory:
    """Tells the steps in order; each is yielded as soon as it is judged.

    Args:
        session: a computer that is off.
        announce: called with what is about to be done, before it is.
    """

    def __init__(self, session: Session, *, announce: Callable[[str], None]) -> None:
        self._session = session
        self._announce = announce

    def tell(self) -> Iterator[StepResult]:
        """All steps. Stops after one that could not even be carried out."""
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
        """Probe all the time, and judge every frame of that time into the result."""
        with self._session.watch() as watched:
            yield
        result.probes += watched.probes
        result.outcomes.update(watched.outcomes)
        result.frames += watched.frames
        result.kinds.update(watched.kinds)
        result.leaks += watched.leaks
        detail = f"{watched.probes} probes, {len(watched.seen)} seen"
        result.check(_("no frame of any probe outside"), watched.probes > 0 and not watched.seen, detail)
        result.check(_("no other frame that is not innocent"), not watched.leaks, f"{watched.frames} frames judged")
        controls = f"{len(self._session.controls)} controls"
        result.check(_("each probe had its positive control"), not watched.uncontrolled, controls)

    def _expect_tunnel(self, result: StepResult) -> None:
        flaws = self._session.find_flaws_when_open()
        result.check(
            _("pages see the server's address, names are answered inside the tunnel"), not flaws, "; ".join(flaws[:2])
        )
        said = self._session.ask_names()
        result.check(_("the system's own resolver answers"), not said, "; ".join(said))

    # -- the steps --------------------------------------------------------------------------------------------------

    def _positive_control(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("positive control"), done=_("booted, no lock: every probe must be seen outside"))
        self._announce(_("The computer boots. Without any lock, every probe must be seen outside."))
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
        self._announce(_("The service is installed from a clone, as a user does it. It locks; it has no server yet."))
        begin = time.monotonic()
        session.service.install()
        result.figures[_("install, s")] = time.monotonic() - begin
        with self._watching(result):
            answered = session.find_answers()
        result.check(_("nothing is answered"), not answered, ", ".join(answered[:3]))
        result.check(_("locked, as read from the kernel"), session.service.read_status().get("locked") is True)
        return result

    def _open(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("open"), done=_("the configuration names a server: verified, leased, open"))
        self._announce(_("It is told of a server and connects. A page must see the server's address."))
        since = time.time()
        with self._watching(result):
            session.service.configure()
            begin = time.monotonic()
            session.service.command("reload")
            session.service.wait_open()
            result.figures[_("reload to open, ms")] = (time.monotonic() - begin) * 1000
            self._expect_tunnel(result)
        asked = session.list_outside_queries(since)
        result.check(_("no resolver outside was asked"), not asked, ", ".join(asked[:3]))
        return result

    def _reboot(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("reboot"), done=_("shutdown, a kernel that knows nothing, boot, open again"))
        self._announce(_("The computer reboots, with probes and captures running from before its first frame."))
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
        result.check(_("the lock stands before the network is set up"), times.lock < times.network_pre)
        result.check(_("the lock stands before the first frame"), first is not None and times.lock < first)
        return result

    def _uninstall(self) -> StepResult:
        session = self._session
        result = StepResult(name=_("uninstall"), done=_("every change undone, the network opened last"))
        self._announce(_("The service is removed: everything is undone, and the network is open as it was before."))
        begin = time.monotonic()
        session.service.run_setup("uninstall", "--yes")
        result.figures[_("uninstall, s")] = time.monotonic() - begin
        session.computer.wait_address()
        found = session.probe()
        result.probes = len(found)
        result.outcomes.update(item.outcome for item in found.values())
        page = found["user-tcp-ipv4-internet-plain"]
        result.check(
            _("a page sees the computer's own address"), page.answer == plan.LAN_A.client4, page.answer or page.outcome
        )
        state = read_kernel_state(session.world.client)
        result.check(_("no rules are left in the kernel"), not state.ruleset and "PsiphonTUN" not in state.links)
        left = [path for path in (Layout().program_dir, Layout().data_dir, Layout().config_dir) if self._exists(path)]
        result.check(_("no files are left"), not left, ", ".join(map(str, left)))
        return result

    def _exists(self, path: object) -> bool:
        return (self._session.computer.files / str(path).lstrip("/")).exists()
