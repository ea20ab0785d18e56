# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A newer list through the tunnel or not at all: when it is due, who is asked, and what is never accepted silently."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.server_lists import make_key, make_list, make_test_profile

from psiphon_vpn.cli.main import cli
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.fetch_order import Refusal, RefusedError
from psiphon_vpn.servers.fetched import FetchedLists
from psiphon_vpn.servers.list_hosts import ListHost, find_list_hosts, find_mirrors
from psiphon_vpn.servers.profile import ListUrl
from psiphon_vpn.servers.proxies import Proxy, find_proxy
from psiphon_vpn.servers.refresh import DUE_AGE, NotNow, UnreachedError, fetch_through, find_tunnel, is_due, refresh
from psiphon_vpn.servers.store import ListChange, ServerStore
from psiphon_vpn.system.layout import Layout

KEY = make_key()
LAB = make_test_profile(KEY)
OLD, NEW, SMALL = make_list(10, KEY), make_list(11, KEY), make_list(3, KEY)
OPEN: dict[str, Any] = {"state": "OPEN", "socks": {"port": 1081, "available": True}}
LIMIT = 30.0


def on_loopback(port: int, scheme: str = "socks5") -> Proxy:
    found = find_proxy(f"{scheme}://127.0.0.1:{port}")
    assert found is not None
    return found


TUNNEL = on_loopback(1081)
LATER = DUE_AGE + timedelta(hours=1)


@dataclass
class Host:
    """The far end: gives a file, or refuses. others: what hosts other than the first give."""

    content: bytes | Refusal = NEW
    others: dict[str, bytes | Refusal] = field(default_factory=dict)
    asked: list[tuple[ListHost, Proxy]] = field(default_factory=list)

    def fetch(self, host: ListHost, proxy: Proxy, seconds: float) -> bytes:
        """Give the file, or refuse."""
        assert 0 < seconds <= 150
        self.asked.append((host, proxy))
        content = self.others.get(host.host, self.content)
        if isinstance(content, Refusal):
            raise RefusedError(content)
        return content


@dataclass
class Scene:
    """A store, and the requests for a list."""

    store: ServerStore
    host: Host = field(default_factory=Host)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def refresh(self, status: dict[str, Any] = OPEN, *, only_if_due: bool = True) -> ListChange | NotNow:
        return refresh(self.store, LAB, status, only_if_due=only_if_due, now=self.now, fetch=self.host.fetch)

    def count(self) -> int:
        record = self.store.read_current()
        return 0 if record is None else record.entries


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(ServerStore(Layout(root=tmp_path), root_uid=os.geteuid()))


def test_the_first_list_is_fetched_and_put_into_use(scene: Scene) -> None:
    assert isinstance(scene.refresh(), ListChange)
    assert scene.count() == 11
    assert scene.host.asked == [(ListHost("list.example", "/list"), TUNNEL)]


def test_a_list_that_is_not_old_is_left_alone_and_an_old_one_is_replaced(scene: Scene) -> None:
    scene.store.add(OLD, source="x", profile=LAB)
    assert scene.refresh() is NotNow.NOT_DUE
    assert scene.host.asked == []
    scene.now += LATER
    assert isinstance(scene.refresh(), ListChange)
    assert scene.count() == 11


def test_a_clock_that_was_wrong_does_not_keep_a_list_for_ever(scene: Scene) -> None:
    scene.store.add(OLD, source="x", profile=LAB)
    record = scene.store.read_current()
    assert not is_due(record, profile="lab", now=scene.now - timedelta(hours=1))
    assert is_due(record, profile="lab", now=scene.now - timedelta(days=400))
    assert is_due(record, profile="other", now=scene.now), "another network's list"
    assert is_due(None, profile="lab", now=scene.now)


