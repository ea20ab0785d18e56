# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects of a comparable service that only the wire and the running service can show (tests/unit has the list)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from tests.conftest import Figure
from tests.integration.testbed import Testbed, open_testbed

import psiphon_vpn
from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.commit_watch import CommitWatch
from psiphon_lab.frames import Frame, decode_ip
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import Host
from psiphon_lab.probe import DNS_TCP, DNS_UDP, ICMP, TCP, UDP, probe_specs
from psiphon_lab.probe_runner import NOBODY, run_probes, seen_on_wire
from psiphon_lab.service_adapter.daemon import CAPABILITIES
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux.traffic import remove_filters
from psiphon_vpn.policy import names

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

SECRET = "home-page-secret-4711"
HOMEPAGE = (
    f'{{"data":{{"url":"https://home.lab.example/?key={SECRET}"}},"noticeType":"Homepage",'
    '"timestamp":"2026-01-01T00:00:00.000Z"}'
)
SENDER = """
import socket, sys, time
flows = []
for number, (address, device) in enumerate([
    (sys.argv[2], b""), (sys.argv[3], b""), (sys.argv[2], sys.argv[4].encode()), (sys.argv[3], sys.argv[4].encode()),
]):
    flow = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if device:
        flow.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    flow.setblocking(False)
    flows.append((flow, address, f"{sys.argv[1]}-{number}".encode()))
end = time.monotonic() + 60
while time.monotonic() < end:
    for flow, address, token in flows:
        try:
            flow.sendto(token, (address, 7))
        except OSError:
            pass
    print(flush=True)
    time.sleep(0.005)
"""
"""Four flows of root, 200 datagrams a second each: both families, plain and bound to an interface."""


class Rounds:
    """Counts the rounds of a program that writes a line after each. A thread reads, so that the pipe never fills."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._done = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with contextlib.suppress(ValueError):  # closed with its host
            for _ in self._child.stdout:
                self._done += 1

    def wait(self, rounds: int = 20) -> None:
        """Wait until the program has made so many rounds from now on."""
        wanted = self._done + rounds
        wait_until(lambda: self._done >= wanted or self._child.poll() is not None, "rounds of the sender")
        assert self._child.poll() is None, "the sender ended"


class Sender:
    """A program of root that sends all the time during the block."""

    def __init__(self, client: Host) -> None:
        self.token = f"sender{time.monotonic_ns()}"
        self._client = client
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sender:
        argv = [sys.executable, "-c", SENDER, self.token, plan.INTERNET4, plan.INTERNET6, LAN_A.interface]
        self._child = self._client.spawn(argv, stdout=subprocess.PIPE)
        self._rounds = Rounds(self._child)
        return self

    def wait_rounds(self) -> None:
        """Wait until it has sent a few more rounds."""
        self._rounds.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child is not None
        assert self._child.poll() is None, "the sender ended by itself: nothing can be concluded"
        self._child.kill()
        self._child.wait()

    def flows_in(self, frames: list[Frame]) -> set[int]:
        """The numbers of the flows that left the client."""
        found = (re.search(rf"{self.token}-(\d)".encode(), frame.data) for frame in frames)
        return {int(match[1]) for match in found if match}


@pytest.fixture(scope="module")
def _testbed() -> Iterator[Testbed]:
    with open_testbed(start=False, settings={"log_level": "debug"}) as made:
        # Each run of the core records its identity, and prints a secret as the real core does.
        note = _core_path(made).with_name("executions")
        note.touch()
        note.chmod(0o666)
        lines = _core_path(made).read_text().splitlines(keepends=True)
        lines.insert(2, f"grep -E '^(Uid|Cap[A-Z].*|NoNewPrivs):' /proc/self/status >>{note}\necho '{HOMEPAGE}' >&2\n")
        _core_path(made).write_text("".join(lines))
        made.machine.start_daemon()
        made.machine.wait_state("OPEN")
        yield made


@pytest.fixture
def testbed(_testbed: Testbed) -> Testbed:
    """The module's testbed, open again."""
    _testbed.set_faults()
    if _testbed.machine.read_status() is None:
        _testbed.machine.start_daemon()
    _testbed.machine.command("start")
    _testbed.machine.wait_state("OPEN")
    _testbed.machine.wait_for(_testbed.machine.lease_remains, "the lease")
    return _testbed


