# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual computer with the service installed, and the scenarios that happen to it: boots and sleeps.

The service is installed by the commands that a user types, while the computer is still a container, because an emulated
processor takes ten times as long. The first boot of the virtual computer is the positive control: the same disk, but
the service's units find that nobody has set it up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from psiphon_lab.addresses import Lan
from psiphon_lab.booted.installation import Installation
from psiphon_lab.booted.session import Session, open_session
from psiphon_lab.namespace import LabError
from psiphon_lab.server_process import ServerProcess
from psiphon_lab.service_adapter.installed import KILLSWITCH_UNIT, Layout
from psiphon_lab.service_adapter.names import BASE_TABLE, LEASE_SET, LEASE_SET_IPV6
from psiphon_lab.vm.sleeps import MEMORY, SUSPEND, SleepKind
from psiphon_lab.vm.storm import ROOT, USER
from psiphon_lab.vm.virtual_computer import VirtualComputer
from psiphon_lab.vm.watch import SHOTS, STORM_UNIT, Listener, Seen, Watch, listening, prepare_storms
from psiphon_lab.waiting import wait_until

STATE_SECONDS: Final = 900.0
"""An emulated processor on a busy machine needs minutes."""
LOOK_SECONDS: Final = 3.0
_AWAY: Final = ".away"
_LEASES: Final = "/run/psiphon-lab-leases"
_LISTED: Final = "listed"
_HOOK: Final = f"""\
#!/bin/sh
# What the kernel holds of the lease right before and right after a sleep (systemd-suspend.service(8)).
for set in {LEASE_SET} {LEASE_SET_IPV6}; do
    nft list set inet {BASE_TABLE} $set | sed "s/^/$1 /" >>{_LEASES}
done
echo "$1 {_LISTED}" >>{_LEASES}
"""