@pytest.mark.requirement("R1", "R3", "R19")
@pytest.mark.parametrize(
    "status",
    [
        {},
        {"state": "CONNECTING", "socks": {"port": 1081, "available": True}},
        {"state": "LOCKED"},
        {"state": "VERIFYING", "socks": {"port": 1081, "available": True}},
        {"state": "OPEN", "socks": {"port": 1081, "available": False}},
        {"state": "OPEN", "socks": {"port": "1081", "available": True}},
        {"state": "OPEN", "socks": {"port": 0, "available": True}},
        {"state": "OPEN", "socks": None},
        {"state": "OPEN"},
    ],
    ids=json.dumps,
)
def test_without_an_open_tunnel_and_its_proxy_nobody_is_asked(scene: Scene, status: dict[str, Any]) -> None:
    assert find_tunnel(status) is None
    assert scene.refresh(status) is NotNow.CLOSED
    assert scene.refresh(status, only_if_due=False) is NotNow.CLOSED
    assert scene.host.asked == []


@pytest.mark.parametrize(
    ("content", "flaw"), [(SMALL, ListFlaw.MUCH_SMALLER), (make_list(20, make_key(1)), ListFlaw.WRONG_KEY)]
)
def test_a_much_smaller_list_and_one_of_another_key_are_not_taken(scene: Scene, content: bytes, flaw: ListFlaw) -> None:
    scene.store.add(OLD, source="x", profile=LAB)
    scene.host.content, scene.now = content, scene.now + LATER
    with pytest.raises(ListError) as caught:
        scene.refresh()
    assert caught.value.flaw is flaw
    assert scene.count() == 10
    if flaw is ListFlaw.MUCH_SMALLER:
        taken = refresh(scene.store, LAB, OPEN, only_if_due=True, now=scene.now, fetch=scene.host.fetch, accepted=True)
        assert isinstance(taken, ListChange)
        assert scene.count() == 3, "if a person says so"


def test_a_list_that_was_in_use_earlier_is_not_taken_silently(scene: Scene) -> None:
    for content in (OLD, NEW):
        scene.store.add(content, source="x", profile=LAB)
    scene.host.content, scene.now = OLD, scene.now + LATER
    with pytest.raises(ListError) as caught:
        scene.refresh()
    assert caught.value.flaw is ListFlaw.SEEN_BEFORE
    assert scene.count() == 11


@pytest.mark.parametrize("refusal", Refusal)
def test_a_host_that_gives_nothing_costs_nothing(scene: Scene, refusal: Refusal) -> None:
    scene.store.add(OLD, source="x", profile=LAB)
    scene.host.content, scene.now = refusal, scene.now + LATER
    with pytest.raises(ListError) as caught:
        scene.refresh()
    assert caught.value.next_step
    assert scene.count() == 10


def test_only_hosts_that_prove_their_name_at_the_usual_port_are_asked() -> None:
    urls = (
        ListUrl(url="https://Main.Example/a/list"),
        ListUrl(url="https://mirror.example/list", verify_tls=False),
        ListUrl(url="https://odd.example:8443/list"),
        ListUrl(url="https://main.example/other"),
        ListUrl(url="https://second.example:443"),
    )
    profile = replace(LAB, list_urls=urls)
    assert find_list_hosts(profile) == (ListHost("main.example", "/a/list"), ListHost("second.example", "/"))
    assert find_mirrors(profile) == (ListHost("mirror.example", "/list", proves=False),)


# -- mirrors -----------------------------------------------------------------------------------------------------------

MIRRORS = tuple(f"m{number}.example" for number in (1, 2, 3))
MIRRORED = replace(
    LAB, list_urls=(*LAB.list_urls, *(ListUrl(url=f"https://{name}/list", verify_tls=False) for name in MIRRORS))
)


def ask_mirrors(scene: Scene, *, proxy: Proxy | None = None, accepted: bool = False) -> list[str]:
    """Refresh when there are mirrors; returns the hosts that were asked."""
    refresh(
        scene.store,
        MIRRORED,
        OPEN,
        only_if_due=False,
        now=scene.now,
        proxy=proxy,
        fetch=scene.host.fetch,
        accepted=accepted,
    )
    return [host.host for host, _proxy in scene.host.asked]


