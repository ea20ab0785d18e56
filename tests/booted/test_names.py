# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""DNS on a real desktop: every DNS mode of NetworkManager, and resolvers that it does not manage.

One computer for all tests, in this order; each finds it installed and open. The last one uninstalls.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.booted.conftest import note, scenario, start_session

from psiphon_lab import addresses as plan
from psiphon_lab.booted.booted_host import PYTHON
from psiphon_lab.booted.session import Session
from psiphon_lab.frames import describe_frame
from psiphon_lab.probe_runner import NOBODY
from psiphon_lab.waiting import wait_until
from psiphon_vpn.diagnose.name_path import WAYS_OUT, Asked

VARIANT = ("debian13", "NetworkManager")
"""For the time it takes only the newest NetworkManager (1.52). Debian 12's (1.42) was seen to do all of it alike."""
PAGE = "connectivity"
QUESTION = f'[connectivity]\nuri=http://{plan.ECHO_NAME}/{PAGE}\nresponse={{"address"\ninterval=5\n'
"""As distributions configure it; the lab's page begins with these bytes."""
ROUTER = f"nameserver {plan.LAN_A.router4}\n"
STUB = "../run/systemd/resolve/stub-resolv.conf"
OWN_SETTINGS = "etc/NetworkManager/conf.d/90-own.conf"
ASK = (
    "import socket, sys\n"
    "try:\n"
    "    print(socket.getaddrinfo(sys.argv[1], None, socket.AF_INET)[0][4][0])\n"
    "except socket.gaierror as error:\n"
    "    print(error)\n"
)


@dataclass(frozen=True)
class Mode:
    """NetworkManager's `dns=`; resolved: systemd-resolved runs; resolv_conf: what an administrator has put there."""

    dns: str
    resolved: bool = False
    resolv_conf: str = ""


MODES = {
    mode.dns: mode
    for mode in (Mode("dnsmasq"), Mode("default"), Mode("systemd-resolved", resolved=True), Mode("none", False, ROUTER))
}


