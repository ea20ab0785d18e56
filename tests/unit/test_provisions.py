# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Core and server list before the lock closes: from a bundle or downloaded, verified, and with two questions."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.cores import make_elf, make_manifest, pin, sha256
from tests.https_site import make_certificate, run_site
from tests.scratch_machine import ScratchMachine, make_machine
from tests.server_lists import make_key, make_list, make_test_profile
from tests.unit.test_install import unpack

from psiphon_vpn.accounts import User
from psiphon_vpn.cli import managing, provisions, setting_up, starting
from psiphon_vpn.cli.bundle import write_bundle
from psiphon_vpn.cli.main import cli
from psiphon_vpn.cli.provisions import (
    Missing,
    Provisions,
    Wishes,
    download,
    explain_download,
    gather_given,
    gather_rest,
)
from psiphon_vpn.core.flaws import CoreFlawError
from psiphon_vpn.errors import UserError
from psiphon_vpn.servers.bundle import BundleError, make_bundle, read_bundle_file
from psiphon_vpn.servers.errors import ListError
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.set_up import SetUp, find_set_up

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("quick_disk")]  # needs root: it checks real owners

KEY = make_key()
LAB = make_test_profile(KEY)
LIST = make_list(5, KEY)
WAITED = "Connected: you appear on the internet in NL (Netherlands)."
CORE, OTHER = make_elf(b"pinned"), make_elf(b"other")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the laboratory's network and core the ones that this version knows."""
    monkeypatch.setattr(provisions, "find_profile", lambda _layout: LAB)
    manifest = make_manifest(pin(CORE))
    monkeypatch.setattr("psiphon_vpn.core.store.load_manifest", lambda: manifest)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScratchMachine:
    """A machine with the package, which the commands use."""
    made = make_machine(tmp_path)
    unpack(made)
    for module in (managing, setting_up):
        monkeypatch.setattr(module, "open_platform", lambda: made.platform)
        monkeypatch.setattr(module, "find_removal", lambda: None)
    monkeypatch.setattr(starting, "find_sessions", lambda: ())
    monkeypatch.setattr(managing, "report_findings", lambda _platform: None)
    monkeypatch.setattr(starting, "survive_hangup", lambda: None)
    monkeypatch.setattr(setting_up, "await_tunnel", lambda _layout: WAITED)
    monkeypatch.setattr("psiphon_vpn.core.store.CoreStore.find_owner", lambda _store: _OWNER)
    return made


class _OWNER:
    uid = gid = 990


def write(path: Path, *, core: bytes | None = CORE, server_list: bytes | None = LIST) -> Path:
    path.write_bytes(make_bundle(core=core, server_list=server_list))
    return path


def gather(layout: Layout, wishes: Wishes) -> Provisions:
    with gather_given(layout, wishes) as found:
        return found