def test_no_mirror_is_asked_while_the_lists_own_host_gives_it(scene: Scene) -> None:
    assert ask_mirrors(scene) == ["list.example"]


@pytest.mark.parametrize(
    "content",
    [Refusal.NO_FILE, Refusal.WRONG_HOST, Refusal.PROXY, Refusal.SILENT, b"<html>", make_list(20, make_key(1))],
    ids=["no file", "wrong host", "proxy", "silent", "a page", "signed by another"],
)
def test_inside_the_tunnel_the_next_mirror_is_asked_when_one_gives_no_list(
    scene: Scene, content: bytes | Refusal
) -> None:
    scene.store.add(OLD, source="x", profile=LAB)
    scene.host.content, scene.host.others = content, {MIRRORS[1]: NEW}
    assert ask_mirrors(scene) == ["list.example", *MIRRORS[:2]]
    assert scene.count() == 11
    record = scene.store.read_current()
    assert record is not None
    assert record.source == f"https://{MIRRORS[1]}/list"
    assert [host.proves for host, _proxy in scene.host.asked] == [True, False, False]


@pytest.mark.requirement("R1")
def test_a_mirror_that_gives_an_old_or_a_small_list_is_no_question_to_a_person(scene: Scene) -> None:
    """Whoever answers for the mirror could choose an old list, and a person would take it for the network's own."""
    for content in (OLD, NEW):
        scene.store.add(content, source="x", profile=LAB)
    scene.host.content, scene.host.others = Refusal.SILENT, {MIRRORS[0]: OLD, MIRRORS[1]: SMALL, MIRRORS[2]: OLD}
    for accepted in (False, True):
        with pytest.raises(ListError) as caught:
            ask_mirrors(scene, accepted=accepted)
        assert caught.value.flaw is ListFlaw.NOT_FETCHED
        assert "does not answer" in caught.value.why, "what was wrong with the list's own host"
        assert scene.count() == 11


@pytest.mark.requirement("R1", "R11")
def test_through_a_proxy_of_a_persons_no_mirror_is_asked(scene: Scene) -> None:
    """Whoever sees the traffic to the proxy would see the mirrors' names, which only Psiphon uses."""
    scene.host.content = Refusal.NO_FILE
    with pytest.raises(ListError):
        ask_mirrors(scene, proxy=find_proxy("http://192.0.2.7:3128"))
    assert [host.host for host, _proxy in scene.host.asked] == ["list.example"]


@pytest.mark.parametrize("refusal", [Refusal.PROXY_UNREACHED, Refusal.PROXY_ODD, Refusal.PROXY_LOGIN])
def test_without_the_tunnels_proxy_no_other_host_is_tried(scene: Scene, refusal: Refusal) -> None:
    scene.host.content = refusal
    with pytest.raises(ListError):
        ask_mirrors(scene)
    assert len(scene.host.asked) == 1


@pytest.mark.requirement("R1")
def test_no_mirror_is_asked_outside_of_the_tunnel(fetched: FetchedLists, tmp_path: Path) -> None:
    """Neither in a rescue nor for hints: both take their hosts from here."""
    path = Layout(root=tmp_path).profiles_dir / "lab.toml"
    text = path.read_text().replace(
        '["https://list.example/list"]', '["https://list.example/list", "https://m.example/l"]'
    )
    path.write_text(text)
    assert [host.host for host in fetched.find_hosts("lab")] == ["list.example"]


# -- over the proxy ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R11")
def test_the_tunnels_proxy_is_asked_for_the_name_so_that_none_is_looked_up_here() -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            connection, _caller = listener.accept()
            with connection:
                heard.append(connection.recv(3))
                connection.sendall(b"\x05\x00")
                heard.append(connection.recv(64))
                connection.sendall(b"\x05\x05\x00\x01" + bytes(6))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RefusedError) as caught:
            fetch_through(ListHost("list.example", "/list"), on_loopback(listener.getsockname()[1]), LIMIT)
        thread.join(LIMIT)
    assert caught.value.refusal is Refusal.PROXY
    assert heard == [b"\x05\x01\x00", b"\x05\x01\x00\x03\x0clist.example\x01\xbb"]


