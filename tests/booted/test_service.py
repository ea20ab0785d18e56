# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed service on booted systems: everything that happens to it while it stays installed.

All tests of a variant share one computer; each finds it open and leaves it open.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import bridge_of_guests
from tests.booted.conftest import VARIANTS, note, scenario, start_session

from psiphon_lab.booted.session import Session
from psiphon_lab.waiting import wait_until
from psiphon_vpn.core import naming
from psiphon_vpn.diagnose.checks.dns import CHECKS as DNS_CHECKS
from psiphon_vpn.system.layout import GUARD_UNIT, KILLSWITCH_UNIT, SERVICE_UNIT, SLEEP_UNIT, Layout


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def installed(request: pytest.FixtureRequest, wheels: Path) -> Iterator[Session]:
    """Installed from a clone, and open."""
    with start_session(request.param, wheels, short_leases=True) as session:
        begin = time.monotonic()
        session.service.install()
        note("install from a clone", system=session.name, seconds=round(time.monotonic() - begin, 1))
        session.service.configure()
        session.service.command("reload")
        yield session


@pytest.fixture
def session(installed: Session) -> Session:
    """The installed computer, open again before each test."""
    installed.service.wait_open()
    return installed


def systemctl(session: Session, *argv: str, check: bool = True) -> int:
    return session.computer.run(["systemctl", *argv], check=check, timeout=60).returncode


def wait_daemon_other_than(session: Session, pid: str) -> None:
    def is_new() -> bool:
        return session.computer.show(SERVICE_UNIT, "MainPID")["MainPID"] not in {pid, "0"}

    wait_until(is_new, "another daemon", pause=0.1)


def wait_main_process(session: Session, unit: str) -> str:
    """Wait for a unit's main process and return its id: systemd restarts one that failed at its start."""

    def find() -> str:
        return session.computer.show(unit, "MainPID")["MainPID"]

    wait_until(lambda: find() != "0", f"a process of {unit}", pause=0.1)
    assert session.computer.show(unit, "NRestarts")["NRestarts"] == "0", session.service.read_journal(unit)
    return find()


def read_tables(session: Session) -> dict[str, str]:
    """The service's tables without what changes by itself: elements of sets, counters."""
    tables = session.computer.run(["nft", "list", "tables"]).stdout.splitlines()
    return {
        table: re.sub(
            r"\n\s*elements = \{[^}]*\}", "", session.computer.run(["nft", "-s", "list", *table.split()]).stdout
        )
        for table in tables
        if "psiphon" in table
    }


@pytest.mark.requirement("R5", "R9", "R11", "R18")
def test_open_it_carries_pages_and_names_and_nothing_else_leaves(session: Session) -> None:
    since = time.time()
    with scenario(session, "open"):
        assert not session.find_flaws_when_open()
        assert not session.ask_names()
        session.computer.run(["resolvectl", "flush-caches"])
        assert not session.ask_names()
        reported = json.loads(session.service.command("diagnose", "--json", check=False).stdout)["checks"]
        assert {check["id"]: check["verdict"] for check in reported if check["id"].startswith("dns.")} == dict.fromkeys(
            (check.id for check in DNS_CHECKS), "ok"
        )
    assert not session.list_outside_queries(since)


@pytest.mark.requirement("R12")
def test_the_core_is_started_by_the_link_that_gives_it_its_name(session: Session) -> None:
    # The stand-in executes another program and so loses the name; its descriptor's number shows how it was started.
    computer, core = session.computer, session.service.read_status()["core_pid"]
    link = Layout().core_name
    assert computer.run(["stat", "-c", "%u:%g %F", str(link)]).stdout == "0:0 symbolic link\n"
    assert computer.run(["readlink", str(link)]).stdout == f"{naming.TARGET}\n"
    opened = computer.run(["readlink", f"/proc/{core}/fd/{naming.DESCRIPTOR}"]).stdout
    assert opened == "/memfd:psiphon-tunnel-core (deleted)\n"


