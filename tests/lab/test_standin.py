# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core and server: real packets through a real TUN, with the behaviour of the real pair."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Figure
from tests.lab.support import CORE_UID, TUN, CoreProcess, Tunnel, open_tunnel

from psiphon_lab import addresses as plan
from psiphon_lab.capture import Capture
from psiphon_lab.dns_message import TXT, A
from psiphon_lab.frames import describe_frame
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.server_entry import decode_server_entry
from psiphon_lab.server_evidence import find_answered_flows
from psiphon_lab.waiting import wait_until

pytestmark = pytest.mark.lab

SOCKS = """
import socket, sys, struct, json
host, port = sys.argv[1], 80
sock = socket.create_connection((sys.argv[2], 1081), timeout=30)
name = host.encode()
sock.sendall(b"\\x05\\x01\\x00" + b"\\x05\\x01\\x00\\x03" + bytes([len(name)]) + name + struct.pack("!H", port))
stream = sock.makefile("rb")
assert stream.read(2) == b"\\x05\\x00"
if stream.read(10)[1] != 0:
    sys.exit("refused by the proxy")
sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(json.loads(stream.read().partition(b"\\r\\n\\r\\n")[2])["address"])
"""
UDP_ECHO = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.settimeout(float(sys.argv[4]))
sock.bind((sys.argv[2], 0))
sock.sendto(b"hello", (sys.argv[1], int(sys.argv[3])))
print(sock.recv(100).decode())
"""


@pytest.fixture(scope="module")
def connected() -> Iterator[tuple[Tunnel, CoreProcess]]:
    """A connected tunnel for the tests that leave it as they found it."""
    with open_tunnel() as made:
        yield made, made.connect()


def test_pages_see_the_servers_address_on_both_families(connected: tuple[Tunnel, CoreProcess]) -> None:
    assert connected[0].fetch(plan.INTERNET4) == plan.SERVER4
    assert connected[0].fetch(f"[{plan.INTERNET6}]") == plan.SERVER6


def test_udp_passes_in_both_directions_on_both_families(connected: tuple[Tunnel, CoreProcess]) -> None:
    assert connected[0].python(UDP_ECHO, plan.INTERNET4, "", "7", "30") == "hello"
    assert connected[0].python(UDP_ECHO, plan.INTERNET6, "", "7", "30") == "hello"


def test_the_transparent_resolver_is_the_servers_own(connected: tuple[Tunnel, CoreProcess]) -> None:
    assert connected[0].ask(plan.RESOLVER4, plan.RESOLVER_NAME, TXT) == plan.MARK_TUNNEL
    assert connected[0].ask(plan.RESOLVER4, plan.ECHO_NAME, A) == plan.INTERNET4


def test_another_resolver_is_reached_as_itself(connected: tuple[Tunnel, CoreProcess]) -> None:
    assert connected[0].ask(plan.INTERNET4, plan.RESOLVER_NAME, TXT) == plan.MARK_INTERNET
    assert connected[0].ask(plan.INTERNET4, plan.WHOAMI_NAME, TXT) == plan.SERVER4


def test_a_megabyte_passes_unharmed(connected: tuple[Tunnel, CoreProcess]) -> None:
    script = (
        "import socket, threading, os, hashlib\n"
        f"sock = socket.create_connection(('{plan.INTERNET4}', 7), timeout=10)\n"
        "data = os.urandom(1 << 20)\n"
        "threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(1))).start()\n"
        "back = b''.join(iter(lambda: sock.recv(65536), b''))\n"
        "print(back == data)\n"
    )
    assert connected[0].python(script, uid=65534) == "True"


def test_ping_does_not_pass(connected: tuple[Tunnel, CoreProcess]) -> None:
    script = (
        "import socket\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n"
        f"sock.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), ('{plan.INTERNET4}', 0))\n"
        "after = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "after.settimeout(60)\n"
        f"after.sendto(b'after it', ('{plan.INTERNET4}', 7))\n"
        "after.recv(100)\n"
        "sock.setblocking(False)\n"
        "sock.recv(100)\n"
    )
    assert "BlockingIOError" in connected[0].python(script, uid=65534)


def test_clients_of_the_server_do_not_reach_each_other_or_the_server(connected: tuple[Tunnel, CoreProcess]) -> None:
    for target in ("10.0.0.1", "10.0.1.1"):
        assert connected[0].is_silent(target, "", 53, then=(plan.INTERNET4, 7))


def test_socks_connects_from_the_server_and_resolves_names_there(connected: tuple[Tunnel, CoreProcess]) -> None:
    made, _ = connected
    assert made.python(SOCKS, plan.INTERNET4, "127.0.0.1", uid=65534) == plan.SERVER4
    assert made.python(SOCKS, plan.ECHO_NAME, "127.0.0.1") in (plan.SERVER4, plan.SERVER6)
    assert "refused by the proxy" in made.python(SOCKS, plan.BACKBONE4, "127.0.0.1")


def test_socks_listens_on_loopback_only(connected: tuple[Tunnel, CoreProcess]) -> None:
    lines = connected[0].world.client.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout.splitlines()
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert listening == ["0100007F:0439"]  # 127.0.0.1:1081 as the kernel writes it


def test_the_servers_record_makes_all_of_the_cores_frames_innocent(connected: tuple[Tunnel, CoreProcess]) -> None:
    made, _ = connected
    made.fetch(plan.INTERNET4)
    # This client has no lock, so its kernel sends MLDv2 reports (to ff02::16). They are not the core's.
    frames = [frame for frame in made.world.frames_since() if "ff02::16" not in describe_frame(frame)]
    assert find_leaks(frames, world_evidence(made.server.read_flows())) == []
    assert find_leaks(frames, world_evidence()) != []


def test_a_flow_counts_as_the_servers_once_it_has_answered_with_data(connected: tuple[Tunnel, CoreProcess]) -> None:
    made, _ = connected
    with Capture(made.world.backbone, "server", wire="server") as capture:
        made.fetch(plan.INTERNET4)
        bare = f"import socket; socket.create_connection(('{plan.SERVER4}', {plan.SERVER_PORT}), timeout=30).close()"
        mark = made.world.mark()
        assert made.python(f"import os; os.setuid({CORE_UID})\n{bare}") == ""
        flows = find_answered_flows(capture.frames_since(), server=[plan.SERVER4], ports=[plan.SERVER_PORT])
    assert flows
    assert flows <= made.server.read_flows()
    assert find_leaks(made.world.frames_since(mark), world_evidence(flows)) != []


def test_a_connection_to_the_server_without_its_secret_is_no_innocent_flow(
    connected: tuple[Tunnel, CoreProcess],
) -> None:
    made, _ = connected
    mark = made.world.mark()
    script = (
        "import socket, ssl\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
        "context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n"
        f"raw = socket.create_connection(('{plan.SERVER4}', {plan.SERVER_TLS_PORT}), timeout=30)\n"
        "sock = context.wrap_socket(raw)\n"
        'sock.sendall(b\'{"secret": "guess", "mode": "packet", "session": "x"}\\n\')\n'
        "print(sock.recv(100))\n"
    )
    assert made.python(f"import os; os.setuid({CORE_UID})\n{script}") == "b''"
    leaks = find_leaks(made.world.frames_since(mark), world_evidence(made.server.read_flows()))
    assert any(f"> {plan.SERVER4}:{plan.SERVER_TLS_PORT}" in leak.text for leak in leaks)


def test_notices_come_in_the_real_order_and_form(connected: tuple[Tunnel, CoreProcess]) -> None:
    kinds = []
    for line in connected[1].raw.splitlines():
        notice = json.loads(line)
        assert set(notice) == {"data", "noticeType", "timestamp"}
        assert notice["timestamp"].endswith("Z")
        kinds.append(notice["noticeType"])
    assert kinds.index("ConnectingServer") < kinds.index("ConnectedServer") < kinds.index("Tunnels")
    assert kinds.index("Tunnels") < kinds.index("ActiveTunnel") < kinds.index("ConnectedServerRegion")
    assert connected[1].notices("ListeningSocksProxyPort") == [{"port": 1081}]
    assert connected[1].notices("ConnectedServerRegion") == [{"serverRegion": "XX"}]
    text = connected[1].raw.decode()
    assert plan.SERVER4 not in text
    assert decode_server_entry(connected[0].server.entry).secret not in text


def test_the_core_holds_no_capability(connected: tuple[Tunnel, CoreProcess]) -> None:
    status = Path(f"/proc/{connected[1].child.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["Uid"].split() == [str(CORE_UID)] * 4


def test_how_soon_the_core_is_connected_is_reported(tunnel: Tunnel, figure: Figure) -> None:
    start = time.monotonic()
    core = tunnel.start_core()
    core.wait_for("Tunnels", {"count": 1})
    figure("the stand-in core's start to its tunnel, ms", (time.monotonic() - start) * 1000)


def test_a_stop_is_orderly_and_ends_with_exiting(tunnel: Tunnel) -> None:
    core = tunnel.connect()
    core.child.send_signal(signal.SIGTERM)
    assert core.finish() == 0
    assert core.notices("Tunnels") == [{"count": 1}, {"count": 0}]
    assert json.loads(core.raw.splitlines()[-1])["noticeType"] == "Exiting"


def test_without_diagnostics_only_plain_notices_are_written(tunnel: Tunnel) -> None:
    core = tunnel.start_core(EmitDiagnosticNotices=None)
    core.wait_for("ConnectedServerRegion")
    core.child.terminate()
    core.finish()
    kinds = {json.loads(line)["noticeType"] for line in core.raw.splitlines()}
    assert kinds.isdisjoint({"Info", "ActiveTunnel", "ConnectingServer", "CandidateServers", "BuildInfo"})


def test_replies_go_to_the_first_source_only_until_there_is_a_new_session(fresh_tunnel: Tunnel) -> None:
    # The server hears a stray address on the TUN before the TUN's own: that spoils the family.
    fresh_tunnel.world.client.netlink(
        lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname=TUN)[0], address="10.200.3.77", prefixlen=32)
    )
    core = fresh_tunnel.connect()
    assert fresh_tunnel.python(UDP_ECHO, plan.INTERNET4, "10.200.3.77", "7", "30") == "hello"
    assert fresh_tunnel.is_silent(plan.INTERNET4, "10.200.3.1", 7, then=(plan.INTERNET6, 7))
    core.child.terminate()
    core.finish()
    fresh_tunnel.connect()
    assert fresh_tunnel.python(UDP_ECHO, plan.INTERNET4, "10.200.3.1", "7", "30") == "hello"


def test_the_core_notices_a_lost_server_and_comes_back_by_itself(fresh_tunnel: Tunnel, figure: Figure) -> None:
    core = fresh_tunnel.connect()
    fresh_tunnel.server.stop()
    figure("the server's end to the stand-in core's word of it, ms", core.wait_for("Tunnels", {"count": 0}) * 1000)
    fresh_tunnel.server.start()
    core.wait_for("Tunnels", {"count": 1}, at_least=2)
    assert fresh_tunnel.fetch(plan.INTERNET4) == plan.SERVER4


def test_the_core_comes_back_after_its_interface_was_away(fresh_tunnel: Tunnel) -> None:
    fresh_tunnel.world.disconnect_uplink(plan.LAN_A)
    core = fresh_tunnel.start_core()
    core.wait_for("Warning")
    fresh_tunnel.world.connect_uplink(plan.LAN_A)
    core.wait_for("Tunnels", {"count": 1})


def test_a_server_without_ipv6_carries_ipv4_only() -> None:
    with open_tunnel(ipv6=False) as made:
        made.connect()
        assert made.fetch(plan.INTERNET4) == plan.SERVER4
        assert made.is_silent(plan.INTERNET6, "", 7, then=(plan.INTERNET4, 7))


def test_a_server_that_does_not_allow_bogons_refuses_documentation_addresses() -> None:
    with open_tunnel(allow_bogons=False) as made:
        made.connect()
        assert made.ask(plan.RESOLVER4, plan.RESOLVER_NAME, TXT) == plan.MARK_TUNNEL
        assert made.is_silent(plan.INTERNET4, "", 7, then=(plan.RESOLVER4, 53))


def test_another_region_than_the_servers_ends_it_with_code_0(tunnel: Tunnel) -> None:
    core = tunnel.start_core(EgressRegion="YY")
    assert core.finish() == 0
    assert str(core.notices("Error")[0]["message"]).endswith("TargetServerEntry does not support EgressRegion")
    assert core.notices("Tunnels") == []


def test_a_server_with_another_certificate_is_not_trusted(tunnel: Tunnel) -> None:
    entry = tunnel.server.entry
    fingerprint = decode_server_entry(entry).fingerprint
    other = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
    core = tunnel.start_core(TargetServerEntry=entry.replace(fingerprint.encode().hex(), other.encode().hex()))
    core.wait_for("Warning")
    assert core.notices("Tunnels") == []
    assert tunnel.new_flows() == []


def test_a_used_port_ends_the_core_with_code_0_and_no_farewell(tunnel: Tunnel) -> None:
    def occupy() -> socket.socket:
        return socket.create_server(("127.0.0.1", 1081))

    with contextlib.closing(tunnel.world.client.call(occupy)):
        core = tunnel.start_core()
        assert core.finish() == 0
    assert core.notices("SocksProxyPortInUse") == [{"port": 1081}]
    assert core.notices("Exiting") == []


def test_a_second_core_finds_the_tun_busy(tunnel: Tunnel) -> None:
    tunnel.connect()
    second = tunnel.start_core()
    assert second.finish() == 1
    assert b"tun device" in second.raw


def test_a_tun_of_another_user_is_refused(tunnel: Tunnel) -> None:
    argv: list[str | Path] = [
        tunnel.wrapper,
        "-config",
        tunnel.config(),
        "-dataRootDirectory",
        "/tmp",
        "-tunDevice",
        TUN,
    ]
    done = tunnel.world.client.run(argv, uid=CORE_UID + 1, check=False)
    assert done.returncode == 1
    assert "tun device" in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"PropagationChannelId": None},
        {"SponsorId": ""},
        {"TunnelPoolSize": 2},
        {"ClientVersion": "one"},
        {"EstablishTunnelTimeoutSeconds": -1},
        {"PacketTunnelTransparentDNSIPv4Address": "fd00::1"},
        {"TargetServerEntry": "00"},
        {"EgressRegion": 1},
    ],
)
def test_a_configuration_that_the_real_core_refuses_ends_with_code_1(
    connected: tuple[Tunnel, CoreProcess], changes: dict[str, object]
) -> None:
    made, _ = connected
    argv: list[str | Path] = [
        made.wrapper,
        "-config",
        made.config(**changes),
        "-dataRootDirectory",
        "/tmp",
        "-tunDevice",
        TUN,
    ]
    done = made.world.client.run(argv, uid=CORE_UID, check=False)
    assert done.returncode == 1
    notice = json.loads(done.stderr)
    assert notice["noticeType"] == "Error"
    assert "tun device" not in notice["data"]["message"]


@pytest.mark.parametrize("flags", [["-nosuch"], ["-config"], ["-v=maybe"], ["--tunDevices", "x"]])
def test_a_flag_that_go_refuses_ends_with_usage_and_code_2(
    connected: tuple[Tunnel, CoreProcess], flags: list[str]
) -> None:
    done = connected[0].world.client.run([connected[0].wrapper, *flags], check=False)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.parametrize("flag", ["-v", "--v", "-version", "--version=true"])
def test_the_version_says_that_it_is_a_test_instrument(connected: tuple[Tunnel, CoreProcess], flag: str) -> None:
    done = connected[0].world.client.run([connected[0].wrapper, flag])
    assert len(done.stdout.splitlines()) == 5
    assert "test instrument" in done.stdout
    assert done.stderr == ""


def test_the_core_starts_without_any_library_of_the_project(connected: tuple[Tunnel, CoreProcess]) -> None:
    script = (
        "import sys, psiphon_lab.standin_core, psiphon_lab.probe\n"
        "print([name for name in ('pyroute2', 'dpkt', 'rich', 'click') if name in sys.modules])"
    )
    assert connected[0].world.client.run([sys.executable, "-c", script]).stdout == "[]\n"


def test_each_new_connection_of_the_core_is_recorded(fresh_tunnel: Tunnel) -> None:
    core = fresh_tunnel.connect()
    assert len(fresh_tunnel.server.list_flows()) == 1
    fresh_tunnel.server.stop()
    fresh_tunnel.server.start()
    core.wait_for("Info", at_least=2)
    wait_until(lambda: len(fresh_tunnel.server.list_flows()) == 2, "the new connection is recorded")
    assert fresh_tunnel.python(UDP_ECHO, plan.INTERNET4, "", "7", "30") == "hello"