def _core_path(testbed: Testbed) -> Path:
    return testbed.world.directory / "core" / "psiphon-tunnel-core"


@contextlib.contextmanager
def _without_core(testbed: Testbed) -> Iterator[None]:
    away = _core_path(testbed).with_name("away")
    _core_path(testbed).rename(away)
    try:
        yield
    finally:
        away.rename(_core_path(testbed))


@pytest.mark.defect(1)
def test_no_command_no_failed_start_and_no_end_of_the_daemon_lets_anything_out(testbed: Testbed) -> None:
    """Without the wire guard, which would hide a leak. The next test is the sender's positive control."""
    machine = testbed.machine
    machine.release_guard()
    mark = testbed.world.mark()
    with Sender(testbed.world.client) as sender:
        for command, state in (
            ("stop", "LOCKED"), ("start", "OPEN"), ("restart", "OPEN"), ("reload", "OPEN"), ("stop", "LOCKED"),
            ("restart", "OPEN"),
        ):  # fmt: skip
            machine.command(command)
            machine.wait_state(state)
        with _without_core(testbed):
            machine.command("restart")
            machine.wait_for(
                lambda: (machine.read_status() or {}).get("reason_code") == "core_missing", "the failed start"
            )
            sender.wait_rounds()
        machine.stop_daemon()
        sender.wait_rounds()
        machine.start_daemon()
        machine.wait_state("OPEN")
        machine.kill_daemon()
        sender.wait_rounds()
        frames = testbed.world.frames_since(mark)
        assert sender.flows_in(frames) == set()
    testbed.assert_no_leak(mark)
    machine.hold_guard()


@pytest.mark.defect(4, 6)
def test_on_an_open_machine_the_lock_comes_before_anything_else_that_the_service_does() -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.release_guard()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        mark = testbed.world.mark()
        with Sender(testbed.world.client) as sender:
            wait_until(
                lambda: sender.flows_in(testbed.world.frames_since(mark)) == {0, 1, 2, 3}, "every flow on the wire"
            )
            testbed.machine.start_daemon()
            testbed.machine.wait_state("OPEN")
            sender.wait_rounds()
            frames = testbed.world.frames_since(mark)
        to_server = [frame.time for frame in frames if _leads_to(frame, plan.SERVER4, plan.SERVER6)]
        sent = [frame.time for frame in frames if sender.token.encode() in frame.data]
        assert to_server, "the core's own frames"
        assert max(sent) < min(to_server)


def _was_seen_from_the_server(testbed: Testbed) -> bool:
    """Whether any datagram went from the tunnel server to the internet's echo service."""
    return any(
        (entry["service"], entry.get("transport"), entry["caller"]) == ("echo", "udp", plan.SERVER4)
        for entry in testbed.world.read_record("internet")
    )


def _leads_to(frame: Frame, *addresses: str) -> bool:
    packet = decode_ip(frame.data)
    return packet is not None and packet.destination in addresses


@pytest.mark.defect(5)
def test_another_program_of_psiphon_user_has_no_resolver_no_ping_and_no_wire_but_the_uplink(testbed: Testbed) -> None:
    world, machine = testbed.world, testbed.machine

    def seen(interface: str) -> set[tuple[str, str]]:
        """The kinds of psiphon-user's probes that came out, and how they were sent."""
        testbed.salt += 1
        specs = probe_specs(salt=testbed.salt, interface=interface)
        mark = world.mark()
        run_probes(world.client, specs, uid=LAB_UID, limit=0.6)
        frames = world.frames_since(mark)
        return {(spec.kind, spec.interface) for spec in specs if seen_on_wire(spec, frames)}

    assert seen(LAN_A.interface) == {(TCP, ""), (UDP, ""), (TCP, LAN_A.interface), (UDP, LAN_A.interface)}
    world.connect_uplink(LAN_B, metric=500)
    try:
        machine.wait_state("OPEN")
        assert (machine.read_status() or {})["uplink"]["interface"] == LAN_A.interface
        assert seen(LAN_B.interface) == {(TCP, ""), (UDP, "")}, "the second wire is not the uplink"
        world.disconnect_uplink(LAN_A)
        machine.wait_for(
            lambda: ((machine.read_status() or {}).get("uplink") or {}).get("interface") == LAN_B.interface, "the move"
        )
        machine.wait_state("OPEN")
        found = seen(LAN_B.interface)
        assert found >= {(TCP, LAN_B.interface), (UDP, LAN_B.interface)}, "the positive control"
        assert not {kind for kind, _ in found} & {DNS_UDP, DNS_TCP, ICMP}
    finally:
        world.connect_uplink(LAN_A)
        world.disconnect_uplink(LAN_B)
    machine.wait_state("OPEN")
    machine.command("stop")
    assert seen(LAN_A.interface) == set(), "while locked it may do no more than other users"


