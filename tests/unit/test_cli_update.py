# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`update` and `pin-core` as a user meets them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from tests.cores import list_tree, make_elf, make_store, pin, sha256

from psiphon_vpn import client
from psiphon_vpn.cli import checkout
from psiphon_vpn.cli import update as product
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.cli.update import Conversation, bring_core, roll_back
from psiphon_vpn.core import manifest
from psiphon_vpn.core.flaws import CoreFlawError
from psiphon_vpn.core.obtain import CoreRequest
from psiphon_vpn.core.store import CoreStore
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.system.layout import Layout

ROOT = Path(__file__).parents[2]
OLD, NEW = make_elf(b"old"), make_elf(b"new")


class Daemon:
    """Stands in for the daemon on the control socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status: dict[str, object] | None = {"state": "OPEN", "locked": True, "intent": "connected"}
        self.commands: list[str] = []
        monkeypatch.setattr(client, "request_status", self.request_status)
        monkeypatch.setattr(client, "send_command", lambda _directory, name: self.commands.append(name))

    def request_status(self, _directory: Path) -> dict[str, object]:
        if self.status is None:
            raise DaemonDownError("it is not running")
        return self.status


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


@pytest.fixture
def talk(tmp_path: Path) -> Conversation:
    return Conversation(runtime_dir=tmp_path, assume_yes=True)


@pytest.fixture
def store(tmp_path: Path) -> CoreStore:
    made = make_store(tmp_path / "root", pin(OLD, order=1), pin(NEW, order=2))
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(NEW)
    made.install_file(tmp_path / "old")
    return made


@pytest.mark.requirement("R13", "R14")
def test_an_update_shows_what_it_is_and_lets_the_daemon_start_it(
    store: CoreStore, daemon: Daemon, talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring_core(store, CoreRequest(file=tmp_path / "new"), talk) == 0
    shown = capsys.readouterr().out
    assert f"Source:    {tmp_path}/new" in shown
    assert "Revision:  0000000002" in shown
    assert f"SHA-256:   {sha256(NEW)}" in shown
    assert re.search(r"In use: +0000000001 \(SHA-256 [0-9a-f]{16}\.\.\.\) -> 0000000002 \(SHA-256", shown)
    assert daemon.commands == ["restart"]
    assert store.check_current().sha256 == sha256(NEW)


@pytest.mark.requirement("R14")
@pytest.mark.parametrize(
    ("status", "commands", "words"),
    [
        ({"state": "LOCKED", "locked": True, "intent": "connected"}, ["restart"], "starting it now"),
        ({"state": "LOCKED", "locked": True, "intent": "stopped"}, [], "when you connect"),
        (None, [], "as soon as the service runs"),
    ],
    ids=["waiting for a core", "stopped by the user", "not running"],
)
def test_the_service_is_restarted_only_where_that_is_wanted(
    *,
    status: dict[str, object] | None,
    commands: list[str],
    words: str,
    store: CoreStore,
    daemon: Daemon,
    talk: Conversation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon.status = status
    assert bring_core(store, CoreRequest(file=tmp_path / "new"), talk) == 0
    assert daemon.commands == commands
    assert words in capsys.readouterr().out


@pytest.mark.requirement("R14")
@pytest.mark.parametrize("via_tunnel", [False, True])
@pytest.mark.parametrize("state", ["LOCKED", "CONNECTING", "VERIFYING", "FAILED"])
def test_on_a_locked_machine_nothing_is_tried_and_the_ways_are_named(
    state: str, via_tunnel: bool, store: CoreStore, daemon: Daemon, talk: Conversation
) -> None:
    daemon.status = {"state": state, "locked": True, "intent": "connected"}
    with pytest.raises(UserError, match="the tunnel is not open") as caught:
        bring_core(store, CoreRequest(), talk, via_tunnel=via_tunnel)
    assert "psiphon-vpn start" in caught.value.next_step
    assert "--core-file PATH --sha256 HEX" in caught.value.next_step
    assert daemon.commands == []


def test_without_the_service_there_is_no_way_through_the_tunnel(
    store: CoreStore, daemon: Daemon, talk: Conversation
) -> None:
    daemon.status = None
    with pytest.raises(UserError, match="the tunnel is not open: it is not running"):
        bring_core(store, CoreRequest(), talk, via_tunnel=True)


def test_what_is_up_to_date_is_not_fetched_again(
    store: CoreStore, daemon: Daemon, talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.install_file(tmp_path / "new")
    daemon.status = {"state": "LOCKED", "locked": True, "intent": "connected"}
    assert bring_core(store, CoreRequest(), talk) == 0
    assert "up to date: revision 0000000002" in capsys.readouterr().out
    # Unless it was changed: then it must be fetched again, which a locked machine cannot do.
    (tmp_path / "root/var/lib/psiphon-vpn/core/current/psiphon-tunnel-core").write_bytes(b"changed")
    with pytest.raises(UserError, match="not open"):
        bring_core(store, CoreRequest(), talk)


class Terminal(io.StringIO):
    """A terminal with a user."""

    def isatty(self) -> bool:
        return True


@pytest.mark.requirement("R14")
def test_without_a_yes_nothing_is_changed(
    store: CoreStore,
    daemon: Daemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store.install_file(tmp_path / "new")
    talk = Conversation(runtime_dir=tmp_path, assume_yes=False)
    before = list_tree(tmp_path / "root")
    request = CoreRequest(file=tmp_path / "old", allow_older=True)
    actions: list[Callable[[], int]] = [lambda: bring_core(store, request, talk), lambda: roll_back(store, talk)]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    for act in actions:
        with pytest.raises(UserError, match="cannot ask without a terminal"):
            act()
        assert list_tree(tmp_path / "root") == before
    for act in actions:
        monkeypatch.setattr("sys.stdin", Terminal("n\n"))
        assert act() == 1
        assert list_tree(tmp_path / "root") == before
    assert daemon.commands == []
    assert "older than the one in use" in capsys.readouterr().out


@pytest.mark.requirement("R14")
def test_rollback_shows_where_to_and_restarts(
    store: CoreStore, daemon: Daemon, talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CoreFlawError, match="nothing to go back to"):
        roll_back(store, talk)
    store.install_file(tmp_path / "new")
    assert roll_back(store, talk) == 0
    assert "Back to:   0000000001" in capsys.readouterr().out
    assert daemon.commands == ["restart"]
    assert store.check_current().sha256 == sha256(OLD)


@pytest.mark.parametrize(
    "argv",
    [
        ["--rollback", "--core-file", "/f"],
        ["--rollback", "--allow-older"],
        ["--core-file", "/f", "--core-url", "https://example.org/"],
        ["--core-file", "/f", "--via-tunnel"],
        ["--via-tunnel", "--proxy", "socks5://127.0.0.1:1"],
        ["--core-file", "/f", "--sha256", "abc"],
        ["--core-file", "/f", "--sha256", "g" * 64],
    ],
    ids=" ".join,
)
def test_options_that_exclude_each_other_are_wrong_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["update", *argv]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user")
@pytest.mark.requirement("R21")
@pytest.mark.parametrize("argv", [[], ["--rollback"], ["--core-file", "/f", "--sha256", "a" * 64]])
def test_an_ordinary_user_reads_that_root_is_needed(argv: list[str]) -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
         sys.executable, "-m", "psiphon_vpn", "update", *argv],
        capture_output=True, text=True, check=False, timeout=60, env={"PYTHONPATH": str(ROOT / "src")}, cwd="/",
    )  # fmt: skip
    assert done.returncode == 77
    assert done.stderr == "Cannot run 'psiphon-vpn update': only root may do this. Run it again with sudo in front.\n"


def test_the_tunnels_proxy_is_the_one_of_the_configuration(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    assert product.find_tunnel_proxy(layout) == "socks5://127.0.0.1:1081"
    layout.config_dir.mkdir(mode=0o755, parents=True)
    layout.config.write_text("socks_port = 2000\n")
    layout.config.chmod(0o600)
    assert product.find_tunnel_proxy(layout) == "socks5://127.0.0.1:2000"
    layout.config.write_text("socks_port = 1\n")
    assert product.find_tunnel_proxy(layout) == "socks5://127.0.0.1:1081"


# -- pin-core ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R13")
def test_a_maintainer_pins_what_the_manifest_names_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "manifest.toml"
    shutil.copy(manifest.MANIFEST_PATH, path)
    path.write_text(path.read_text().replace("fc06db4ef4919012f84d1f2d8644f8f85c2f779c", pin(NEW).blob))
    monkeypatch.setattr(manifest, "MANIFEST_PATH", path)
    (tmp_path / "other").write_bytes(OLD)
    before = path.read_text()
    assert run_cli(["pin-core", str(tmp_path / "other")]) == 1
    assert "git blob id" in capsys.readouterr().err
    assert path.read_text() == before
    (tmp_path / "core").write_bytes(NEW)
    assert run_cli(["pin-core", str(tmp_path / "core")]) == 0
    pinned = manifest.load_manifest(path).cores[0]
    assert (pinned.size, pinned.sha256) == (len(NEW), sha256(NEW))
    assert sha256(NEW) in capsys.readouterr().out
    monkeypatch.setattr(checkout, "PROJECT_ROOT", tmp_path)
    assert run_cli(["pin-core", str(tmp_path / "core")]) == 1
    assert "installed copy" in capsys.readouterr().err


def test_the_help_of_update_names_every_way() -> None:
    text = product.update.get_help(click.Context(product.update))
    for word in ("--core-file", "--core-url", "--sha256", "--via-tunnel", "--proxy", "--rollback", "--allow-older"):
        assert word in text