@pytest.mark.requirement("R3", "R17")
def test_stopping_restarting_and_reloading_never_open(session: Session) -> None:
    service = session.service
    with scenario(session, "stop, restart, reload"):
        service.command("stop")
        assert not session.find_answers()
        service.command("start")
        service.wait_open()
        for verb in ("restart", "reload"):
            service.command(verb)
            service.wait_open()
        systemctl(session, "stop", SERVICE_UNIT)
        assert not session.find_answers()
        # No other way to stop something opens anything either.
        for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
            assert systemctl(session, "stop", unit, check=False) != 0
        assert systemctl(session, "disable", KILLSWITCH_UNIT, check=False) in {0, 1}
        assert not session.find_answers()
        systemctl(session, "start", SERVICE_UNIT)
        service.wait_open()
        for verb in ("reload", "restart"):
            systemctl(session, verb, SERVICE_UNIT)
            service.wait_open()
        systemctl(session, "reload", KILLSWITCH_UNIT)
        assert systemctl(session, "is-failed", "--quiet", KILLSWITCH_UNIT, check=False) != 0
        service.wait_open()
        assert not session.find_flaws_when_open()


SLEEPS = ("suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate")
LOOK = """\
#!/bin/sh
# In the place of systemd-sleep(8): what the kernel and the service say when the machine would sleep.
nft list set inet psiphon_filter tunnel_open >/asleep
nft list set inet psiphon_filter tunnel_open_ipv6 >>/asleep
until psiphon-vpn status --json | grep -q '"sleeping"'; do sleep 0.2; done
echo told >>/asleep
"""


@pytest.mark.requirement("R3", "R6", "R17", "B2")
def test_every_kind_of_sleep_finds_the_tunnel_closed_and_the_service_opens_after_it(session: Session) -> None:
    """A container cannot sleep, but the rest is systemd's own: targets, their order, what it stops after a sleep."""
    computer, asleep = session.computer, session.computer.files / "asleep"
    dropins = [computer.files / f"etc/systemd/system/systemd-{kind}.service.d/lab.conf" for kind in SLEEPS]
    (computer.files / "look").write_text(LOOK)
    (computer.files / "look").chmod(0o755)
    for dropin in dropins:
        dropin.parent.mkdir(parents=True, exist_ok=True)
        dropin.write_text("[Service]\nExecStart=\nExecStart=/look\nTimeoutStartSec=120\n")
    try:
        computer.run(["systemctl", "daemon-reload"])
        listing = computer.run(["nft", "list", "set", "inet", "psiphon_filter", "tunnel_open"]).stdout
        assert "elements" in listing, "the control"
        for kind in SLEEPS:
            asleep.unlink(missing_ok=True)
            with scenario(session, f"sleep: {kind}"):
                computer.run(["systemctl", "start", f"{kind}.target"], timeout=180)
                found = asleep.read_text()
                assert found.count("set tunnel_open") == 2
                assert "elements" not in found
                assert "told" in found
                session.service.wait_open(seconds=60)
                assert not session.find_flaws_when_open()
        # If the service hangs, the tunnel is closed without it, the sleep proceeds, and the watchdog ends the service.
        asleep.unlink()
        (computer.files / "look").write_text(LOOK.partition("until")[0])
        with scenario(session, "sleep while the service hangs"):
            systemctl(session, "kill", "-s", "STOP", SERVICE_UNIT)
            computer.run(["systemctl", "start", "suspend.target"], timeout=180)
            assert "elements" not in asleep.read_text()
            systemctl(session, "kill", "-s", "CONT", SERVICE_UNIT)
            session.service.wait_open(seconds=60)
        said = computer.run(["journalctl", "-b", "--no-pager", "-u", SLEEP_UNIT]).stdout
        assert "closing it without the service" in said
        assert "could not be closed" not in said
    finally:
        for dropin in dropins:
            dropin.unlink(missing_ok=True)
        computer.run(["systemctl", "daemon-reload"])


@pytest.mark.requirement("R3", "B2", "B3")
def test_killed_again_and_again_it_comes_back_and_is_never_open_without_its_tunnel(session: Session) -> None:
    service = session.service
    with scenario(session, "kill -KILL, crash loops"):
        for _ in range(4):
            before = session.computer.show(SERVICE_UNIT, "MainPID")["MainPID"]
            systemctl(session, "kill", "-s", "KILL", SERVICE_UNIT)
            wait_daemon_other_than(session, before)
            service.wait_open()
        # Faster than it can start, and so often that systemd would give up on other units.
        service.command("stop")
        for _ in range(12):
            systemctl(session, "kill", "-s", "KILL", SERVICE_UNIT, check=False)
            time.sleep(0.25)
        service.wait_state("LOCKED")
        assert not session.find_answers()
        systemctl(session, "kill", "-s", "KILL", GUARD_UNIT)
        wait_until(lambda: "psiphon_guard" in session.computer.run(["nft", "list", "tables"]).stdout,
                   "another wire guard", pause=0.1)  # fmt: skip
        service.command("start")
        service.wait_open()
        assert not session.find_flaws_when_open()