@pytest.mark.defect(5)
def test_the_core_is_configured_to_serve_no_proxy_that_goes_around_the_tunnel(testbed: Testbed) -> None:
    config = json.loads((testbed.machine.state_dir / "core" / "config.json").read_text())
    assert (config["DisableLocalHTTPProxy"], config["ListenInterface"]) == (True, "")
    assert (config["SplitTunnelOwnRegion"], config["SplitTunnelRegions"]) == (False, [])
    listening = testbed.world.client.run(["ss", "-Hltnu"]).stdout.splitlines()
    assert [line.split()[4] for line in listening] == ["127.0.0.1:1081"]


LISTENER = """
import selectors, socket
ready, listening = selectors.DefaultSelector(), []
for family in (socket.AF_INET, socket.AF_INET6):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(family, kind)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind(("", 8080))
        if kind == socket.SOCK_STREAM:
            s.listen()
            listening.append(s)
        else:
            ready.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        print(key.fileobj.recv(100).decode(), flush=True)
"""
"""A program that is open to everybody: TCP and UDP, both families. It tells the datagrams that reach it."""
KNOCK = """
import socket, sys
for address in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    socket.socket(family, socket.SOCK_DGRAM).sendto(f"{sys.argv[1]} {address}".encode(), (address, 8080))
    try:
        socket.create_connection((address, 8080), 0.5)
        print("connected", address)
    except OSError:
        pass
"""


@pytest.mark.defect(7)
def test_a_host_of_the_lan_reaches_no_program_of_this_machine() -> None:
    with open_testbed(start=False) as testbed:
        heard = testbed.world.directory / "heard"
        with heard.open("wb") as file:
            testbed.world.client.spawn([sys.executable, "-c", LISTENER], stdout=file)
        wait_until(lambda: heard.read_text() == "ready\n", "the listening program")
        targets = (LAN_A.client4, LAN_A.client6)

        def knock(when: str) -> tuple[list[str], list[str]]:
            """The ports to which the neighbour connected, and its datagrams that arrived."""
            argv = [sys.executable, "-c", KNOCK, when, *targets]
            connected = testbed.world.neighbour.run(argv).stdout.splitlines()
            return connected, [line for line in heard.read_text().splitlines() if line.startswith(when)]

        assert knock("locked") == ([], [])
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        assert knock("open") == ([], [])
        testbed.machine.kill_daemon()
        testbed.world.client.run(["nft", "flush", "ruleset"])
        testbed.world.client.call(remove_filters)
        testbed.machine.release_guard()
        for family in ("-4", "-6"):
            for priority in range(5070, 5077):
                testbed.world.client.run(["ip", family, "rule", "del", "priority", str(priority)], check=False)
        control = ([f"connected {address}" for address in targets], [f"control {address}" for address in targets])
        assert knock("control") == control, "the positive control"