def test_a_proxy_that_is_gone_is_no_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RefusedError):
        fetch_through(ListHost("list.example", "/list"), on_loopback(port), LIMIT)


@pytest.mark.skipif(os.geteuid() != 0, reason="the command is root's")
def test_the_timer_is_quiet_where_there_is_no_service_and_a_person_gets_a_next_step(tmp_path: Path) -> None:
    runner = CliRunner()
    quiet = runner.invoke(
        cli, ["--runtime-dir", str(tmp_path), "servers", "refresh", "--if-due"], standalone_mode=False
    )
    assert (quiet.return_value, quiet.output) == (0, "")
    reported = runner.invoke(cli, ["--runtime-dir", str(tmp_path), "servers", "refresh"], standalone_mode=False)
    assert "the tunnel is not open" in str(reported.exception)


# -- a proxy that a person gives ---------------------------------------------------------------------------------------


def test_a_given_proxy_is_taken_instead_of_the_tunnels_also_while_that_is_closed(scene: Scene) -> None:
    given = find_proxy("http://192.0.2.7:3128")
    for status in (OPEN, {}):
        refresh(scene.store, LAB, status, only_if_due=False, now=scene.now, proxy=given, fetch=scene.host.fetch)
    assert [proxy for _host, proxy in scene.host.asked] == [given, given]
    assert scene.count() == 11


@contextlib.contextmanager
def serve_once(reply: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy that answers the first data it receives, and ends; yields its port, and what it received."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            connection, _caller = listener.accept()
            with connection:
                heard.append(connection.recv(4096))
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], heard
        thread.join(LIMIT)