@dataclass(frozen=True, kw_only=True)
class Boot:
    """A boot, in seconds after its start.

    Attributes:
        seen: what left, the end of what was before included.
        initrd: what of it left before systemd's generators had run, so before any lock or unit.
        units: the rest of it.
        kernel, network_pre: when the kernel started, and when network managers could.
        lock: when the boot lock's unit had loaded it.
        first_frame: None if there was none.
    """

    seen: Seen
    initrd: Seen
    units: Seen
    kernel: float
    lock: float
    network_pre: float
    first_frame: float | None


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A boot after which the computer must be closed.

    Attributes:
        seen: what left since the firmware.
        failed: units that failed.
        up: interfaces that are up.
        console: what the system said there.
        status: what the service says of itself, empty if nothing.
    """

    seen: Seen
    failed: tuple[str, ...]
    up: tuple[str, ...]
    console: str
    status: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sleep:
    """A sleep.

    Attributes:
        seen: what left from before the sleep until after it.
        leases: the lease as nft lists it, each line with "pre" or "post" before it: right before and right after the
            kernel slept. Empty if the sleep was not systemd's.
        reopened: seconds from the wake-up to the first answer through the tunnel, or None.
        first_frame: seconds from the wake-up to the first frame, or None.
        unattended: number of frames after the wake-up and before the first of the core.
    """

    seen: Seen
    leases: str
    reopened: float | None
    first_frame: float | None
    unattended: int


class Bench:
    """A virtual computer with a tunnel server.

    Args:
        session: from `open_session`, off.
    """

    def __init__(self, session: Session) -> None:
        assert isinstance(session.computer, VirtualComputer)
        assert isinstance(session.server, ServerProcess)
        self.session = session
        self.computer: VirtualComputer = session.computer
        self.server: ServerProcess = session.server
        self.service: Installation = session.service

    # -- preparation ------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Install the service in the container, and turn that into a virtual computer without a lock, off."""
        computer = self.computer
        computer.power_on()
        computer.wait_address()
        self.service.install()
        self.service.configure()
        computer.shut_down()
        for path in self._find_signs(computer.files):
            path.rename(f"{path}{_AWAY}")
        prepare_storms(computer)
        hook = computer.files / "usr/lib/systemd/system-sleep/lab"
        hook.parent.mkdir(parents=True, exist_ok=True)
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        computer.become_virtual()

    @staticmethod
    def _find_signs(root: Path) -> tuple[Path, ...]:
        """What tells the service's units that the machine is set up."""
        layout = Layout(root=root)
        return layout.boot_rules.parent, layout.install_journal

    def set_up(self) -> None:
        """Let the units find that the service is set up. They do at the next boot."""
        for path in self._find_signs(Path("/")):
            self.computer.run(["mv", f"{path}{_AWAY}", str(path)])
        self.computer.run(["sync"])

    # -- scenarios ----------------------------------------------------------------------------------------------------

    def control(self, watch: Watch) -> Seen:
        """Wait until every shot was seen outside, and then every one again after a sleep. Without a lock."""
        self.computer.wait_address(seconds=STATE_SECONDS)
        watch.wait_shots(SHOTS, seconds=STATE_SECONDS)
        since = self.computer.mark()
        child = self.computer.inside.spawn(SUSPEND)
        self.computer.wait_asleep(since)
        after = Watch(self.computer, self.server)
        self.computer.wake()
        child.wait(timeout=STATE_SECONDS)
        after.wait_shots(SHOTS, seconds=STATE_SECONDS)
        return watch.look()

    def boot(self, start: Callable[[], None], *, from_start: bool = False) -> Boot:
        """Boot until the tunnel is open.

        Args:
            start: starts it; see `VirtualComputer.reboot`.
            from_start: whether to watch only from there on, and not the end of what was before.
        """
        watch = Watch(self.computer, self.server)
        start()
        begin = self.computer.started
        if from_start:
            watch.leave_out(before=begin)
        self.computer.wait_booted()
        self.wait_open()
        moments = {unit: self._read_moment(unit) for unit in (KILLSWITCH_UNIT, "network-pre.target")}
        kernel = self.computer.read_kernel_start()
        generators = kernel + self._read_generators_end()
        late = [frame.time for frame in watch.frames() if frame.time > begin]
        return Boot(
            seen=watch.look(),
            initrd=watch.look(until=generators),
            units=watch.look(since=generators),
            kernel=kernel - begin,
            lock=kernel - begin + moments[KILLSWITCH_UNIT],
            network_pre=kernel - begin + moments["network-pre.target"],
            first_frame=min(late) - begin if late else None,
        )

    def boot_closed(self, start: Callable[[], None]) -> Closed:
        """Boot a computer whose lock cannot load, until the storms have raged in it.

        Args:
            start: starts it; see `VirtualComputer.reset`.
        """
        watch = Watch(self.computer, self.server)
        start()
        watch.leave_out(before=self.computer.started)
        self.computer.wait_booted()
        for label in (ROOT, USER):
            self._read_moment(STORM_UNIT.format(label=label))
        units = self.computer.run(["systemctl", "list-units", "--state=failed", "--plain", "--no-legend"]).stdout
        links = self.computer.run(["ip", "-o", "link", "show", "up"]).stdout
        console = self.computer.read_console()
        return Closed(
            seen=watch.look(),
            failed=tuple(line.split()[0] for line in units.splitlines()),
            up=tuple(line.split()[1].rstrip(":") for line in links.splitlines()),
            console=console[console.rfind("systemd[1]") :],
            status=self.service.read_status(),
        )

    def _read_moment(self, unit: str) -> float:
        """When a unit became active at this boot, in seconds after the kernel started."""
        name = "ActiveEnterTimestampMonotonic"
        moment = int(self.computer.show(unit, name)[name])
        if moment == 0:
            raise LabError(f"{unit} has not been active at this boot")
        return moment / 1e6

    def _read_generators_end(self) -> float:
        """When systemd's generators had run at this boot, in seconds after the kernel started."""
        shown = self.computer.run(["systemctl", "show", "--value", "-p", "GeneratorsFinishTimestampMonotonic"]).stdout
        return int(shown) / 1e6

    def wait_open(self) -> None:
        """Wait until the tunnel is open for both families. Raises LabError with the end of the log."""
        self._wait_status(lambda status: bool(status.get("state") == "OPEN" and status.get("ipv6")), "open")

    def wait_locked(self) -> None:
        """Wait until the service says that it is locked. Raises LabError with the end of the log."""
        self._wait_status(lambda status: status.get("state") == "LOCKED", "locked")

    def _wait_status(self, wanted: Callable[[Mapping[str, Any]], bool], what: str) -> None:
        status: Mapping[str, Any] = {}
        deadline = time.monotonic() + STATE_SECONDS
        while not wanted(status):
            if time.monotonic() > deadline:
                raise LabError(f"not {what} within {STATE_SECONDS:g} s, but {status}\n{self.service.read_journal()}")
            # Seldom: each look costs an emulated processor seconds, which the service needs.
            time.sleep(LOOK_SECONDS)
            with contextlib.suppress(LabError):  # no answer in time
                status = self.service.read_status()

    def suspend(
        self,
        kind: SleepKind = MEMORY,
        *,
        argv: tuple[str, ...] = (),
        before: Callable[[], None] = lambda: None,
        asleep: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        carriers: Mapping[Lan, bool] = MappingProxyType({}),
        opens: bool = True,
    ) -> Sleep:
        """Sleep, and be woken up by the hardware.

        Args:
            kind: of the sleep.
            argv: the command inside that begins it, if it is not systemd's.
            before: what happens to the open computer before.
            asleep: what happens outside while it sleeps.
            carriers: by provider, whether its cable is in when the computer wakes up; the others stay as they are.
            after: what happens after the computer has woken up and the command has ended.
            opens: whether the tunnel is open before and after.
        """
        computer = self.computer
        kind.prepare(computer)
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listening(computer))
            if opens:
                listener.wait_answers(since=0.0, seconds=STATE_SECONDS)
            watch = Watch(computer, self.server)
            computer.run(["rm", "-f", _LEASES])
            before()
            since = computer.mark()
            child = computer.inside.spawn(argv or kind.argv)
            kind.wait_asleep(computer, since)
            asleep()
            for lan, up in carriers.items():
                computer.world.set_carrier(lan, up=up)
            woke = kind.wake(computer)
            child.wait(timeout=STATE_SECONDS)
            for lan, up in carriers.items():
                computer.show_carrier(lan, up=up)
            if not kind.keeps_ports:
                listener = stack.enter_context(listening(computer))
            after()
            opened = self._wait_reopened(listener, woke) if opens else None
            # systemctl does not wait for the end of the sleep, so the hook after it may still run.
            leases = "" if argv else self._wait_hook()
            late, unattended = watch.count_until_core(since=woke)
            return Sleep(
                seen=watch.look(),
                leases=leases,
                reopened=opened,
                first_frame=None if late is None else late - woke,
                unattended=unattended,
            )

    def _wait_hook(self) -> str:
        """What the hook has written, as soon as it ran after the sleep too."""
        written = ""

        def ended() -> bool:
            nonlocal written
            written = self.computer.run(["cat", _LEASES], check=False).stdout
            return f"post {_LISTED}" in written

        wait_until(ended, "systemd's hook after the sleep", timeout=STATE_SECONDS, pause=LOOK_SECONDS)
        return written

    def _wait_reopened(self, listener: Listener, woke: float) -> float:
        moment = listener.wait_answers(since=woke, seconds=STATE_SECONDS)
        self.wait_open()
        return moment - woke


@contextlib.contextmanager
def open_bench(tree: Path, wheels: Path, *, manager: str = "NetworkManager") -> Iterator[Bench]:
    """A computer with the service installed and no lock, off, which will be virtual when it is switched on."""
    with open_session(tree, wheels, manager=manager, kind=VirtualComputer) as session:
        bench = Bench(session)
        bench.install()
        yield bench