@pytest.mark.defect(7, 8)
def test_a_container_does_not_come_out_on_a_wire_when_the_tun_is_taken_away(testbed: Testbed) -> None:
    """While open, its packets are seen with the server's address: this shows that they are sent at all."""
    container, client = testbed.world.container, testbed.world.client
    mark = testbed.world.mark()
    argv = [sys.executable, "-c", SENDER, "container", plan.INTERNET4, plan.INTERNET6, "eth0"]
    child = container.spawn(argv, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _was_seen_from_the_server(testbed), "the container's packets, out of the tunnel")
        for _ in range(3):
            with CommitWatch(client) as commits:
                begin = time.monotonic()
                client.run(["ip", "link", "del", "PsiphonTUN"])
                wait_until(
                    lambda: commits.closed_after(begin, pid=testbed.machine.daemon_pid) is not None,  # noqa: B023
                    "the closing",
                )
            testbed.machine.wait_state("OPEN")
            testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
    finally:
        child.kill()
        child.wait()
    assert not [frame for frame in testbed.world.frames_since(mark) if b"container-" in frame.data]
    testbed.assert_no_leak(mark)


@pytest.mark.defect(8)
@pytest.mark.parametrize(
    "routes",
    [("default",), ("0.0.0.0/1", "128.0.0.0/1"), (f"{plan.INTERNET4}/32",)],
    ids=["a default route without a metric", "two halves of everything", "a route to the target itself"],
)
def test_no_route_of_dhcp_or_of_another_program_leads_around_the_tunnel(
    testbed: Testbed, routes: tuple[str, ...]
) -> None:
    """TunnelVision (CVE-2024-3661) needs nothing but a route from option 121."""
    mark = testbed.world.mark()
    for route in routes:
        testbed.world.client.run(["ip", "route", "add", route, "via", LAN_A.router4, "metric", "0"])
    try:
        testbed.machine.wait_state("OPEN")
        testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
        testbed.let_it_renew()
        assert testbed.page() == plan.SERVER4
    finally:
        for route in routes:
            testbed.world.client.run(["ip", "route", "del", route, "via", LAN_A.router4, "metric", "0"])
    testbed.assert_no_leak(mark)


@pytest.mark.defect(8)
def test_a_stray_source_never_reaches_the_server_that_answers_to_the_first_one_only(testbed: Testbed) -> None:
    """Another test shows that the stand-in server answers only the first source (tests/lab)."""
    stray = (
        "import socket, time\n"
        "end = time.monotonic() + 60\n"
        "while time.monotonic() < end:\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"  # a new socket: a restart makes a new TUN
        "    s.setsockopt(socket.SOL_IP, 15, 1)\n"  # IP_FREEBIND of ip(7)
        "    try:\n"
        "        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'PsiphonTUN')\n"
        f"        s.bind(('{LAN_A.client4}', 0))\n"
        "        s.sendto(b'stray', ('203.0.113.80', 7))\n"
        "    except OSError: pass\n"
        "    s.close()\n"
        "    print(flush=True)\n"
        "    time.sleep(0.001)\n"
    )
    with testbed.world.client.call(_listen_everywhere) as listener:
        child = testbed.world.client.spawn([sys.executable, "-c", stray], stdout=subprocess.PIPE)
        rounds = Rounds(child)
        try:
            rounds.wait()
            testbed.machine.command("restart")
            testbed.machine.wait_state("OPEN")
            testbed.machine.wait_for(testbed.machine.lease_remains, "the lease")
            rounds.wait()
            assert testbed.page() == plan.SERVER4
        finally:
            child.kill()
            child.wait()
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (device, *_) = listener.recvfrom(65536)
                packets += [packet] if device == names.TUN_NAME else []
    sources = {socket.inet_ntoa(packet[12:16]) for packet in packets if packet[0] >> 4 == 4}
    assert sources == {names.TUN_IPV4, names.RESOLVER_IPV4, plan.INTERNET4}, (
        "our packets went out, and the answers came in"
    )
    assert not [packet for packet in packets if b"stray" in packet]


def _listen_everywhere() -> socket.socket:
    """A socket that receives from every device, even one that is made later."""
    # ETH_P_ALL: outgoing packets as well.
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(3))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return listener


@pytest.mark.defect(9, 18)
def test_resolv_conf_is_the_same_file_after_a_whole_life_of_the_service(testbed: Testbed) -> None:
    def look() -> str:
        return testbed.world.client.run(
            ["sh", "-c", "stat -Lc '%i %s %y %a %u' /etc/resolv.conf; ls -ld /etc/resolv.conf; cat /etc/resolv.conf"]
        ).stdout

    before = look()
    assert f"nameserver {LAN_A.router4}" in before
    for command, state in (("stop", "LOCKED"), ("start", "OPEN"), ("restart", "OPEN")):
        testbed.machine.command(command)
        testbed.machine.wait_state(state)
        assert look() == before
    testbed.machine.stop_daemon()
    assert look() == before


