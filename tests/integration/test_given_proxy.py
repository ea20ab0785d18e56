# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A proxy that a person gives for the server list, on a locked machine: the lock decides, and the error is true."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.list_host import LIST_URL, run_list_host
from psiphon_lab.list_host import ListHost as ListServer
from psiphon_lab.proxy_host import PASSWORD, USER, ProxyHost, run_proxy
from psiphon_lab.proxy_host import PORT as PROXY_PORT
from psiphon_vpn.servers.fetch_order import Refusal, RefusedError
from psiphon_vpn.servers.list_hosts import ListHost
from psiphon_vpn.servers.proxies import find_proxy
from psiphon_vpn.servers.refresh import UnreachedError, fetch_through

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

HOST = ListHost("list.example", "/list")


def attempt(url: str) -> RefusedError:
    """Fetch as root through a proxy that does not deliver."""
    proxy = find_proxy(url)
    assert proxy is not None
    with pytest.raises(RefusedError) as caught:
        fetch_through(HOST, proxy, 30.0)
    return caught.value


def attempt_on_loopback() -> tuple[RefusedError, bytes]:
    """The same with a proxy on this machine that refuses; returns also what the proxy received."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            with listener.accept()[0] as connection:
                heard.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 403 no\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        refused = attempt(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(30)
    return refused, heard[0]


@pytest.mark.requirement("R1", "R11")
def test_a_locked_machine_reaches_a_proxy_on_itself_and_sends_nothing_to_one_elsewhere() -> None:
    with open_testbed(start=False) as testbed:
        client = testbed.world.client
        mark = testbed.world.mark()
        for address in (plan.INTERNET4, f"[{plan.INTERNET6}]", plan.LAN_A.router4):
            for url in (f"socks5://{address}:80", f"http://{address}:443"):
                refused = client.call(partial(attempt, url))
                assert isinstance(refused, UnreachedError), url
        answered, heard = client.call(attempt_on_loopback)
        assert not isinstance(answered, UnreachedError)
        assert answered.refusal is Refusal.PROXY
        assert heard.startswith(b"CONNECT list.example:443 ")
        testbed.assert_no_leak(mark)


@dataclass
class Scene:
    """A machine with the tunnel open, a host with the list, and a proxy that wants a password."""

    testbed: Testbed
    host: ListServer
    proxy: ProxyHost

    def refresh(self, scheme: str, *, user: str, said: str) -> subprocess.CompletedProcess[str]:
        """Run `servers refresh --proxy`; said: its standard input."""
        url = f"{scheme}://{user}@{plan.INTERNET4}:{PROXY_PORT}"
        return self.testbed.machine.run_command("servers", "refresh", "--proxy", url, said=said, check=False)

    def shown(self) -> str:
        return self.testbed.machine.run_command("servers", "list").stdout


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with (
        open_testbed(start=False) as testbed,
        run_list_host(testbed.world) as host,
        run_proxy(testbed.world, password=True) as proxy,
    ):
        entry = testbed.server.entry
        testbed.machine.trust_network("lab", host.signer.render_profile(LIST_URL))
        testbed.machine.trust_authority(host.authority.certificate)
        testbed.machine.write_config(target=True)
        testbed.machine.start_daemon()
        testbed.machine.wait_state("OPEN")
        host.publish(entry)
        yield Scene(testbed, host, proxy)


@pytest.mark.requirement("R1", "R11")
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_list_comes_through_a_given_proxy_with_a_password_by_the_open_tunnel(scene: Scene, scheme: str) -> None:
    # Another list each time, so that it is new.
    scene.host.publish(*[scene.testbed.server.entry] * (3 if scheme == "http" else 4))
    mark, before = scene.testbed.world.mark(), len(scene.proxy.read_targets())
    done = scene.refresh(scheme, user=USER, said=f"{PASSWORD}\n")
    assert (done.stderr, done.returncode) == ("", 0), [
        (line["target"], line.get("failed")) for line in scene.proxy.read_record()
    ]
    assert "server" in done.stdout
    assert scene.proxy.read_targets()[before:] == [(plan.LIST_NAME, 443)], "the proxy looks the name up"
    assert f"From:         https://{plan.LIST_NAME}" in scene.shown()
    # By the tunnel: the proxy sees the server's address, and on the wires there is the tunnel alone.
    assert {line["client"] for line in scene.proxy.read_record()} == {plan.SERVER4}
    frames = scene.testbed.world.frames_since(mark)
    assert any(frame.from_client for frame in frames), "the captures see the tunnel"
    scene.testbed.assert_no_leak(mark)
    assert PASSWORD not in f"{done.stdout}{done.stderr}{scene.testbed.machine.read_log()}"


@pytest.mark.requirement("R1", "R11")
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_wrong_password_is_reported_as_that_and_the_list_stays(scheme: str, scene: Scene) -> None:
    before, targets = scene.shown(), scene.proxy.read_targets()
    done = scene.refresh(scheme, user=USER, said="a wrong word\n")
    assert done.returncode == 1
    assert "the proxy refuses the user name and password" in done.stderr
    assert "wrong word" not in f"{done.stdout}{done.stderr}"
    assert scene.shown() == before
    assert scene.proxy.read_targets() == targets
