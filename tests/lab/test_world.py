# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The world: connected as in its picture, and captured from outside."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any

import dpkt
import pytest
from tests.conftest import Figure

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.capture import Capture
from psiphon_lab.frames import decode_ip, describe_frame
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.namespace import Host, LabError
from psiphon_lab.probe import DNS_TCP, DNS_UDP, TCP, ProbeResult, probe_specs
from psiphon_lab.probe_runner import run_probes, start_probes, unseen_probes
from psiphon_lab.server_process import run_server
from psiphon_lab.topology import find_link
from psiphon_lab.waiting import wait_until
from psiphon_lab.world import World

pytestmark = pytest.mark.lab

NOBODY = 65534
LOCK = """
table inet lock {
  chain output {
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    icmpv6 type { 133, 135, 136, 143 } accept
  }
}
"""


def fetch(host: Host, address: str) -> str:
    """The client's address as the page at `address` sees it."""

    def inside() -> str:
        with socket.create_connection((address, 80), timeout=30) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            body = b""
            while chunk := sock.recv(4096):
                body += chunk
        return str(json.loads(body.partition(b"\r\n\r\n")[2])["address"])

    return host.call(inside)


def test_how_soon_a_world_is_up_is_reported(figure: Figure) -> None:
    start = time.monotonic()
    with World() as made:
        figure("a world, s", time.monotonic() - start)
        assert fetch(made.client, plan.INTERNET4) == LAN_A.client4


def test_the_page_sees_the_clients_address_on_both_families(shared_world: World) -> None:
    assert fetch(shared_world.client, plan.INTERNET4) == LAN_A.client4
    assert fetch(shared_world.client, plan.INTERNET6) == LAN_A.client6


def test_the_neighbour_and_the_server_are_reached_by_both_families(shared_world: World) -> None:
    assert fetch(shared_world.client, plan.NEIGHBOUR4) == LAN_A.client4
    assert fetch(shared_world.client, plan.NEIGHBOUR6) == LAN_A.client6
    assert fetch(shared_world.server, plan.INTERNET4) == plan.SERVER4
    assert fetch(shared_world.server, plan.INTERNET6) == plan.SERVER6


def test_the_container_reaches_the_client_and_no_further_without_translation(shared_world: World) -> None:
    def connect(address: str) -> None:
        socket.create_connection((address, 80), timeout=0.3).close()

    def passed() -> bool:
        seen = [decode_ip(frame.data) for frame in shared_world.frames_since(mark)]
        return any(packet is not None and packet.source == plan.CONTAINER4 for packet in seen)

    with pytest.raises(ConnectionRefusedError):
        shared_world.container.call(lambda: connect(plan.CONTAINER_GATEWAY4))
    mark = shared_world.mark()
    with pytest.raises(OSError):
        shared_world.container.call(lambda: connect(plan.INTERNET4))
    wait_until(passed, "the container's packet")


def test_a_client_that_does_not_forward_lets_nothing_of_the_container_out() -> None:
    with World(forwarding=False) as made:
        mark = made.mark()

        def connect() -> None:
            socket.create_connection((plan.INTERNET4, 80), timeout=0.3).close()

        with pytest.raises(OSError):
            made.container.call(connect)
        seen = [decode_ip(frame.data) for frame in made.frames_since(mark)]
        assert not any(packet is not None and packet.source == plan.CONTAINER4 for packet in seen)


def test_two_worlds_stand_side_by_side_and_do_not_hear_each_other() -> None:
    with World() as first, World() as second:
        assert first.directory != second.directory
        mark = second.mark()
        assert fetch(first.client, plan.INTERNET4) == LAN_A.client4
        assert [line["service"] for line in first.read_record("internet")] == ["http"]
        assert second.read_record("internet") == []
        assert not [
            packet for frame in second.frames_since(mark) if (packet := decode_ip(frame.data)) and packet.version == 4
        ]


def test_the_machines_own_links_stay_as_they_were() -> None:
    before = sorted(os.listdir("/sys/class/net"))
    with World():
        assert sorted(os.listdir("/sys/class/net")) == before
    assert sorted(os.listdir("/sys/class/net")) == before