@pytest.mark.defect(10, 12)
def test_the_core_is_run_by_psiphon_user_alone_and_every_time_without_a_capability(testbed: Testbed) -> None:
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    noted = _core_path(testbed).with_name("executions").read_text().splitlines()
    values: dict[str, set[str]] = {}
    for line in noted:
        name, _, value = line.partition(":")
        values.setdefault(name, set()).add(value.strip())
    assert values["Uid"] == {"\t".join([str(LAB_UID)] * 4)}
    assert values["NoNewPrivs"] == {"1"}
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert {int(value, 16) for value in values[name]} == {0}


@pytest.mark.defect(12)
def test_psiphon_user_itself_can_take_nothing_of_the_lock_away(testbed: Testbed) -> None:
    """What a compromised core can try. Other tests show that root can do each of these."""
    attacks = (
        "nft flush ruleset", "nft delete table inet psiphon_filter",
        "nft add element inet psiphon_filter tunnel_open { eth0 }", "ip rule flush", "ip route flush table 20595",
        "ip link del PsiphonTUN", "ip route replace default via 192.0.2.1 table 20595",
    )  # fmt: skip
    testbed.machine.wait_state("OPEN")
    before = len(testbed.machine.read_log())
    for attack in attacks:
        done = testbed.world.client.run(attack.split(" "), check=False, uid=LAB_UID, gid=LAB_UID, no_new_privs=True)
        assert done.returncode != 0, attack
        assert "not permitted" in done.stderr, attack
    testbed.let_it_renew()
    testbed.machine.wait_state("OPEN")
    # Nothing had to be restored. A busy machine may close for a moment by itself.
    assert "service.healer" not in testbed.machine.read_log()[before:]
    assert testbed.page() == plan.SERVER4


@pytest.mark.defect(11)
def test_psiphon_user_can_write_its_own_directories_and_nothing_that_root_runs_or_loads(testbed: Testbed) -> None:
    own = {testbed.machine.state_dir, testbed.machine.runtime_dir, testbed.machine.config_path}
    own |= {_core_path(testbed).with_name("executions"), testbed.faults}
    places: list[str | Path] = [
        testbed.world.directory,
        Path(psiphon_vpn.__file__).parent,
        Path(sys.prefix),
        Path("/usr/sbin"),
    ]
    argv: list[str | Path] = ["find", *places, "-writable", "-not", "-type", "l", "-print"]
    done = testbed.world.client.run(argv, check=False, uid=LAB_UID, gid=LAB_UID, timeout=60)
    found = {Path(line) for line in done.stdout.splitlines()}
    assert found >= {testbed.machine.state_dir, testbed.machine.runtime_dir}, "the positive control"
    assert [path for path in found if not own & {path, *path.parents}] == []


@pytest.mark.defect(13, 17)
def test_other_users_can_read_nothing_of_the_cores_and_no_log_is_written_beside_the_journal(testbed: Testbed) -> None:
    testbed.machine.command("stop")
    testbed.machine.wait_state("LOCKED")
    directories = (testbed.machine.state_dir, testbed.machine.runtime_dir)
    listed = [path for directory in directories for path in directory.rglob("*")]
    assert {path.name for path in listed} >= {"core", "config.json", "intent", "control.sock"}
    assert [path for path in listed if "log" in path.name or "notices" in path.name] == []
    argv: list[str | Path] = ["find", *directories, "-mindepth", "1", "-readable", "-type", "f"]
    done = testbed.world.client.run(argv, check=False, uid=NOBODY, gid=NOBODY)
    assert "core" in done.stderr, "it cannot even look into the core's directory"
    assert {Path(line).name for line in done.stdout.splitlines()} <= {"intent"}
    for path in listed:
        if path.is_file() and path.name != "config.json":
            assert SECRET.encode() not in path.read_bytes()


