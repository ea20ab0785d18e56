# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rescue on real wires, judged by the frames outside: what leaves the machine, to whom, and what does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.frames import Frame, decode_ip
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.list_host import LIST_URL, PORT, ListHost, run_list_host
from psiphon_lab.machine import LAB_UID
from psiphon_lab.probe import probe_specs
from psiphon_lab.probe_runner import run_probes, unseen_probes
from psiphon_lab.proxy_host import PASSWORD, USER, ProxyHost, run_proxy
from psiphon_lab.proxy_host import PORT as PROXY_PORT
from psiphon_vpn.servers.hints import FILE_NAME, Hint, read_hints, write_hints

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HASTY = Path(__file__).with_name("hasty_daemon.py")
SOON = "RESCUE_SECONDS=0.3,FIRST_SECONDS=0.1"
"""A rescue is due soon, and another one 5 s later, which cuts off one that still runs."""
ONCE = f"{SOON},RESCUES_AT_FIRST=1,RESCUE_EVERY=1e9"
"""One rescue only, however slow the machine is: for tests that count what it sends."""
SELDOM = f"{SOON},RESCUES_AT_FIRST=1,RESCUE_EVERY=30"
"""Rescues so far apart (9 s) that none is cut off, which would leave a connection that no host has recorded."""
LIST_HOSTS = {plan.LIST_HOST4, plan.LIST_HOST6}


@dataclass
class Scene:
    """The service on a testbed, and a host with the list."""

    testbed: Testbed
    host: ListHost
    published: bytes

    @property
    def fetched(self) -> Path:
        return self.testbed.machine.state_dir / "fetched-list"

    @property
    def hints(self) -> Path:
        return self.testbed.machine.state_dir / FILE_NAME

    def known(self) -> set[str]:
        return {str(hint.address) for hint in read_hints(self.hints)}

    def plant(self) -> None:
        """Write hints, as psiphon-user could, or whoever ran the other end of the tunnel."""
        now = datetime.now(UTC)
        planted = [Hint(host=plan.LIST_NAME, address=ip_address(text), seen=now) for text in sorted(LIST_HOSTS)]
        write_hints(self.hints, planted)
        os.chown(self.hints, LAB_UID, LAB_UID)

    def configure(self, *, target: bool = False, **settings: Any) -> None:
        """Write another configuration and restart with it; without a target the core knows no server."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"servers": "lab", **settings}.items()]
        lines += ["[core.advanced]", "DisableRemoteServerListFetcher = true"]
        lines += [f"TargetServerEntry = {json.dumps(self.testbed.server.entry)}"] if target else []
        self.testbed.machine.write_config("\n".join(lines) + "\n")
        self.testbed.machine.command("reload")

    def await_list(self) -> None:
        """Wait until a rescue has brought the list."""
        wait = self.testbed.machine.wait_for
        wait(lambda: self.fetched.exists() and self.fetched.read_bytes() == self.published, "the list")

    def calls(self, mark: dict[str, int]) -> set[tuple[str, int]]:
        """The hosts to which the machine has sent TCP or UDP since a mark, except the tunnel server."""
        seen = set()
        for frame in self.testbed.world.frames_since(mark):
            packet = read_packet(frame)
            if packet is not None and packet[0] not in {plan.SERVER4, plan.SERVER6}:
                seen.add(packet)
        return seen

    def judge(self, mark: dict[str, int], *, proxy: ProxyHost | None = None) -> None:
        """Require that nothing has leaked since a mark, except connections that the list's host or proxy recorded."""
        frames = self.testbed.world.frames_since(mark)
        others = self.host.read_flows() if proxy is None else proxy.read_flows()
        evidence = world_evidence(self.testbed.server.read_flows() | others)
        leaks = find_leaks(frames, evidence)
        assert not leaks, [leak.text for leak in leaks[:10]]


def read_packet(frame: Frame) -> tuple[str, int] | None:
    """Destination and port of a TCP or UDP packet; None for any other frame."""
    packet = decode_ip(frame.data)
    if packet is None or packet.protocol not in {6, 17}:
        return None
    return packet.destination, packet.destination_port