def test_moving_to_another_provider_changes_the_address_that_the_page_sees(world: World) -> None:
    assert fetch(world.client, plan.INTERNET4) == LAN_A.client4
    world.move_to_provider_b()
    mark = world.mark()
    assert fetch(world.client, plan.INTERNET4) == LAN_B.client4
    assert fetch(world.client, plan.INTERNET6) == LAN_B.client6
    assert {frame.wire for frame in world.frames_since(mark)} == {"provider_b"}
    world.move_to_provider_a()
    assert fetch(world.client, plan.INTERNET6) == LAN_A.client6


def test_a_second_uplink_with_a_better_route_takes_over_until_it_is_unplugged(world: World) -> None:
    world.plug_b()
    assert fetch(world.client, plan.INTERNET4) == LAN_B.client4
    world.unplug_b()
    assert fetch(world.client, plan.INTERNET4) == LAN_A.client4


def test_a_link_without_carrier_is_seen_by_the_client(world: World) -> None:
    def carrier() -> str:
        return world.client.run(["cat", "/sys/class/net/eth0/carrier"]).stdout.strip()

    assert carrier() == "1"
    world.set_carrier(LAN_A, up=False)
    wait_until(lambda: carrier() == "0", "the carrier is lost")


def test_the_captures_begin_before_the_clients_first_frame(world: World) -> None:
    frames = world.frames_since()
    reports = [frame for frame in frames if "ff02::16" in describe_frame(frame)]
    # This client has no lock, so its kernel sends MLDv2 reports, which are leaks. Nothing else is.
    assert reports
    assert {leak.frame for leak in find_leaks(frames, world_evidence())} <= set(reports)


def test_the_capture_file_holds_the_frames_that_were_judged(world: World) -> None:
    fetch(world.client, plan.INTERNET4)
    frames = world.frames_since()
    world.captures["provider_a"].stop()
    with (world.directory / "provider_a.pcap").open("rb") as stream:
        written = [data for _, data in dpkt.pcap.Reader(stream)]
    assert frames
    assert {frame.data for frame in frames} <= set(written)


def test_a_raw_frame_and_its_vlan_tag_are_seen(world: World) -> None:
    tagged = bytes.fromhex("ff ff ff ff ff ff 02 50 53 00 0a 10 81 00 00 05 08 06") + b"\0" * 46

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((LAN_A.interface, 0))
            sock.send(tagged)

    mark = world.mark()
    world.client.call(send)
    frames = world.frames_since(mark)
    assert tagged in [frame.data for frame in frames]
    leaks = [leak.text for leak in find_leaks(frames, world_evidence()) if "ff02::16" not in leak.text]
    assert [text.split()[0] for text in leaks] == ["VLAN"]


def test_frames_to_the_client_are_distinguished_from_its_own(world: World) -> None:
    fetch(world.client, plan.INTERNET4)
    frames = world.captures["provider_a"].frames_since()
    towards = [packet for frame in frames if not frame.from_client and (packet := decode_ip(frame.data))]
    assert any(packet.source == plan.INTERNET4 for packet in towards), "the client received them, so they are captured"
    own = [packet for frame in frames if frame.from_client and (packet := decode_ip(frame.data))]
    assert {packet.source for packet in own if packet.version == 4} == {LAN_A.client4}


def test_a_capture_that_lost_frames_gives_no_evidence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psiphon_lab.capture.Capture.dropped", property(lambda _: 1))
    with pytest.raises(LabError, match="lost frames"):
        world.frames_since()


def test_the_kernels_count_of_lost_frames_is_reported(world: World) -> None:
    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(200):
                sock.sendto(b"x" * 1000, (plan.NEIGHBOUR4, 9))

    def lose() -> bool:
        """A flood, faster than it is read; whether the kernel counted a loss."""
        world.client.call(flood)
        return capture.dropped > 0

    # A queue of the smallest size: the kernel rounds one byte up.
    with Capture(world.hosts[LAN_A.name], LAN_A.port, wire=LAN_A.name, buffer_bytes=1) as capture:
        assert capture.dropped == 0
        wait_until(lose, "frames are lost")


