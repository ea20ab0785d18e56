# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands about server lists: each bad file is named as what it is, and root decides what is trusted."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server_lists import make_data, make_key, make_list, make_test_profile

from psiphon_vpn.cli import config_edit, config_place, server_lists
from psiphon_vpn.cli.main import run_cli
from psiphon_vpn.config import Settings
from psiphon_vpn.editing.requests import Change
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.servers.bundle import make_bundle
from psiphon_vpn.servers.foreign import read_foreign as read_pure
from psiphon_vpn.servers.foreign import work
from psiphon_vpn.servers.profile import load_profile
from psiphon_vpn.servers.trusting import make_of, read_foreign, render_profile, store_profile
from psiphon_vpn.system.layout import Layout

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the commands are root's")
KEY = make_key()
LAB = make_test_profile(KEY)
PUBLIC = load_profile("psiphon", Layout())
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A machine that trusts the network LAB and has chosen it."""
    found = Layout(root=tmp_path / "root")
    store_profile(LAB, found)
    monkeypatch.setattr(server_lists, "Layout", lambda: found)
    monkeypatch.setattr(server_lists, "read_settings", lambda: Settings(servers="lab"))
    return found


@pytest.mark.parametrize("mistake", ["nonsense = 1", "servers = 7", "not TOML", "\x00"])
def test_a_configuration_with_a_mistake_is_never_taken_for_the_defaults(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration may say that no server may be asked for anything."""
    found = Layout(root=tmp_path)
    monkeypatch.setattr(config_place, "Layout", lambda: found)
    assert config_place.read_settings() == Settings(), "no file"
    found.config.parent.mkdir(parents=True)
    found.config.write_text('servers = "none"\n')
    assert config_place.read_settings() == Settings(servers="none")
    found.config.write_text(f'servers = "none"\n{mistake}\n')
    with pytest.raises(ConfigError):
        config_place.read_settings()