@pytest.mark.requirement("R3")
def test_installing_twice_more_changes_nothing(session: Session) -> None:
    with scenario(session, "reinstall twice"):
        for _ in range(2):
            said = session.service.install()
            assert "There was nothing to do" in said.stdout + said.stderr
        session.service.wait_open()
        assert not session.find_flaws_when_open()


@pytest.mark.requirement("R6", "R7", "R19")
def test_the_network_managers_leases_are_renewed_through_the_lock_while_open_and_while_locked(session: Session) -> None:
    """With DHCPv4 and DHCPv6 from a real server. DHCPv6 renews a minute after the boot, which earlier tests took."""
    service, computer = session.service, session.computer

    def count(words: str) -> int:
        return computer.read_provider_log().count(words)

    def renew(words: str) -> None:
        before = count(words)
        wait_until(lambda: count(words) > before, f"another {words}", pause=0.1)

    with scenario(session, "leases renewed"):
        before = service.read_status()
        renew("DHCPACK(")
        after = service.read_status()
        assert [after[name] for name in ("state", "core_pid")] == ["OPEN", before["core_pid"]], "no transition"
        service.command("stop")
        renew("DHCPACK(")
        assert service.read_status()["state"] == "LOCKED"
        service.command("start")
        service.wait_open()
        wait_until(lambda: count("DHCPRENEW(") > 0, "DHCPv6 renewed", timeout=100, pause=0.1)
        shown = computer.run(["ip", "-o", "address", "show", "dev", "eth0", "scope", "global"]).stdout
        assert shown.count(" inet6 ") >= 2, "from DHCPv6 and from advertisements"
        assert not session.find_flaws_when_open()


@pytest.mark.requirement("R3", "R6", "B3")
def test_other_services_that_restart_take_nothing_with_them(session: Session) -> None:
    manager = session.name.partition(", ")[2]
    before = read_tables(session)
    since = time.time()
    with scenario(session, "restart of network manager, resolver and nftables"):
        for unit in (f"{manager}.service", "systemd-resolved.service", "nftables.service"):
            systemctl(session, "restart", unit)
            session.computer.wait_address()
            session.service.wait_open(seconds=60)
        session.service.wait_open()
        # The rules follow the uplink: the router's advertisements may come after the opening.
        wait_until(lambda: read_tables(session) == before, "the same rules as before", pause=0.2)
        assert not session.find_flaws_when_open()
        assert not session.ask_names()
    assert not session.list_outside_queries(since)


@pytest.mark.requirement("R2", "R17")
@pytest.mark.parametrize("how", ["reboot", "power_cycle"])
def test_at_every_boot_the_lock_is_there_before_any_frame(session: Session, how: str) -> None:
    with scenario(session, how.replace("_", " ")):
        mark = session.world.mark()
        {"reboot": session.computer.reboot, "power_cycle": session.computer.power_cycle}[how](wait=False)
        session.computer.wait_booted()
        session.service.wait_open(seconds=60)
        assert not session.find_flaws_when_open()
        assert not session.ask_names()
    times = session.read_boot_times(mark)
    assert times.lock < times.network_pre
    assert times.first_frame is not None
    assert times.lock < times.first_frame
    note(
        f"boot after {how}, ms after systemd began",
        system=session.name,
        lock=round(times.lock),
        network_pre=round(times.network_pre),
        first_frame=round(times.first_frame),
    )