# -- probes: the positive control ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control(shared_world: World) -> tuple[dict[str, ProbeResult], list[Any], list[Any]]:
    """The whole battery as root and as an ordinary user in a world without any lock."""
    with run_server(shared_world):
        mark = shared_world.mark()
        root = probe_specs(salt=1, label="root")
        nobody = probe_specs(salt=2, label="nobody")
        running = [
            start_probes(shared_world.client, root, limit=30.0),
            start_probes(shared_world.client, nobody, uid=NOBODY, limit=30.0),
        ]
        results = {**running[0].collect(), **running[1].collect()}
        return results, [*root, *nobody], shared_world.frames_since(mark)


def test_without_a_lock_every_probe_is_seen_on_the_wire(control: tuple[Any, list[Any], list[Any]]) -> None:
    _, specs, frames = control
    assert len(specs) == 104
    assert [spec.id for spec in unseen_probes(specs, frames)] == []


def test_without_a_lock_every_probe_is_a_leak_to_the_judge(control: tuple[Any, list[Any], list[Any]]) -> None:
    _, specs, frames = control
    leaks = [verdict.frame for verdict in find_leaks(frames, world_evidence())]
    assert [spec.id for spec in unseen_probes(specs, leaks)] == []


def test_without_a_lock_every_probe_is_answered(control: tuple[dict[str, ProbeResult], Any, Any]) -> None:
    results = control[0]
    # The server listens on IPv4 only, as a server entry has one address.
    odd = {name: result for name, result in results.items() if result.outcome != "answered"}
    assert {result.outcome for result in odd.values()} <= {"refused"}
    assert all("tcp-ipv6-server" in name for name in odd)


def test_probes_show_which_address_and_which_resolver_answered(
    control: tuple[dict[str, ProbeResult], list[Any], Any],
) -> None:
    results, specs, _ = control
    for spec in specs:
        answer = results[spec.id].answer
        if spec.kind in (DNS_UDP, DNS_TCP):
            assert answer == (plan.MARK_LAN if spec.where == "lan-resolver" else plan.MARK_INTERNET)
        if spec.kind == TCP and spec.where == "internet":
            assert answer == (LAN_A.client4 if spec.family == 4 else LAN_A.client6)


def test_no_two_probes_of_a_world_look_alike() -> None:
    specs = [spec for salt in range(20) for spec in probe_specs(salt=salt)]
    assert len({spec.source_port for spec in specs}) == len({spec.token for spec in specs}) == len(specs)


def test_a_probe_without_a_route_fails_at_once(world: World) -> None:
    world.disconnect_uplink(LAN_A)
    mark = world.mark()
    specs = probe_specs(salt=3)
    results = run_probes(world.client, specs, uid=NOBODY)
    plain = {results[spec.id].outcome for spec in specs if not spec.interface}
    assert plain == {"unreachable"}
    assert world.frames_since(mark) == []
    assert len(unseen_probes(specs, [])) == len(specs)


def test_a_locked_wire_shows_none_of_the_probes(world: World) -> None:
    world.client.run(
        ["nft", "-f", "-"],
        input=LOCK,
    )
    mark = world.mark()
    specs = probe_specs(salt=4)
    results = run_probes(world.client, specs)
    assert {result.outcome for result in results.values()} <= {"timeout", "denied"}
    assert len(unseen_probes(specs, world.frames_since(mark))) == len(specs)


def test_an_interface_index_is_found_or_an_error(shared_world: World) -> None:
    assert shared_world.client.netlink(lambda ipr: find_link(ipr, "eth0")) > 1
    with pytest.raises(LabError, match="no interface"):
        shared_world.client.netlink(lambda ipr: find_link(ipr, "nosuch"))


def test_the_time_service_answers(shared_world: World) -> None:
    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(30)
            sock.sendto(b"\x23" + bytes(47), (plan.INTERNET4, 123))
            return int(struct.unpack("!I", sock.recv(100)[40:44])[0])

    assert abs(shared_world.client.call(ask) - 2208988800 - time.time()) < 5