class Desktop:
    """What a user does on such a computer, and what the laboratory sees of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.computer = session.computer
        self._names = 0

    def sh(self, script: str, **options: Any) -> str:
        return str(self.computer.run(["sh", "-c", script], check=False, **options).stdout.strip())

    def write(self, path: str, text: str) -> None:
        place = self.computer.files / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.write_text(text)

    def reload(self, unit: str = "NetworkManager", verb: str = "reload") -> None:
        self.sh(f"systemctl {verb} {unit}")

    def choose(self, mode: Mode, more: str = "") -> None:
        """Select a DNS mode of NetworkManager, without remains of another mode."""
        resolv_conf = self.computer.files / "etc/resolv.conf"
        if mode.resolved:
            self.sh("systemctl unmask --runtime systemd-resolved; systemctl start systemd-resolved")
        else:
            self.sh("systemctl mask --runtime --now systemd-resolved")
        resolv_conf.unlink(missing_ok=True)
        if mode.resolved:
            resolv_conf.symlink_to(STUB)
        elif mode.resolv_conf:
            resolv_conf.write_text(mode.resolv_conf)
        # systemd's resolvconf, which Debian's NetworkManager prefers, refuses while systemd-resolved does not run.
        self.write(OWN_SETTINGS, f"[main]\ndns={mode.dns}\nrc-manager=symlink\n{more}")
        self.reload()

    def ask(self, uid: int = NOBODY) -> str:
        """Have a program look up a new name; returns an address, or the C library's error."""
        self._names += 1
        name = f"name{self._names}.{plan.ZONE}"
        return self.computer.run([PYTHON, "-I", "-c", ASK, name], uid=uid, gid=uid, timeout=40).stdout.strip()

    def wait_names(self) -> None:
        """Wait until names resolve, for root and for a user."""
        for uid in (0, NOBODY):
            wait_until(lambda uid=uid: self.ask(uid) == plan.INTERNET4, "a name", pause=0.2)  # type: ignore[misc]

    def read_check(self, name: str) -> dict[str, Any]:
        """The result of one check of `diagnose`."""
        report = json.loads(self.session.service.command("diagnose", "--json", check=False).stdout)
        return next(dict(check) for check in report["checks"] if check["id"] == name)

    def assert_reported_well(self) -> None:
        """Require that `diagnose` finds that programs resolve names."""
        found: list[dict[str, Any]] = []

        def was_open() -> bool:
            # A restart of NetworkManager may change the network once more, and the check is made only while open.
            self.session.service.wait_open()
            found.append(self.read_check("dns.programs"))
            return bool(found[-1]["verdict"] != "skipped")

        wait_until(was_open, "a check while the tunnel is open")
        assert found[-1]["verdict"] == "ok", found[-1]["reason"]

    def find_question(self, since: float) -> list[str]:
        """The addresses from which NetworkManager's page was requested."""
        return [
            record["caller"]
            for record in self.session.world.read_record("internet")
            if record["time"] >= since and f"/{PAGE} " in record.get("request", "")
        ]

    def ask_networkmanager(self) -> str:
        """Have NetworkManager check the connectivity; returns the state and connectivity that a desktop shows."""
        self.sh("nmcli networking connectivity check", timeout=30)
        return self.sh("nmcli -t -f STATE,CONNECTIVITY general")

    def turn_question_on(self) -> None:
        """Turn the check on, as the switch in a desktop's settings does."""
        name = "org.freedesktop.NetworkManager"
        self.sh(f"busctl set-property {name} /org/freedesktop/NetworkManager {name} ConnectivityCheckEnabled b true")

    def read_choice(self) -> str:
        """The setting that NetworkManager has stored for that switch."""
        text = (self.computer.files / "var/lib/NetworkManager/NetworkManager-intern.conf").read_text()
        return " ".join(re.findall(r"(?m)^\.set\.enabled=\w+$", text))

    def read_reported(self, mode: Mode) -> str:
        """The servers that the mode's resolver has been given."""
        if mode.dns == "dnsmasq":
            return self.sh(
                "journalctl -o cat -u NetworkManager | grep 'using nameserver' | grep -v 'for domain' | tail -n 1"
            )
        if mode.dns == "systemd-resolved":
            return self.sh("resolvectl dns | grep -v ':$'").replace("\n", "; ")
        return self.sh("grep ^nameserver /etc/resolv.conf").replace("\n", "; ")

    @contextlib.contextmanager
    def running(self, *argv: str) -> Iterator[None]:
        """Run a resolver that NetworkManager does not manage, once NetworkManager's own has ended."""
        wait_until(lambda: "127.0.0.1:53" not in self.sh("ss -Hlun"), "a free port", pause=0.05)
        child = self.computer.inside.spawn(
            ["timeout", "60", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: "127.0.0.1:53" in self.sh("ss -Hlun"), argv[0], pause=0.05)
            yield
        finally:
            child.terminate()
            self.sh(f"kill $(pidof {argv[0]})")
            child.wait()


def assert_as_without_the_service(desktop: Desktop, when: str) -> None:
    """Names are resolved by the network's own resolver, and NetworkManager's check is in clear on the wire."""
    since, mark = time.time(), desktop.session.world.mark()
    desktop.reload()
    desktop.wait_names()
    assert desktop.session.list_outside_queries(since)
    assert desktop.ask_networkmanager() == "connected:full"
    assert plan.LAN_A.client4 in desktop.find_question(since)
    frames = [describe_frame(frame) for frame in desktop.session.world.frames_since(mark)]
    assert any(plan.INTERNET4 in text for text in frames), "the captures see the question too"
    note(f"names {when}", system=desktop.session.name, reported=desktop.read_reported(MODES["dnsmasq"]))


@pytest.fixture(scope="module")
def installed(wheels: Path) -> Iterator[Desktop]:
    """Positive controls; then installed while NetworkManager runs with dns=dnsmasq, and opened."""
    with start_session(VARIANT, wheels) as session:
        desktop = Desktop(session)
        desktop.write("usr/lib/NetworkManager/conf.d/20-connectivity-distribution.conf", QUESTION)
        desktop.reload()
        desktop.turn_question_on()
        for mode in reversed(MODES.values()):
            desktop.choose(mode)
            desktop.wait_names()
        assert_as_without_the_service(desktop, "before")
        assert desktop.read_choice()
        session.service.install()
        session.service.configure()
        session.service.command("reload")
        session.service.wait_open()
        yield desktop


@pytest.fixture
def desktop(installed: Desktop) -> Desktop:
    """The installed computer, open again before each test."""
    installed.session.service.wait_open()
    return installed


@pytest.mark.requirement("R11")
def test_names_resolve_and_no_query_is_in_clear_in_any_mode_of_networkmanager(desktop: Desktop) -> None:
    session = desktop.session
    with scenario(session, "names, each mode of NetworkManager"):
        since = time.time()
        desktop.wait_names()  # as after the installation; NetworkManager has not been restarted
        for dns, mode in MODES.items():
            desktop.choose(mode)
            desktop.wait_names()
            desktop.assert_reported_well()
            desktop.turn_question_on()
            shown, reported = desktop.ask_networkmanager(), desktop.read_reported(mode)
            assert shown == "connected:full"
            wanted = {"dnsmasq": "using nameserver 10.200.3.2#53", "default": "nameserver 10.200.3.2"}
            assert reported == wanted.get(dns, reported)
            note(f"dns={dns}, open", system=session.name, reported=reported, shown=shown)
        desktop.choose(MODES["dnsmasq"])
        desktop.reload(verb="restart")
        desktop.wait_names()
    assert not session.list_outside_queries(since)
    assert not desktop.find_question(since)


@pytest.mark.requirement("R11")
def test_a_resolver_of_ones_own_resolves_by_any_ipv4_server(desktop: Desktop) -> None:
    desktop.choose(Mode("none", False, "nameserver 127.0.0.1\n"))
    settings = (
        'username: ""\n chroot: ""\n pidfile: ""\n use-syslog: no\n module-config: "iterator"\n interface: 127.0.0.1'
    )
    forward = f'forward-zone:\n name: "."\n forward-addr: {plan.LAN_A.router4}\n'
    desktop.write("root/unbound.conf", f"server:\n {settings}\n{forward}")
    since = time.time()
    with scenario(desktop.session, "names by unbound"), desktop.running("unbound", "-d", "-c", "/root/unbound.conf"):
        desktop.wait_names()
        desktop.assert_reported_well()
    assert not desktop.session.list_outside_queries(since)


Running = contextlib.AbstractContextManager[None]
Case = Callable[[Desktop, bool], Running]


def only_ipv6_in_resolv_conf(desktop: Desktop, repaired: bool) -> Running:
    desktop.choose(Mode("none", False, f"nameserver {plan.LAN_A.router6}\n{ROUTER if repaired else ''}"))
    return contextlib.nullcontext()


def no_resolv_conf(desktop: Desktop, repaired: bool) -> Running:
    desktop.choose(Mode("none", False, ROUTER if repaired else ""))
    return contextlib.nullcontext()


def dnsmasq_bound_to_a_card(desktop: Desktop, repaired: bool) -> Running:
    desktop.choose(Mode("none", False, "nameserver 127.0.0.1\n"))
    server = plan.LAN_A.router4 if repaired else f"{plan.LAN_A.router4}@{plan.LAN_A.interface}"
    argv = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    return desktop.running("dnsmasq", *argv, "--listen-address=127.0.0.1", "--pid-file=", f"--server={server}")


def networkmanager_that_knows_ipv6_alone(desktop: Desktop, repaired: bool) -> Running:
    own = f"[global-dns]\n[global-dns-domain-*]\nservers={plan.LAN_A.router6}\n"
    desktop.choose(MODES["default"], "" if repaired else own)
    return contextlib.nullcontext()


def resolved_that_knows_ipv6_alone(desktop: Desktop, repaired: bool) -> Running:
    desktop.choose(MODES["systemd-resolved"])
    own = f"[Resolve]\nDNS=\nDNS={plan.LAN_A.router6}\nDomains=~.\n"
    desktop.write("etc/systemd/resolved.conf.d/zzzz-own.conf", "" if repaired else own)
    desktop.reload("systemd-resolved", "restart")
    return contextlib.nullcontext()


def no_dns_in_nsswitch(desktop: Desktop, repaired: bool) -> Running:
    """The C library then reports that the name does not exist (EAI_NONAME)."""
    desktop.choose(MODES["none"])
    path = desktop.computer.files / "etc/nsswitch.conf"
    path.write_text(
        re.sub(
            r"(?m)^hosts:.*$", f"hosts: files{' resolve [!UNAVAIL=return] dns' if repaired else ''}", path.read_text()
        )
    )
    return contextlib.nullcontext()


CASES: dict[Case, Asked] = {
    no_dns_in_nsswitch: Asked.NO_DNS,
    only_ipv6_in_resolv_conf: Asked.NONE,
    no_resolv_conf: Asked.NONE,
    dnsmasq_bound_to_a_card: Asked.LOCAL,
    networkmanager_that_knows_ipv6_alone: Asked.NETWORKMANAGER,
    resolved_that_knows_ipv6_alone: Asked.RESOLVED,
}


@pytest.mark.requirement("R11", "R15")
def test_what_does_not_resolve_fails_its_check_with_a_way_out_that_works(desktop: Desktop) -> None:
    session = desktop.session
    since = time.time()
    with scenario(session, "names that do not resolve"):
        for case, asked in CASES.items():
            with case(desktop, False):
                said = desktop.ask()
                assert said != plan.INTERNET4, case.__name__
                check = desktop.read_check("dns.programs")
                assert (check["verdict"], check["next_step"]) == ("failed", WAYS_OUT[asked]), case.__name__
            with case(desktop, True):
                desktop.wait_names()
                desktop.assert_reported_well()
            note(f"names, {case.__name__.replace('_', ' ')}", system=session.name, said=said, way_out=asked.name)
        desktop.choose(MODES["dnsmasq"])
        desktop.wait_names()
    assert not session.list_outside_queries(since)


@pytest.mark.requirement("R3", "R11")
def test_there_are_no_queries_while_stopped_and_networkmanager_is_as_before_once_uninstalled(desktop: Desktop) -> None:
    session, service = desktop.session, desktop.session.service
    desktop.choose(MODES["dnsmasq"])
    since = time.time()
    with scenario(session, "names while stopped"):
        service.command("stop")
        desktop.reload(verb="restart")
        assert desktop.ask() != plan.INTERNET4
        note("stopped", system=session.name, shown=desktop.ask_networkmanager())
    assert not session.list_outside_queries(since)

    since = time.time()
    session.computer.run(["psiphon-vpn", "release"], input="release\n", timeout=60)
    desktop.wait_names()
    assert session.list_outside_queries(since), "by the network's own resolver"
    shown = desktop.ask_networkmanager()
    note("released", system=session.name, reported=desktop.read_reported(MODES["dnsmasq"]), shown=shown)
    assert not desktop.find_question(since), "a release for a while changes nothing about the check"

    service.command("start")
    service.wait_open()
    since = time.time()
    with scenario(session, "names after a release"):
        desktop.wait_names()
    assert not session.list_outside_queries(since)

    service.run_setup("uninstall", "--yes")
    session.computer.wait_address()
    assert_as_without_the_service(desktop, "after uninstall")
    assert desktop.read_choice(), "what the user had chosen before"
    assert not list((session.computer.files / "usr/lib/NetworkManager/conf.d").glob("*psiphon*"))
    assert not list((session.computer.files / "run/NetworkManager/conf.d").glob("*psiphon*"))
