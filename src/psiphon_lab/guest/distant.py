# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The world as a process inside a guest sees it: the client and its container are here, everything else is outside.

What is outside is reached through a link: programs of a provider or neighbour, their shots, and the carriers of cables.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from psiphon_lab.addresses import LAN_A, LAN_B, Lan
from psiphon_lab.fork_server import PAUSE, Child, ForkServer, Outcome, Shot, serve
from psiphon_lab.leaktest.testbed import Testbed
from psiphon_lab.link import Link
from psiphon_lab.namespace import PATIENCE, Host, LabError
from psiphon_lab.topology import QUIET_CARDS
from psiphon_lab.world import World

OUTSIDE = ("provider_a", "provider_b", "neighbour")
"""The hosts that attacks use, besides the client and the container."""
INSIDE = ("client", "container")


class DistantProcess:
    """A program on a host outside: what attacks use of a Popen."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As of Popen."""
        self.returncode = self._link.ask("poll", self._number, seconds=PATIENCE)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As of Popen."""
        self.returncode = self._link.ask("await", self._number, timeout, seconds=(timeout or 0) + PATIENCE)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a program outside", timeout or 0)
        return self.returncode

    def terminate(self) -> None:
        """As of Popen."""
        self._link.ask("end", self._number, False, seconds=PATIENCE)

    def kill(self) -> None:
        """As of Popen."""
        self._link.ask("end", self._number, True, seconds=PATIENCE)


class WholeGuest(Host):
    """The guest itself. Programs are started in its own namespaces, so nothing has to enter them."""

    def command(self, argv: Sequence[str | Path], **options: Any) -> list[str]:
        """As of Host."""
        full = super().command(argv, **options)
        return full[full.index("--") + 1 :]


class DistantHost(Host):
    """A host outside."""

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self._link = link

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        input: str | None = None,
        check: bool = True,
        timeout: float = PATIENCE,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """As of Host, as root and in the usual environment."""
        if more:
            raise LabError(f"a host outside runs nothing with {', '.join(more)}")
        words = [str(word) for word in argv]
        code, out, err = self._link.ask("run", self.name, words, input, timeout, seconds=timeout + PATIENCE)
        if check and code != 0:
            raise LabError(f"{self.name}: rc {code}: {words}\n{out}{err}")
        return subprocess.CompletedProcess(words, code, out, err)

    def spawn(self, argv: Sequence[str | Path], **_more: Any) -> subprocess.Popen[bytes]:
        """As of Host, without its output."""
        number = self._link.ask("spawn", self.name, [str(word) for word in argv], seconds=PATIENCE)
        return cast("subprocess.Popen[bytes]", DistantProcess(self._link, number))

    def begin_close(self) -> None:
        """It ends with the world outside."""

    def close(self) -> None:
        """It ends with the world outside."""


class DistantServer:
    """The tunnel's server, which is outside."""

    def __init__(self, entry: str) -> None:
        self.entry = entry

    @property
    def pid(self) -> int:
        """It has none here."""
        raise LabError("the server is outside")

    def read_flows(self) -> frozenset[Any]:
        """Only the judge needs them, and it is outside."""
        raise LabError("the server is outside")

    def keep(self) -> None:
        """It ends with the world outside."""


