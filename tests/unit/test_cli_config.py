# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `config` and `region`: what they say, what they write, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from psiphon_vpn import client
from psiphon_vpn.cli import region
from psiphon_vpn.cli.main import cli, run_cli
from psiphon_vpn.cli.region import Regions
from psiphon_vpn.countries import find_country, list_countries, name_region
from psiphon_vpn.errors import DaemonDownError, UserError
from psiphon_vpn.system.manual import COMMANDS_PAGE, escape, render_manual

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes settings")
ENTRY = "3139382e35312e3130302e3130203022" * 4


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration, and a service that reads it."""
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    path = directory / "config.toml"
    path.write_text('# mine\nlog_level = "info"  # why\n\n# the core\n[core.advanced]\n')
    path.chmod(0o600)
    sent: list[str] = []

    def send(_runtime_dir: Path, name: str) -> dict[str, object]:
        sent.append(name)
        return {"state": "CONNECTING", "locked": True}

    monkeypatch.setattr(client, "send_command", send)
    return path


def run(*words: str, file: Path) -> int:
    command = [words[0]] if words[0] == "region" else list(words[:2])
    return run_cli([*command, "--file", str(file), *words[len(command) :]])


@needs_root
def test_a_setting_is_set_shown_and_taken_back(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_text()
    assert run("config", "set", "log_level", "debug", file=file) == 0
    assert file.read_text() == before.replace('"info"', '"debug"')
    assert 'log_level = "debug" (it was "info")' in capsys.readouterr().out
    assert run("config", "get", "log_level", file=file) == 0
    assert capsys.readouterr().out == "debug\n"
    assert run("config", "set", "NetworkLatencyMultiplier", "2", file=file) == 0
    assert file.read_text().endswith("[core.advanced]\nNetworkLatencyMultiplier = 2\n")
    assert run("config", "unset", "NetworkLatencyMultiplier", "log_level", file=file) == 0
    assert file.read_text() == "# mine\n\n# the core\n[core.advanced]\n"
    capsys.readouterr()
    assert run("config", "get", "log_level", file=file) == 0
    assert capsys.readouterr().out == "info\n"
    assert run("config", "get", "NetworkLatencyMultiplier", file=file) == 1


@needs_root
def test_each_setting_can_be_shown_and_got(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "show", "--json", file=file) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["log_level"] == {"value": "info", "set": True, "core": False}
    assert shown["RateLimits"] == {"value": None, "set": False, "core": True}
    assert (
        run("config", "set", "socks_port=2000", "CustomHeaders={}", "RateLimits={ReadBytesPerSecond=5}", file=file) == 1
    )
    assert run("config", "set", "socks_port=2000", "RateLimits={ReadBytesPerSecond=5}", file=file) == 0
    capsys.readouterr()
    assert run("config", "show", "--json", file=file) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["socks_port"]["value"], shown["RateLimits"]["value"]) == (2000, {"ReadBytesPerSecond": 5})
    assert run("config", "show", "--all", file=file) == 0
    page = capsys.readouterr().out
    for name in shown:
        assert name in page
        assert run("config", "get", name, file=file) in {0, 1}


@needs_root
@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("set", "log_levle", "debug"), "did you mean log_level?", 78),
        (("set", "log_level", "debugg"), "did you mean debug?", 78),
        (("set", "LocalHttpProxyPort", "1"), "is not allowed here", 78),
        (("set", "InitialLimitTunnelProtocols", "OSSH"), "NAME=VALUE NAME=VALUE", 78),
        (("set", "upstream_proxy", "http://u:hunter2@192.0.2.7:1"), "every user", 1),
        (("set", "upstream_proxy=http://u:hunter2@192.0.2.7:1"), "every user", 1),
        (("set", "TargetServerEntry", ENTRY), "< FILE", 1),
        (("set", "CustomHeaders", "{ A = ['hunter2'] }"), "every user", 1),
        (("set", "log_level=debug", "uplink"), "NAME=VALUE", 2),
        (("get", "log_levle"), "did you mean log_level?", 78),
    ],
)
def test_a_mistake_changes_nothing_and_says_what_to_do(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str, code: int
) -> None:
    before = file.read_bytes(), file.stat().st_ino
    assert run("config", *words, file=file) == code
    found = capsys.readouterr()
    assert said in found.err
    assert "hunter2" not in found.out + found.err
    assert ENTRY not in found.out + found.err
    assert (file.read_bytes(), file.stat().st_ino) == before


@needs_root
def test_options_that_belong_together_are_set_together(file: Path) -> None:
    words = ("InitialLimitTunnelProtocols=OSSH", "InitialLimitTunnelProtocolsCandidateCount=3")
    assert run("config", "set", *words, file=file) == 0
    found = tomllib.loads(file.read_text())["core"]["advanced"]
    assert found == {"InitialLimitTunnelProtocols": ["OSSH"], "InitialLimitTunnelProtocolsCandidateCount": 3}


@needs_root
def test_a_secret_is_read_from_standard_input_and_never_shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("http://u:hunter2@192.0.2.7:3128\n"))
    assert run("config", "set", "upstream_proxy", file=file) == 0
    assert "hunter2" in file.read_text()
    for words in (
        ("show",),
        ("show", "--all"),
        ("show", "--json"),
        ("get", "upstream_proxy"),
        ("unset", "upstream_proxy"),
    ):
        assert run("config", *words, file=file) == 0
    found = capsys.readouterr()
    assert "***@192.0.2.7" in found.out
    assert "hunter2" not in found.out + found.err


@needs_root
def test_a_file_that_is_wrong_elsewhere_can_be_corrected_bit_by_bit(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("bogus = 1\negress_region = 'ca'\n")
    assert run("config", "show", file=file) == 78
    assert run("config", "set", "egress_region", "CA", file=file) == 78
    assert file.read_text() == 'bogus = 1\negress_region = "CA"\n'
    assert "'bogus'" in capsys.readouterr().err
    assert run("config", "unset", "bogus", file=file) == 0
    assert file.read_text() == 'egress_region = "CA"\n'


@needs_root
def test_what_is_no_toml_is_left_alone_and_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('{"EgressRegion": "CA", "PropagationChannelId": "x"}')
    for words in (("set", "uplink", "eth0"), ("unset", "uplink"), ("show",)):
        assert run("config", *words, file=file) == 78
        assert "psiphon.config" in capsys.readouterr().err
    assert file.read_text().startswith("{")


@needs_root
def test_without_a_service_the_change_is_made_and_that_is_said(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_args: Any) -> None:
        raise DaemonDownError("it is not running")

    monkeypatch.setattr(client, "send_command", down)
    assert run("config", "set", "log_level", "debug", file=file) == 0
    assert "when it starts" in capsys.readouterr().out


def test_a_draft_can_be_checked_by_anybody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = tmp_path / "draft.toml"
    draft.write_text("socks_port = 2000\n")
    assert run_cli(["config", "check", str(draft)]) == 0
    draft.write_text("socks_prot = 2000\n")
    assert run_cli(["config", "check", str(draft)]) == 78
    assert f"{draft}, line 1: there is no setting 'socks_prot'; did you mean socks_port?" in capsys.readouterr().err
    assert run_cli(["config", "check", str(tmp_path / "none")]) == 1


def test_other_users_change_and_read_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (
        ["config", "show"],
        ["config", "get", "uplink"],
        ["config", "set", "uplink", "x"],
        ["config", "unset", "uplink"],
        ["config", "edit"],
        ["config", "check"],
        ["region", "DE"],
    ):
        assert run_cli(words) == 77
        assert "only root" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- region -----------------------------------------------------------------------------------------------------------

KNOWN = Regions(servers={"DE": 12, "US": 104, "NL": 1}, available=frozenset({"DE", "US"}), chosen="DE")
NONE = Regions(servers={}, available=None, chosen=None)


@pytest.mark.parametrize("typed", ["DE", "de", " De ", "Germany", "GERMANY"])
def test_a_region_is_chosen_by_code_or_name_in_any_case(typed: str) -> None:
    assert region.choose_region(typed, KNOWN, anyway=False) == "DE"
    assert region.choose_region(typed, NONE, anyway=False) == "DE"


@pytest.mark.parametrize("typed", ["best", "BEST", "any", "auto"])
def test_the_best_is_no_region(typed: str) -> None:
    assert region.choose_region(typed, KNOWN, anyway=False) == ""


def test_a_region_without_servers_is_refused_with_those_there_are_or_kept() -> None:
    with pytest.raises(UserError) as caught:
        region.choose_region("iceland", KNOWN, anyway=False)
    assert "no Psiphon server is known in Iceland (IS)" in caught.value.why
    assert "DE, NL, US" in caught.value.next_step
    assert "region IS --anyway" in caught.value.next_step
    assert region.choose_region("iceland", KNOWN, anyway=True) == "IS"
    for anyway in (False, True):
        with pytest.raises(UserError, match=r"Germany \(DE\)"):
            region.choose_region("Germny", KNOWN, anyway=anyway)
    with pytest.raises(UserError, match="DE, NL, US"):
        region.choose_region("qqqq", KNOWN, anyway=False)


def test_the_list_has_name_code_servers_and_whether_they_can_be_used_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(region, "find_regions", lambda _runtime_dir: KNOWN)
    assert run_cli(["--runtime-dir", str(tmp_path), "region"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["*", "DE", "Germany", "12", "available"] in lines
    assert ["NL", "Netherlands", "1", "not", "available"] in lines
    assert run_cli(["--runtime-dir", str(tmp_path), "region", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["chosen"] == "DE"
    assert listed["regions"][0] == {"code": "DE", "name": "Germany", "servers": 12, "available": True}
    monkeypatch.setattr(region, "find_regions", lambda _runtime_dir: NONE)
    assert run_cli(["--runtime-dir", str(tmp_path), "region"]) == 0
    # The way to get servers depends on the machine: test_next_step.py.
    assert capsys.readouterr().out.startswith("No Psiphon server is known yet. ")


@pytest.mark.parametrize("wanted", [7, "\x1b[2J", "de", "DE\n", ["DE"]])
def test_the_status_of_a_hostile_daemon_is_only_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: object
) -> None:
    available = ["DE", "\x1b[2J", 5, "de\n", "ÄÖ", "CA"]
    status: dict[str, object] = {"regions_available": available, "region_wanted": wanted}
    monkeypatch.setattr(client, "request_status", lambda _runtime_dir: status)
    found = region.find_regions(tmp_path)
    assert found.available == frozenset({"DE", "CA"})
    assert found.chosen is None


@needs_root
def test_a_region_is_written_and_applied(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(region, "find_regions", lambda _runtime_dir: KNOWN)
    assert run("region", "united", "states", file=file) == 0
    assert 'egress_region = "US"\n' in file.read_text()
    assert "leave Psiphon in United States (US)" in capsys.readouterr().out
    assert run("region", "best", file=file) == 0
    assert 'egress_region = ""\n' in file.read_text()
    assert run("region", "IS", file=file) == 1
    assert run("region", "IS", "--anyway", file=file) == 0
    assert 'egress_region = "IS"\n' in file.read_text()


def test_every_country_is_found_by_its_code_and_each_of_its_names() -> None:
    countries = list_countries()
    assert len(countries) == 249  # ISO 3166-1
    assert len({country.code for country in countries}) == 249
    for country in countries:
        for typed in (country.code, country.code.lower(), *country.names):
            assert find_country(typed) == country
        assert name_region(country.code) == country.name
    assert name_region("ZZ") == "ZZ"


@pytest.mark.parametrize(
    ("words", "begun", "wanted"),
    [
        (["config", "set"], "log", ["log_level"]),
        (["config", "get"], "Disable", ["DisableRemoteServerListFetcher", "DisableTactics"]),
        (["config", "unset"], "socks", ["socks_port"]),
        (["region"], "b", ["best", "BE"]),
    ],
)
def test_the_shell_completes_names(words: list[str], begun: str, wanted: list[str]) -> None:
    found = [item.value for item in ShellComplete(cli, {}, "psiphon-vpn", "X").get_completions(words, begun)]
    assert set(wanted) <= set(found)


def test_the_manual_has_the_commands_of_a_group_too() -> None:
    page = render_manual(cli)[COMMANDS_PAGE]
    for name, group in cli.commands.items():
        if isinstance(group, click.Group) and not group.hidden:
            for command in group.commands:
                assert f"\n.SS {escape(f'{name} {command}')}" in page