@contextmanager
def open_scene(*, trusted: bool = True, constants: str = ONCE) -> Iterator[Scene]:
    """A testbed with the tunnel open and hints learned. trusted: the machine trusts the authority of the list's host.

    Otherwise it learns no hints, and the test plants them.
    """
    with open_testbed(start=False, settings={"servers": "lab"}) as testbed, run_list_host(testbed.world) as host:
        profile = testbed.machine.config_path.with_name("profiles") / "lab.toml"
        profile.parent.mkdir()
        profile.write_text(host.signer.render_profile(LIST_URL))
        profile.parent.chmod(0o755)
        profile.chmod(0o644)
        if trusted:
            certificates = testbed.world.directory / "certificates"
            certificates.mkdir()
            shutil.copy(host.authority.certificate, certificates / "ca-certificates.crt")
            certificates.chmod(0o755)
            testbed.world.client.run(["mount", "--bind", certificates, "/etc/ssl/certs"])
        testbed.machine.program = [str(HASTY), constants]
        mark = testbed.world.mark()
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        scene = Scene(testbed, host, host.publish(testbed.server.entry))
        if trusted:
            testbed.machine.wait_for(lambda: scene.known() == LIST_HOSTS, "the hints")
        else:
            refused = "is not kept: wrong_host"
            testbed.machine.wait_for(lambda: testbed.machine.read_log().count(refused) == len(LIST_HOSTS), "the proofs")
            # The service removes the refused addresses from the file after both proofs, so plant hints only later.
            testbed.machine.wait_for(scene.hints.exists, "the file of hints")
            assert scene.known() == set(), "nobody proved the name there"
            scene.plant()
        assert host.read_record() == [], "in the tunnel only names and proofs were asked for"
        scene.judge(mark)
        yield scene


@pytest.mark.requirement("R1", "R5", "R11")
def test_while_no_server_answers_the_list_comes_from_a_hint_and_nothing_else_leaves() -> None:
    with open_scene() as scene:
        mark = scene.testbed.world.mark()
        scene.configure()
        scene.await_list()
        # The positive control: the captures see a rescue.
        called = scene.calls(mark)
        assert called
        assert called <= {(address, PORT) for address in LIST_HOSTS}
        scene.judge(mark)
        assert len(scene.host.read_record()) == 1
        [request] = scene.host.read_record()
        assert request["client"] in {plan.LAN_A.client4, plan.LAN_A.client6}
        # The next core gets the list, and so knows a server again.
        scene.testbed.machine.wait_state("OPEN")
        assert "new_list" in scene.testbed.machine.read_log()
        # The core has this list now, so no rescue uses it again.
        scene.testbed.probe()
        scene.judge(mark)
        assert scene.fetched.stat().st_mode & 0o777 == 0o600


@pytest.mark.requirement("R1", "R3", "R19")
@pytest.mark.parametrize("how", ["stopped", "off", "bad configuration", "no uplink"])
def test_in_any_other_state_and_switched_off_nobody_is_asked(how: str) -> None:
    with open_scene(constants=SELDOM) as scene:
        machine = scene.testbed.machine
        mark = scene.testbed.world.mark()
        if how == "off":
            scene.configure(list_rescue=False, establish_timeout=1)
            # Several cores have been given up since then, and each had moments at which a rescue would have been due.
            machine.wait_for(lambda: machine.read_log().count("CONNECTING -> LOCKED") >= 2, "two cores, given up")
        else:
            scene.configure(target=True)
            if how == "stopped":
                machine.command("stop")
            elif how == "bad configuration":
                machine.write_config("nonsense")
                machine.signal_daemon(signal.SIGHUP)
                machine.wait_state("FAILED")
            else:
                scene.testbed.world.disconnect_uplink(plan.LAN_A)
                machine.wait_state("LOCKED")
        if how != "no uplink":
            scene.testbed.probe()
        assert scene.calls(mark) == set()
        assert scene.host.read_record() == []
        assert not scene.fetched.exists()
        # The positive control: with the same hints the host is asked as soon as that is allowed.
        if how == "no uplink":
            scene.testbed.world.connect_uplink(plan.LAN_A)
        mark = scene.testbed.world.mark()
        scene.configure()
        machine.command("start")
        scene.await_list()
        assert scene.calls(mark)
        scene.judge(mark)


@pytest.mark.requirement("R1", "R3")
def test_a_stop_in_the_middle_of_a_rescue_leaves_nothing_on_the_wire() -> None:
    with open_scene(constants=SOON) as scene:
        scene.host.stop()
        # Nobody answers there now, so a connection attempt lasts.
        drop = "add table inet hush; add chain inet hush in { type filter hook input priority 0; }; "
        drop += f"add rule inet hush in tcp dport {PORT} drop"
        scene.testbed.world.internet.run(["nft", "-f", "-"], input=drop.replace("; add", "\nadd"))
        mark = scene.testbed.world.mark()
        scene.configure()
        scene.testbed.machine.wait_for(lambda: bool(scene.calls(mark)), "a call")
        scene.testbed.machine.command("stop")
        mark = scene.testbed.world.mark()
        scene.testbed.probe()
        assert scene.calls(mark) == set()


@pytest.mark.requirement("R1", "R19")
def test_a_planted_address_costs_one_connection_that_is_refused() -> None:
    """The host at that address has no certificate that this machine trusts."""
    with open_scene(trusted=False) as scene:
        mark = scene.testbed.world.mark()
        scene.configure()
        scene.testbed.machine.wait_for(lambda: scene.known() == set(), "all hints, forgotten")
        scene.testbed.probe()
        assert scene.calls(mark) == {(address, PORT) for address in LIST_HOSTS}
        assert count_connections(scene, mark) == dict.fromkeys(LIST_HOSTS, 1)
        assert scene.host.read_record() == [], "no host was told what is wanted before it proved its name"
        assert not scene.fetched.exists()