def test_a_bundle_counts_by_the_manifest_and_by_the_lists_signature(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    found = gather(layout, Wishes(bundle=write(tmp_path / "both")))
    assert found.core is not None
    assert found.server_list == LIST


@pytest.mark.requirement("R13")
def test_a_core_in_a_bundle_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    layout, path = Layout(root=tmp_path), write(tmp_path / "other", core=OTHER)
    with pytest.raises(CoreFlawError):
        gather(layout, Wishes(bundle=path))
    with pytest.raises(CoreFlawError):
        gather(layout, Wishes(bundle=path, sha256=sha256(CORE)))
    assert gather(layout, Wishes(bundle=path, sha256=sha256(OTHER))).core is not None


@pytest.mark.requirement("R13")
def test_a_list_in_a_bundle_with_another_signature_is_refused(tmp_path: Path) -> None:
    for odd in (make_list(5, make_key(1)), LIST[:-40], b"<html>"):
        with pytest.raises(ListError):
            gather(Layout(root=tmp_path), Wishes(bundle=write(tmp_path / "odd", server_list=odd)))


def run(*argv: str, answers: str = "") -> Any:
    return CliRunner().invoke(cli, list(argv), input=answers)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Stands in for the hosts: they have both, or cannot be reached."""

    def use(there: bool) -> None:
        @contextlib.contextmanager
        def fetch(_layout: Layout, found: Provisions, _missing: Missing, **_options: Any) -> Iterator[Provisions]:
            if not there:
                raise UserError("It was not downloaded", "the host does not answer", "Try again.")
            yield Provisions(server_list=LIST, source="a test", profile=found.profile, core=found.core)

        monkeypatch.setattr(provisions, "download", fetch)

    return use


def test_set_up_asks_two_questions_and_says_before_what_a_download_shows(
    machine: ScratchMachine, sources: Callable[[bool], None], tmp_path: Path
) -> None:
    sources(True)
    core = tmp_path / "core"
    core.write_bytes(CORE)
    result = run("setup", "--core-file", str(core), "--sha256", sha256(CORE), answers="y\ny\n")
    assert result.exit_code == 0, result.output
    assert result.output.count("[y/N]") + result.output.count("[Y/n]") == 2
    assert "Whoever watches your network sees that this computer asks these hosts" in result.output
    assert "list.example" in result.output
    assert "The list has 5 servers." in result.output
    assert result.output.endswith(f"{WAITED}\n")
    assert machine.platform.kernel.is_locked() is True
    stored = ServerStore(machine.platform.layout).read_current()
    assert stored is not None
    assert stored.entries == 5


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    ("there", "answers"), [(False, "y\ny\nn\n"), (True, "y\nn\nn\n"), (False, "y\ny\n"), (True, "n\n")]
)
def test_without_them_it_says_in_one_sentence_that_it_will_be_offline_and_asks_again(
    machine: ScratchMachine, sources: Callable[[bool], None], there: bool, answers: str
) -> None:
    sources(there)
    before = machine.read_all()
    result = run("setup", answers=answers)
    assert isinstance(result.exception, click.Abort) or result.exit_code != 0
    if answers != "n\n":
        assert "this computer is offline from the moment it locks" in result.output
    assert machine.read_all() == before
    assert find_set_up(machine.platform.layout) is SetUp.NO


def test_who_agrees_to_be_offline_gets_a_locked_machine(
    machine: ScratchMachine, sources: Callable[[bool], None]
) -> None:
    sources(False)
    result = run("setup", answers="y\ny\ny\n")
    assert result.exit_code == 0, result.output
    assert "stays offline without the tunnel program and the list of servers" in result.output
    assert "setup --bundle FILE" in result.output
    assert "The service connects now" not in result.output
    assert WAITED not in result.output
    assert machine.platform.kernel.is_locked() is True


def test_a_fleet_gives_a_bundle_or_says_that_it_means_offline(machine: ScratchMachine, tmp_path: Path) -> None:
    before = machine.read_all()
    result = run("setup", "--yes")
    assert isinstance(result.exception, UserError)
    assert "--bundle FILE" in result.exception.next_step
    assert machine.read_all() == before
    for odd in (b"<html>", make_bundle(core=OTHER, server_list=LIST)):
        (tmp_path / "odd").write_bytes(odd)
        assert isinstance(run("setup", "--yes", "--bundle", str(tmp_path / "odd")).exception, UserError)
        assert machine.read_all() == before
    result = run("setup", "--yes", "--dry-run", "--bundle", str(write(tmp_path / "bundle")))
    assert result.exit_code == 0, result.output
    assert WAITED not in result.output
    result = run("setup", "--yes", "--bundle", str(write(tmp_path / "bundle")))
    assert result.exit_code == 0, result.output
    assert WAITED in result.output
    layout = machine.platform.layout
    assert layout.core_binary.read_bytes() == CORE
    assert ServerStore(layout).read_current() is not None
    assert machine.platform.kernel.is_locked() is True


def test_a_machine_that_is_locked_without_them_gets_out_by_a_bundle(machine: ScratchMachine, tmp_path: Path) -> None:
    assert run("setup", "--yes", "--offline").exit_code == 0
    layout = machine.platform.layout
    assert not layout.core_record.exists()
    # A refused bundle leaves the set-up done.
    (tmp_path / "odd").write_bytes(b"\x7fELF")
    assert isinstance(run("setup", "--yes", "--bundle", str(tmp_path / "odd")).exception, BundleError)
    assert find_set_up(layout) is SetUp.YES
    machine.set_state(restarted=[])
    result = run("setup", "--yes", "--bundle", str(write(tmp_path / "bundle")))
    assert result.exit_code == 0, result.output
    assert layout.core_binary.read_bytes() == CORE
    assert ServerStore(layout).read_current() is not None
    assert "psiphon-vpn.service" in machine.store.read()["restarted"]
    assert machine.platform.kernel.is_locked() is True
    assert find_set_up(layout) is SetUp.YES


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("part", ["core", "list"])
def test_what_is_damaged_on_the_disk_is_found_and_replaced_from_a_bundle(
    machine: ScratchMachine, tmp_path: Path, part: str
) -> None:
    bundle = write(tmp_path / "bundle")
    assert run("setup", "--yes", "--bundle", str(bundle)).exit_code == 0
    layout = machine.platform.layout
    assert "There was nothing to do" in run("setup", "--yes", "--bundle", str(bundle)).output
    stored = ServerStore(layout).open_current()
    assert stored is not None
    path = layout.core_binary if part == "core" else layout.servers_current / stored[0].file_name
    sound = path.read_bytes()
    # The same length as before, so the record's size does not show it.
    path.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    machine.set_state(restarted=[])
    result = run("setup", "--yes", "--bundle", str(bundle))
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == sound
    assert "There was nothing to do" not in result.output
    assert "psiphon-vpn.service" in machine.store.read()["restarted"]


@pytest.mark.requirement("R13")
def test_a_damaged_core_is_not_called_installed(machine: ScratchMachine, tmp_path: Path) -> None:
    assert run("setup", "--yes", "--bundle", str(write(tmp_path / "bundle"))).exit_code == 0
    machine.platform.layout.core_binary.write_bytes(CORE + b"x")
    result = run("setup", "--yes")
    assert result.exit_code == 0, result.output
    assert "everything is installed as it should be" not in result.output
    assert "the tunnel program, whose file is damaged" in result.output
    assert "setup --bundle FILE" in result.output
    assert WAITED not in result.output


@pytest.mark.requirement("R1")
def test_a_core_alone_does_not_lock_a_machine_unless_somebody_wants_to_be_offline(
    machine: ScratchMachine, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    core.write_bytes(CORE)
    given = ("setup", "--yes", "--core-file", str(core), "--sha256", sha256(CORE))
    before = machine.read_all()
    result = run(*given)
    assert isinstance(result.exception, UserError)
    assert "would be offline, without the list of servers" in result.exception.why
    assert "--offline" in result.exception.next_step
    assert machine.read_all() == before
    assert find_set_up(machine.platform.layout) is SetUp.NO
    result = run(*given, "--offline")
    assert result.exit_code == 0, result.output
    assert machine.platform.kernel.is_locked() is True


def test_who_names_a_server_of_his_own_needs_no_list(
    machine: ScratchMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = User(name="psiphon-user", uid=_OWNER.uid, gid=_OWNER.gid, login="/usr/sbin/nologin")
    monkeypatch.setattr("psiphon_vpn.editing.files.find_user", lambda _name: account)
    monkeypatch.setattr("psiphon_vpn.editing.files.find_group", lambda _name: account.gid)
    core = tmp_path / "core"
    core.write_bytes(CORE)
    layout = machine.platform.layout
    layout.config_dir.mkdir(parents=True, exist_ok=True)
    layout.config.touch(mode=0o600)
    layout.config.write_text(f'[core.advanced]\nTargetServerEntry = "{"30" * 40}"\n')
    result = run("setup", "--yes", "--core-file", str(core), "--sha256", sha256(CORE))
    assert result.exit_code == 0, result.output
    assert machine.platform.kernel.is_locked() is True
    assert WAITED in result.output


def test_a_core_without_a_list_is_not_called_connecting(machine: ScratchMachine, tmp_path: Path) -> None:
    bundle = write(tmp_path / "core", server_list=None)
    result = run("setup", "--yes", "--offline", "--bundle", str(bundle))
    assert result.exit_code == 0, result.output
    assert "There is no list of servers." in result.output
    assert "The service connects now" not in result.output
    assert WAITED not in result.output


@pytest.mark.parametrize(
    ("by", "kept", "reported"),
    [
        (1000, None, "maria may see 'psiphon-vpn status' without sudo and, on a desktop, gets notifications"),
        (None, None, "To let a user see 'psiphon-vpn status' and notifications without sudo"),
        (1000, "1001\n", "To let maria see 'psiphon-vpn status' and notifications without sudo"),
    ],
)
def test_it_says_who_may_see_the_status_without_a_second_step(
    machine: ScratchMachine, monkeypatch: pytest.MonkeyPatch, by: int | None, kept: str | None, reported: str
) -> None:
    layout = machine.platform.layout
    with (machine.root / "etc/passwd").open("a") as passwd:
        passwd.write("maria:x:1000:1000::/home/maria:/bin/sh\n")
    if kept is not None:
        layout.config_dir.mkdir(parents=True, exist_ok=True)
        layout.readers.write_text(kept)
    for module in ("cli.setting_up", "system.configure"):
        monkeypatch.setattr(f"psiphon_vpn.{module}.find_person", lambda: by)
    result = run("setup", "--yes", "--offline")
    assert result.exit_code == 0, result.output
    assert reported in result.output
    assert str(layout.readers) in result.output


def test_who_ends_the_waiting_has_a_set_up_all_the_same(
    machine: ScratchMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_layout: Layout) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(setting_up, "await_tunnel", end)
    result = run("setup", "--yes", "--bundle", str(write(tmp_path / "bundle")))
    assert result.exit_code == 0, result.output
    assert find_set_up(machine.platform.layout) is SetUp.YES


def test_a_locked_machine_is_not_asked_to_download(machine: ScratchMachine) -> None:
    assert run("setup", "--yes", "--offline").exit_code == 0
    result = run("setup", answers="y\n")
    assert result.exit_code == 0, result.output
    assert "Download it now?" not in result.output
    assert "setup --bundle FILE" in result.output


def test_a_list_is_downloaded_and_counts_by_its_signature(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    missing = Missing(core=False, server_list=True)
    for content in (LIST, make_list(5, make_key(1))):
        with run_site(content, certificate) as site:
            found = Provisions(profile=make_test_profile(KEY, urls=(site.url,)))
            if content != LIST:
                with pytest.raises(ListError), download(Layout(root=tmp_path), found, missing, tls=trusting):
                    pass
                continue
            with download(Layout(root=tmp_path), found, missing, tls=trusting) as brought:
                assert brought.server_list == LIST


def test_before_a_download_every_host_is_named_that_may_be_asked(tmp_path: Path) -> None:
    urls = ("https://main.example/a", "https://one.example/b", "https://two.example/c")
    found, missing = Provisions(profile=make_test_profile(KEY, urls=urls)), Missing(core=False, server_list=True)
    text = "\n".join(explain_download(Layout(root=tmp_path), found, missing))
    assert "- main.example: the list of servers" in text
    assert "- only if that fails, mirrors of the list: one.example, two.example" in text
    alone = "\n".join(explain_download(Layout(root=tmp_path), Provisions(profile=LAB), missing))
    assert "mirrors" not in alone


def test_nothing_is_asked_where_nothing_is_missing(machine: ScratchMachine, tmp_path: Path) -> None:
    layout = machine.platform.layout
    with (
        gather_given(layout, Wishes(bundle=write(tmp_path / "both"))) as found,
        gather_rest(layout, found, Wishes(), is_locked=False) as rest,
    ):
        assert rest == found


def test_options_that_exclude_each_other_are_wrong_usage(tmp_path: Path) -> None:
    for wishes in (
        Wishes(bundle=tmp_path, core_file=tmp_path),
        Wishes(core_url="https://x", core_file=tmp_path),
        Wishes(sha256="0" * 64),
    ):
        with pytest.raises(click.UsageError):
            wishes.check()


def test_what_a_machine_has_becomes_a_bundle_for_another(machine: ScratchMachine, tmp_path: Path) -> None:
    layout, made = machine.platform.layout, tmp_path / "made"
    with pytest.raises(UserError, match="not set up"):
        write_bundle(layout, made)
    assert not made.exists()
    assert run("setup", "--yes", "--bundle", str(write(tmp_path / "bundle"))).exit_code == 0
    said = write_bundle(layout, made)
    assert any(sha256(CORE) in line for line in said)
    found = read_bundle_file(made)
    assert (found.core, found.server_list) == (CORE, LIST)
    # Never over an existing file, nor through a link.
    with pytest.raises(UserError, match="exists already"):
        write_bundle(layout, made)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError):
        write_bundle(layout, link)
    assert not (tmp_path / "victim").exists()
    # A damaged core is not put into a bundle.
    layout.core_binary.write_bytes(CORE + b"x")
    with pytest.raises(CoreFlawError):
        write_bundle(layout, tmp_path / "damaged")