@pytest.mark.requirement("R3", "R19")
def test_a_bridge_that_root_allows_stays_so_through_restarts_and_a_boot_and_while_nothing_on_it_leads_out(
    session: Session,
) -> None:
    computer, service, bridge = session.computer, session.service, bridge_of_guests.BRIDGE
    nothing, allowed = dict.fromkeys(bridge_of_guests.ALLOWED, False), bridge_of_guests.ALLOWED

    def sh(script: str, *, check: bool = True) -> str:
        return computer.run(["sh", "-c", script], check=check).stdout

    def look() -> dict[str, bool]:
        return bridge_of_guests.look(sh, "/root")

    def wait_standing(wanted: str) -> None:
        wait_until(lambda: f"{bridge}: {wanted}" in service.command("bridge", "list").stdout, wanted, pause=0.25)
        service.wait_open()

    works, absent = "this computer and the guests on it reach each other", "there is no such interface now"
    for name, text in bridge_of_guests.PROGRAMS.items():
        (computer.files / "root" / name).write_text(text)
    tables = set(read_tables(session))
    try:
        with scenario(session, "a bridge that root allows"):
            sh(bridge_of_guests.render_inside("/root"))
            service.wait_open()
            assert look() == nothing, "the control"
            assert f"{bridge} is allowed" in service.command("bridge", "allow", bridge, "--yes").stdout
            wait_standing(works)
            assert look() == allowed
            reported = sh("nft list ruleset; ip rule; ip -6 rule")
            assert bridge_of_guests.NETWORK4 in reported
            assert bridge_of_guests.NETWORK6 in reported
            for unit, verb in ((GUARD_UNIT, "reload"), (SERVICE_UNIT, "restart"), (GUARD_UNIT, "kill")):
                systemctl(session, verb, unit)
                wait_standing(works)
                wait_until(lambda: look() == allowed, f"the guest, after {unit} {verb}")
            sh(f"ip link add mv0 link eth1 type macvlan mode bridge; ip link set mv0 master {bridge}")
            wait_standing("withdrawn: mv0 is on it and leads out")
            assert look() == nothing
            sh("ip link del mv0")
            wait_standing(works)
            computer.reboot()
            wait_standing(absent)
            sh(bridge_of_guests.render_inside("/root"))
            wait_standing(works)
            assert look() == allowed
            assert f"{bridge} is no longer allowed" in service.command("bridge", "deny", bridge).stdout
            service.wait_open()
            assert look() == nothing
            assert not session.find_flaws_when_open()
    finally:
        service.command("bridge", "deny", bridge, check=False)
        sh(f"ip netns del inside; ip link del {bridge}", check=False)
    assert set(read_tables(session)) == tables
    left = sh("nft list ruleset; ip rule; ip -6 rule")
    assert bridge_of_guests.NETWORK4 not in left
    assert bridge_of_guests.NETWORK6 not in left


@pytest.mark.requirement("R1", "R2")
@pytest.mark.parametrize(
    ("damage", "reason"), [("this is no rule\n", "this is no rule"), ("", "No such file or directory")]
)
def test_when_the_boot_lock_cannot_be_loaded_interfaces_stay_down_and_the_console_says_why(
    session: Session, damage: str, reason: str
) -> None:
    """An empty file, as a power cut may leave it: nft takes that for rules."""
    rules = session.service.files.boot_rules
    good = rules.read_text()
    shown = len(session.computer.read_console())
    try:
        with scenario(session, "boot lock broken"):
            rules.write_text(good + damage if damage else "")
            session.computer.power_cycle(wait=False)
            booted = session.computer.wait_booted()
            if booted == "running" and not damage:
                # The service has loaded the lock, and systemd started the unit again for a network manager: now the
                # chain stands, and the machine gets its network.
                assert session.service.wait_state("OPEN")["locked"] is True
            else:
                assert booted == "degraded"
                links = session.computer.run(["ip", "-o", "link", "show", "up"]).stdout
                assert "eth0" not in links
                assert not session.find_answers()
                assert session.computer.show(KILLSWITCH_UNIT, "Result")["Result"] == "exit-code"
                wait_until(
                    lambda: session.service.read_status().get("reason_code") == "boot_lock", "the reason", pause=0.25
                )
                checks = json.loads(session.service.command("diagnose", "--json", check=False).stdout)["checks"]
                failed = {check["id"] for check in checks if check["verdict"] == "failed"}
                assert {"lock.emergency", "units.killswitch"} <= failed
        console = session.computer.read_console()[shown:]
        assert "the kill switch could not be loaded, so this machine stays offline" in console
        assert reason in console
    finally:
        rules.write_text(good)
        session.computer.power_cycle()  # also after a failure: the next test needs a network
    session.service.wait_open(seconds=60)