def count_connections(scene: Scene, mark: dict[str, int]) -> dict[str, int]:
    """The number of connections begun to each address, counted by source port."""
    ports: dict[str, set[int]] = {}
    for frame in scene.testbed.world.frames_since(mark):
        packet = decode_ip(frame.data)
        if packet is not None and packet.protocol == 6 and packet.destination in LIST_HOSTS:
            ports.setdefault(packet.destination, set()).add(packet.source_port)
    return {address: len(found) for address, found in ports.items()}


# -- through an upstream proxy -----------------------------------------------------------------------------------------


def render_proxy(scheme: str, address: str, login: str = "") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{login and f'{login}@'}{host}:{PROXY_PORT}"


LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"


@pytest.mark.requirement("R1", "R5", "R11")
@pytest.mark.parametrize(
    ("scheme", "address", "login"),
    [("http", plan.INTERNET4, ""), ("http", plan.INTERNET6, LOGIN), ("socks5", plan.INTERNET4, LOGIN),
     ("socks5", plan.INTERNET6, "")],
    ids=["http", "http with a password", "socks5 with a password", "socks5"],
)  # fmt: skip
def test_with_an_upstream_proxy_the_list_comes_through_it_and_nothing_else_leaves(
    scheme: str, address: str, login: str
) -> None:
    with open_scene() as scene, run_proxy(scene.testbed.world, password=bool(login)) as proxy:
        mark = scene.testbed.world.mark()
        scene.configure(upstream_proxy=render_proxy(scheme, address, login))
        scene.await_list()
        # The positive control: the captures see the proxy's connection.
        assert scene.calls(mark) == {(address, PROXY_PORT)}
        [(target, port)] = proxy.read_targets()
        assert target in LIST_HOSTS, "an address, not a name"
        assert port == PORT
        [request] = scene.host.read_record()
        assert request["client"] not in {plan.LAN_A.client4, plan.LAN_A.client6}, "the host sees the proxy"
        specs = probe_specs(salt=1, interface=plan.LAN_A.interface, label="root")
        run_probes(scene.testbed.world.client, specs)
        assert len(unseen_probes(specs, scene.testbed.world.frames_since(mark))) == len(specs)
        assert scene.calls(mark) == {(address, PROXY_PORT)}
        scene.judge(mark, proxy=proxy)
        for secret in (PASSWORD, quote(PASSWORD, safe="")):
            assert secret not in scene.testbed.machine.read_log()


@pytest.mark.requirement("R1", "R5", "R11")
@pytest.mark.parametrize(
    ("scheme", "login", "words"),
    [("http", None, "cannot be reached"), ("socks5", None, "cannot be reached"), ("http", "", "user name and password"),
     ("http", f"{USER}:wrong", "user name and password"), ("socks5", f"{USER}:wrong", "user name and password")],
    ids=["http, down", "socks5, down", "http, no password", "http, wrong password", "socks5, wrong password"],
)  # fmt: skip
def test_an_upstream_proxy_that_does_nothing_is_named_as_the_reason_and_nothing_goes_past_it(
    scheme: str, login: str | None, words: str
) -> None:
    """login: user and password for the proxy; None: the proxy is down."""
    with open_scene(constants=SELDOM) as scene, run_proxy(scene.testbed.world, password=True) as proxy:
        if login is None:
            proxy.stop()
        mark = scene.testbed.world.mark()
        scene.configure(upstream_proxy=render_proxy(scheme, plan.INTERNET4, login or ""))
        # It stays the reason after the core has reported too.
        log = scene.testbed.machine.read_log
        scene.testbed.machine.wait_for(lambda: "rescue: a host of the server list was asked" in log(), "a rescue")
        status = scene.testbed.machine.read_status
        scene.testbed.machine.wait_for(lambda: (status() or {})["reason_code"] == "upstream_proxy", "the reason")
        reported = status() or {}
        assert words in reported["reason"]
        assert "upstream_proxy" in reported["next_step"]
        assert reported["locked"] is True
        assert scene.calls(mark) == {(plan.INTERNET4, PROXY_PORT)}, "the positive control, and no other connection"
        assert proxy.read_targets() == []
        assert scene.host.read_record() == []
        assert scene.known() == LIST_HOSTS, "it costs no hint"
        # With a proxy that works, the same machine gets its list.
        if login is None:
            proxy.start()
        mark = scene.testbed.world.mark()
        scene.configure(upstream_proxy=render_proxy(scheme, plan.INTERNET4, LOGIN))
        scene.await_list()
        assert scene.calls(mark) == {(plan.INTERNET4, PROXY_PORT)}
        scene.judge(mark, proxy=proxy)