@pytest.mark.defect(15)
def test_a_second_daemon_gives_way_and_the_first_does_not_even_notice() -> None:
    with open_testbed() as testbed:
        machine = testbed.machine
        since = machine.wait_state("OPEN")["since"]
        first, mark = machine.daemon_pid, testbed.world.mark()
        process = Path(f"/proc/{first}")
        argv = process.joinpath("cmdline").read_text().split("\0")[:-1]
        environment = dict(entry.split("=", 1) for entry in process.joinpath("environ").read_text().split("\0")[:-1])
        second = testbed.world.client.spawn(
            argv, uid=LAB_UID, gid=LAB_UID, ambient=CAPABILITIES, bounding=CAPABILITIES, no_new_privs=True,
            env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said = second.communicate(timeout=60)[0].decode()
        finally:
            second.kill()
            second.wait()
        assert second.returncode == 1
        assert said.count("\n") == 1
        assert "it is running already" in said
        testbed.let_it_renew()
        assert (machine.wait_state("OPEN")["since"], machine.daemon_pid) == (since, first)
        assert testbed.page() == plan.SERVER4
        testbed.assert_no_leak(mark)
        machine.kill_daemon()
        machine.start_daemon()
        machine.wait_state("OPEN")


@pytest.mark.defect(16)
def test_words_that_look_like_readiness_open_nothing(testbed: Testbed, figure: Figure) -> None:
    """A core that claims everything, in the right words, and carries nothing."""
    testbed.set_faults({"kind": "liar"}, {"kind": "junk"})
    begin = time.monotonic()
    testbed.machine.command("restart")
    figure("a restart to its answer, ms", (time.monotonic() - begin) * 1000)

    def look() -> str:
        status = testbed.machine.read_status()
        assert status is not None
        assert (status["state"] == "OPEN", testbed.machine.lease_remains()) == (False, False)
        return str(status["reason_code"])

    testbed.machine.wait_for(lambda: look() == "tunnel_up", "the claim in the status")
    testbed.machine.wait_for(lambda: look() == "tunnel_silent", "the end of the claim")
    testbed.set_faults()
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")


@pytest.mark.defect(17)
def test_not_even_the_most_talkative_log_has_a_home_page_an_address_or_a_secret(testbed: Testbed) -> None:
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    log = testbed.machine.read_log()
    assert "DEBUG" in log
    assert "core: Other" in log, "the notice with the home page came"
    secrets = [
        SECRET, "home.lab.example", plan.SERVER4, plan.SERVER6, plan.INTERNET4, LAN_A.client4, LAN_A.client6,
        LAN_A.router4, testbed.server.entry[:40],
    ]  # fmt: skip
    assert {secret: line for secret in secrets for line in log.splitlines() if secret in line} == {}


@pytest.mark.defect(17)
def test_asking_for_the_status_sends_nothing_open_or_locked(testbed: Testbed) -> None:
    argv = [sys.executable, "-m", "psiphon_vpn", "--runtime-dir", str(testbed.machine.runtime_dir), "status"]
    for command, state in (("start", "OPEN"), ("stop", "LOCKED")):
        testbed.machine.command(command)
        testbed.machine.wait_state(state)
        mark = testbed.world.mark()
        reported = [testbed.world.client.run([*argv, *more], check=False).returncode for more in ((), ("--json",))]
        frames = testbed.world.frames_since(mark)
        assert reported[0] == reported[1] != 77
        core_only = [frame for frame in frames if not _leads_to(frame, plan.SERVER4, plan.SERVER6)]
        assert not [frame for frame in core_only if (packet := decode_ip(frame.data)) and packet.protocol in (6, 17)]
        testbed.assert_no_leak(mark)


@pytest.mark.defect(20)
def test_no_file_of_the_service_holds_a_process_number(testbed: Testbed) -> None:
    status = testbed.machine.wait_state("OPEN")
    numbers = [str(testbed.machine.daemon_pid).encode(), str(status["core_pid"]).encode()]
    files = [
        path
        for directory in (testbed.machine.state_dir, testbed.machine.runtime_dir)
        for path in directory.rglob("*")
        if path.is_file() and path.name != "config.json"
    ]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [number for number in numbers if re.search(rb"(?<!\d)" + number + rb"(?!\d)", content)], path