class InnerWorld(World):
    """The guest itself as the client, its container, and the hosts outside.

    Args:
        link: leads outside.
        directory: for files of this side.
        shared: a directory that both sides have under this path.
    """

    host_names = ("container",)

    def __init__(self, link: Link, *, directory: Path, shared: Path) -> None:
        super().__init__(directory=directory, captures=False)
        self._link = link
        self._shared = shared

    @property
    def shared(self) -> Path:
        """See `World`."""
        return self._shared

    def _open_hosts(self) -> None:
        super()._open_hosts()
        # The client is no namespace: it is the whole guest.
        holder = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.PIPE)
        self.client = self.hosts["client"] = WholeGuest("client", holder, Path("/etc/resolv.conf"))
        for name in OUTSIDE:
            host = DistantHost(name, self._link)
            self.hosts[name] = host
            setattr(self, name, host)

    def prepare_hosts(self) -> None:
        """Let the cards have their IPv6 addresses at once: they are older than what `wire_up` sets for new ones."""
        for lan in (LAN_A, LAN_B):
            card = f"ipv6/conf/{lan.interface}"
            self.client.set_sysctls({f"{card}/{name}": 0 for name in QUIET_CARDS})

    def _own_hosts(self) -> dict[str, Host]:
        return {name: self.hosts[name] for name in INSIDE}

    def _own_services(self) -> list[Any]:
        return []

    def set_carrier(self, lan: Lan, *, up: bool) -> None:
        """Switch the carrier of the client's cable on or off, at the provider's end and at the card."""
        self._link.ask("set_carrier", lan.name, up, seconds=PATIENCE)

    def _wait_port(self, lan: Lan) -> None:
        """The other end is a TAP interface, which is operational as soon as it is up."""


class InnerTestbed(Testbed):
    """The testbed inside: the server is signalled through the link."""

    def __init__(self, link: Link, **fields: Any) -> None:
        super().__init__(**fields)
        self._link = link

    def signal_server(self, number: int) -> None:
        """See `Outside`."""
        self._link.ask("signal_server", int(number), seconds=PATIENCE)


class ForkedChild:
    """A process that was forked without exec; see `fork_server.Child`."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout

    def wait(self, timeout: float | None = None) -> int:
        """As of Popen; it waits for as long as it takes."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def kill(self) -> None:
        """As of Popen."""
        os.kill(self._pid, signal.SIGKILL)


def fork_child(work: Callable[[], None]) -> ForkedChild:
    """Fork; the child works with pipes as standard input and output, and ends. Only without other threads."""
    orders, outcomes = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(orders[0], 0)
            os.dup2(outcomes[1], 1)
            os.closerange(3, 64)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - until the process ends
            work()
        finally:
            os._exit(0)
    os.close(orders[0])
    os.close(outcomes[1])
    return ForkedChild(pid, os.fdopen(orders[1], "wb"), os.fdopen(outcomes[0], "rb"))


class SplitForkServer(ForkServer):
    """Fires shots here, or through the link on hosts outside."""

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__(modules)
        self.link: Link | None = None

    def launch(self) -> Child:
        """See `ForkServer`."""
        # A fork of this process, which has imported everything: an emulated processor takes half a minute for that.
        return fork_child(partial(serve, self.modules, sharing=True))

    def _ask(self, name: str, *arguments: Any, seconds: float) -> Any:
        assert self.link is not None
        return self.link.ask(name, *arguments, seconds=seconds)

    def order(
        self,
        host: Host,
        function: Callable[..., str | None],
        shot: Shot,
        *,
        uid: int = 0,
        seconds: float = 0.0,
        until: Path | None = None,
        pause: float = PAUSE,
        arguments: dict[str, Any] | None = None,
    ) -> int:
        """See `ForkServer`. A shot from outside has a negative number."""
        options: dict[str, Any] = {
            "uid": uid,
            "seconds": seconds,
            "until": until,
            "pause": pause,
            "arguments": arguments,
        }
        if not isinstance(host, DistantHost):
            return super().order(host, function, shot, **options)
        place = (function.__module__, function.__name__)
        return -int(self._ask("order", host.name, place, shot, options, seconds=PATIENCE))

    def wait(self, number: int, *, seconds: float = 0.0) -> Outcome:
        """See `ForkServer`."""
        if number > 0:
            return super().wait(number, seconds=seconds)
        outcome = self._ask("outcome", -number, seconds, seconds=seconds + 2 * PATIENCE)
        assert isinstance(outcome, Outcome)
        return outcome