@pytest.mark.requirement("R11")
def test_a_given_http_proxy_is_asked_for_the_name_with_its_password(scene: Scene) -> None:
    with serve_once(b"HTTP/1.1 403 no\r\n\r\n") as (port, heard):
        proxy = find_proxy(f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(ListError, match="the proxy gives no connection") as caught:
            refresh(scene.store, LAB, {}, only_if_due=False, now=scene.now, proxy=proxy)
    assert heard[0].startswith(b"CONNECT list.example:443 HTTP/1.1\r\n")
    assert b"Basic bWU6c2VjcmV0" in heard[0]
    assert "servers import FILE" in caught.value.next_step
    assert "secret" not in f"{caught.value}{proxy}"


def test_a_given_proxy_that_is_not_reached_is_said_as_that(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ListError, match=rf"proxy at 127\.0\.0\.1, port {port}, cannot be reached") as caught:
        refresh(scene.store, LAB, OPEN, only_if_due=False, now=scene.now, proxy=on_loopback(port))
    assert caught.value.flaw is ListFlaw.NOT_FETCHED
    assert "See that it runs" in caught.value.next_step


def test_of_a_proxy_elsewhere_that_is_not_reached_the_lock_is_named_as_what_may_be_in_the_way(scene: Scene) -> None:
    def refuse(_host: ListHost, _proxy: Proxy, _seconds: float) -> bytes:
        raise UnreachedError("Connection refused")

    with pytest.raises(ListError) as caught:
        refresh(
            scene.store,
            LAB,
            {},
            only_if_due=False,
            now=scene.now,
            proxy=find_proxy("http://[2001:db8::7]:3128"),
            fetch=refuse,
        )
    assert "2001:db8::7, port 3128, cannot be reached (Connection refused)" in caught.value.why
    assert "While this computer is locked" in caught.value.next_step


@pytest.mark.skipif(os.geteuid() != 0, reason="the command is root's")
@pytest.mark.requirement("R11")
@pytest.mark.parametrize(
    "url",
    [
        "socks5://proxy.example:1080",
        "socks5://localhost:1080",
        "socks4a://127.0.0.1:1080",
        "https://192.0.2.7:443",
        "192.0.2.7:3128",
        "http://[::1:80",
        "http://192.0.2.7:99999",
        "http://127.1:80",
        "",
        "socks5://me:secret@127.0.0.1:1080",
    ],
)
def test_a_proxy_by_name_of_another_kind_or_with_its_password_is_wrong_usage(url: str, tmp_path: Path) -> None:
    argv = ["--runtime-dir", str(tmp_path), "servers", "refresh", "--proxy", url]
    result = CliRunner().invoke(cli, argv)
    assert result.exit_code == 2
    assert "secret" not in result.output


@pytest.mark.skipif(os.geteuid() != 0, reason="the command is root's")
def test_the_password_of_a_given_proxy_is_asked_for_and_not_shown(tmp_path: Path) -> None:
    with serve_once(b"HTTP/1.1 407 no\r\n\r\n") as (port, heard):
        argv = ["--runtime-dir", str(tmp_path), "servers", "refresh", "--proxy", f"http://me@127.0.0.1:{port}"]
        result = CliRunner().invoke(cli, argv, input="secret\n")
    assert isinstance(result.exception, ListError)
    assert b"Basic bWU6c2VjcmV0" in heard[0]
    assert "secret" not in f"{result.output}{result.exception}"


@given(st.text())
def test_any_text_is_a_proxy_or_none(text: str) -> None:
    for url in (text, f"http://{text}", f"socks5://{text}@127.0.0.1:1", f"http://[{text}]:80"):
        found = find_proxy(url)
        assert found is None or 0 < found.endpoint.port < 1 << 16


# -- what the daemon fetched -------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(tmp_path: Path) -> FetchedLists:
    if os.geteuid() != 0:
        pytest.skip("profiles are root's")
    layout = Layout(root=tmp_path)
    layout.profiles_dir.mkdir(parents=True)
    values = {
        "list_urls": ["https://list.example/list"],
        "osl_urls": [],
        "signature_key": KEY.public,
        "signature_key_digest": LAB.key_digest,
        "entry_signature_key": "",
        "propagation_channel_id": "F" * 16,
        "sponsor_id": "F" * 16,
    }
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    (layout.profiles_dir / "lab.toml").write_text(text)
    for path in (layout.profiles_dir, layout.profiles_dir / "lab.toml"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "fetched-list"
    return FetchedLists(path, store=ServerStore(layout), profiles_dir=layout.profiles_dir)


def test_a_fetched_list_is_kept_once_and_only_if_its_signature_is_right(fetched: FetchedLists, tmp_path: Path) -> None:
    path = tmp_path / "state" / "fetched-list"
    for wrong in (b"", b"<html>", NEW[:-20], make_list(5, make_key(1)), bytes(1000)):
        assert not fetched.accept(wrong, "lab")
        assert not path.exists()
    assert fetched.accept(NEW, "lab")
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o600
    assert not fetched.accept(NEW, "lab"), "the core has it already"
    assert not fetched.accept(make_list(5, make_key(1)), "lab")
    assert path.read_bytes() == NEW, "nothing is lost"
    assert fetched.accept(OLD, "lab")


def test_a_list_that_root_has_stored_already_is_nothing_new(fetched: FetchedLists, tmp_path: Path) -> None:
    ServerStore(Layout(root=tmp_path)).add(NEW, source="x", profile=LAB)
    assert not fetched.accept(NEW, "lab")
    assert not (tmp_path / "state" / "fetched-list").exists()


@pytest.mark.parametrize("name", ["none", "gone", "../../etc/passwd", ""])
def test_without_a_profile_nobody_is_asked_and_nothing_is_kept(fetched: FetchedLists, name: str) -> None:
    assert fetched.find_hosts(name) == ()
    assert not fetched.accept(NEW, name)