@pytest.fixture
def run(layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `servers`; returns exit code, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        code = run_cli(["--runtime-dir", str(tmp_path / "run"), "servers", *words])
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return call


def put(place: Path, content: bytes) -> str:
    place.write_bytes(content)
    return str(place)


def test_a_list_is_imported_shown_and_exported_as_it_was_signed(run: Run, layout: Layout, tmp_path: Path) -> None:
    content = make_list(6, KEY)
    code, out, _err = run("import", put(tmp_path / "list", content))
    assert (code, "The list is stored." in out, "DE 3, NL 3" in out) == (0, True, True)
    code, out, _err = run("list")
    assert "6 servers" in out
    assert "Signed:       yes, with the key of lab" in out
    assert json.loads(run("list", "--json")[1])["list"]["by_protocol"] == {"OSSH": 6}
    assert run("export", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out").read_bytes() == content
    assert run("export", str(tmp_path / "out"))[0] == 1, "nothing is overwritten"
    assert "in use already" in run("import", str(tmp_path / "list"))[1]


def test_the_list_in_a_friends_bundle_is_imported(run: Run, tmp_path: Path) -> None:
    bundle = make_bundle(core=b"a core", server_list=make_list(6, KEY))
    assert run("import", put(tmp_path / "bundle", bundle))[0] == 0
    assert "6 servers" in run("list")[1]
    code, _out, err = run("import", put(tmp_path / "bundle", make_bundle(core=b"a core", server_list=None)))
    assert (code, "the bundle has no server list in it" in err) == (1, True)
    assert run("import", put(tmp_path / "bundle", bundle[:700]))[0] == 1


BAD = {
    "its end is missing": make_list(3, KEY)[:-4],
    "it names another key": make_list(3, make_key(1)),
    "it is a web page": b"<!doctype html>",
    "nobody has signed": make_data(3),
    "there is no server in it": b"",
    "it is a text in JSON": b'{"a": 1}',
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_file_is_said_as_what_it_is_and_the_old_list_stays(words: str, run: Run, tmp_path: Path) -> None:
    run("import", put(tmp_path / "good", make_list(6, KEY)))
    code, out, err = run("import", put(tmp_path / "bad", BAD[words]))
    assert (code, out) == (1, "")
    assert words in err
    assert "6 servers" in run("list")[1]


def test_what_only_a_person_can_decide_is_not_decided_by_yes(run: Run, tmp_path: Path) -> None:
    files = [put(tmp_path / str(count), make_list(count, KEY)) for count in (6, 7, 2)]
    assert [run("import", name)[0] for name in files[:2]] == [0, 0]
    code, _out, err = run("import", "--yes", files[2])
    assert (code, "it has 2 servers, and the list in use has 7" in err) == (1, True)
    code, _out, err = run("import", "--yes", files[0])
    assert (code, "it was in use before" in err) == (1, True)
    assert run("import", "--smaller", files[2])[0] == 0
    assert run("import", "--older", files[0])[0] == 0


def test_entries_that_nobody_signed_need_their_option_and_an_answer(run: Run, tmp_path: Path) -> None:
    name = put(tmp_path / "entries", make_data(2))
    assert run("import", "--unsigned", name)[0] == 1
    assert run("import", "--unsigned", "--yes", name)[0] == 0
    assert "Signed:       no" in run("list")[1]


def encode(url: str) -> str:
    return base64.b64encode(url.encode()).decode()


def make_wrapper(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "PropagationChannelId": "FFFFFFFFFFFFFFFF",
        "SponsorId": "FFFFFFFFFFFFFFFF",
        "RemoteServerListURLs": [{"URL": encode(PUBLIC.list_urls[0].url.replace("com/", "com//"))}],
        "remoteServerListSignaturePublicKey": PUBLIC.signature_key,
        "LocalHttpProxyPort": 8081,
    }
    return json.dumps(fields | changes).encode()


def test_of_a_wrappers_configuration_it_is_said_what_is_ours_already(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lists, "read_settings", Settings)
    code, out, _err = run("import", put(tmp_path / "psiphon.config", make_wrapper()))
    assert code == 0
    assert "key of server lists: as in psiphon, which this machine has" in out
    assert "addresses of server lists: as in psiphon" in out
    assert "1 other setting" in out
    assert "Nothing of it has to be imported" in out
    other = make_wrapper(remoteServerListSignaturePublicKey=KEY.public, TargetServerEntry="00")
    code, out, _err = run("import", put(tmp_path / "psiphon.config", other))
    assert code == 1
    assert "key of server lists: other than in psiphon" in out
    assert "sudo psiphon-vpn servers trust" in out


def test_a_key_is_trusted_after_an_answer_and_then_chosen_in_the_configuration(
    run: Run, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[str] = []

    def change(_dir: Path, changes: list[Change], *, path: Path | None) -> int:
        changed.extend(
            f"{each.setting if isinstance(each.setting, str) else each.setting.name}={each.typed}" for each in changes
        )
        return 0

    monkeypatch.setattr(config_edit, "change", change)
    name = put(tmp_path / "psiphon.config", make_wrapper(remoteServerListSignaturePublicKey=KEY.public))
    code, _out, err = run("trust", name)
    assert (code, changed) == (1, []), err
    assert not (layout.profiles_dir / "custom.toml").exists()
    code, _out, err = run("trust", "--yes", name)
    assert (code, changed) == (0, ["servers=custom"])
    assert KEY.public not in err
    assert LAB.key_digest in err
    trusted = load_profile("custom", layout)
    assert (trusted.signature_key, trusted.list_urls[0].verify_tls) == (KEY.public, True)


def test_an_older_configuration_with_keys_of_its_own_is_trusted_as_a_whole(
    run: Run, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_edit, "change", lambda *_words, **_options: 0)
    text = f"""
egress_region = "DE"
[core.advanced]
RemoteServerListURLs = [{{ URL = "{encode("https://list.example/x")}" }}]
RemoteServerListSignaturePublicKey = "{KEY.public}"
"""
    assert run("trust", "--yes", "--name", "old", put(tmp_path / "config.toml", text.encode()))[0] == 0
    assert [url.url for url in load_profile("old", layout).list_urls] == ["https://list.example/x"]


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"{}", b"[core]", b'{"RemoteServerListURLs": []}', b"\xff" * 9, b"x" * 999_999]
)
def test_a_file_that_names_no_key_is_not_trusted(content: bytes, run: Run, layout: Layout, tmp_path: Path) -> None:
    code, _out, err = run("trust", "--yes", put(tmp_path / "file", content))
    assert code == 1
    assert err
    assert sorted(path.name for path in layout.profiles_dir.iterdir()) == ["lab.toml"]


def test_the_public_network_is_nothing_to_trust(run: Run, tmp_path: Path) -> None:
    profile = render_profile(PUBLIC)
    assert "nothing has to be trusted" in run("trust", put(tmp_path / "profile.toml", profile))[1]


def test_a_profile_survives_its_file() -> None:
    found = read_foreign(render_profile(LAB))
    made = make_of(found, name="lab", source="x")
    assert (made.signature_key, made.list_urls, made.osl_urls) == (LAB.signature_key, LAB.list_urls, LAB.osl_urls)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from(["RemoteServerListURLs", "remoteserverlisturl", "SponsorId", "TargetServerEntry", "x"])


@given(st.binary() | st.dictionaries(NAMES, json_values).map(lambda value: json.dumps(value).encode()))
def test_whatever_the_file_its_reading_ends_with_an_answer(content: bytes) -> None:
    found = read_pure(content)
    assert found["kind"] in {"psiphon.config", "config.toml", "profile", "unknown"}
    assert json.loads(work((), content))["kind"] == found["kind"]