SOCKETS = """
import os, socket
print(os.readlink("/proc/self/ns/mnt"))
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_STREAM).close()
    except OSError as error:
        print(family.name, error.errno)
    else:
        print(family.name, "opened")
"""


@pytest.mark.requirement("R2", "R24")
def test_lock_guard_and_service_reach_no_name_service(session: Session) -> None:
    """A directory of users may be on the network, which is locked: a program that queries it waits for minutes.

    Boot lock and guard can open no socket for it; the service does not even look for its library, which the C library
    tells (LD_DEBUG, ld.so(8)).
    """
    computer, files = session.computer, session.computer.files
    asked, configuration = "libnss_unreachable", files / "etc/nsswitch.conf"
    before = configuration.read_text()
    look_up = ["env", "LD_DEBUG=libs", "getent", "passwd", "nobody-here"]
    dropins = [files / f"etc/systemd/system/{unit}.d/sockets.conf" for unit in (KILLSWITCH_UNIT, GUARD_UNIT)]
    program = files / "usr/local/lib/sockets.py"
    try:
        with scenario(session, "users in a directory that cannot be reached"):
            configuration.write_text("passwd: files unreachable\ngroup: files unreachable\nhosts: files resolve dns\n")
            program.write_text(SOCKETS)
            for dropin in dropins:
                dropin.parent.mkdir(parents=True, exist_ok=True)
                dropin.write_text(f"[Service]\nExecStartPost=/usr/bin/python3 -IS /usr/local/lib/{program.name}\n")
            computer.power_cycle()
            session.service.wait_open()
            assert asked in computer.run(look_up, check=False).stderr, "the control queries it"
            mounts, *opened = computer.run(["python3", "-IS", f"/usr/local/lib/{program.name}"]).stdout.splitlines()
            assert [line.split()[1] for line in opened] == ["opened"] * 4, "the control can open sockets"
            for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
                said = session.service.read_journal(unit)
                for family in ("AF_UNIX", "AF_INET", "AF_INET6"):
                    assert f"{family} {errno.EAFNOSUPPORT}\n" in said, unit
                assert "AF_NETLINK opened" in said
                assert mounts in said, "systemd sometimes fails to make a mount namespace while a machine boots"
            identity = computer.run(["id", "-u", "psiphon-user"]).stdout.strip()
            for user in ("0", identity):
                pid = wait_main_process(session, SERVICE_UNIT)
                inside = computer.run(["nsenter", "-t", pid, "-m", "-S", user, *look_up], check=False).stderr
                assert "find library=libc.so" in inside
                assert asked not in inside, user
    finally:
        configuration.write_text(before)
        for path in (program, *dropins):
            path.unlink(missing_ok=True)
        computer.run(["systemctl", "daemon-reload"])


WATCH = """
coproc watcher { exec "$@" 2>&1; }
read -r line <&"${watcher[0]}"; echo "$line"
psiphon-vpn status >/dev/null # what comes after the line: one that ends with it has ended by now
kill "$watcher_PID" && echo "it watches on"
"""
"""A program for bash(1): runs one that watches, reads its first line, and ends it."""


@pytest.mark.requirement("R24")
def test_only_users_whom_root_allows_see_the_status_and_notifications(session: Session) -> None:
    computer, readers = session.computer, session.computer.files / "etc/psiphon-vpn/readers"
    before = readers.read_text()
    status = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups", "psiphon-vpn", "status", "--json"]
    notify = ["env", "DBUS_SESSION_BUS_ADDRESS=unix:path=/nowhere", *status[:-2], "notify"]
    try:
        for text, allowed in (("4242\n", True), ("", False), ("4242\n", True)):
            readers.write_text(text)
            session.service.command("reload")
            session.service.wait_open()
            assert computer.run(status, check=False).returncode == (0 if allowed else 77)
            if allowed:
                # It reports that no desktop shows notifications, and keeps watching.
                done = computer.run(["bash", "-c", WATCH, "-", *notify])
                assert "No notification can be shown" in done.stdout
                assert "watches on" in done.stdout
            else:
                done = computer.run(notify, check=False)
                assert done.returncode == 77
                assert "/etc/psiphon-vpn/readers" in done.stderr
            for command in ("stop", "restart"):
                assert computer.run([*status[:-2], command], check=False).returncode == 77
    finally:
        readers.write_text(before)
        session.service.command("reload")
