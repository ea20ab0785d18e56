# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration file, and the core's configuration made from it."""

import codecs
import dataclasses
import json
import logging
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from psiphon_vpn.checks import check_base64_url
from psiphon_vpn.config import Settings, load_settings, parse_settings
from psiphon_vpn.config_file import MAX_BYTES
from psiphon_vpn.core.options import ALLOWED, REFUSED
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.errors import ConfigError

ENTRY = "3139382e35312e3130302e3130203022" * 4

FULL = f"""\
# a comment
egress_region = "CA"
upstream_proxy = "socks5://user:hunter2@192.0.2.7:1080"
socks_port = 2081
establish_timeout = 0
log_level = "debug"
ipv6_probe = [
  "2001:db8::53",
]

[core.advanced]
TargetServerEntry = "{ENTRY}"
DisableRemoteServerListFetcher = true
LimitTunnelProtocols = ["OSSH", "QUIC-OSSH"]
NetworkLatencyMultiplier = 2
CustomHeaders = {{ "X-Name" = ["value"] }}
RateLimits = {{ ReadBytesPerSecond = 1000, CloseAfterExhausted = false }}
"""


def refuse(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text.encode())
    return caught.value


def test_a_full_configuration_is_read() -> None:
    settings = parse_settings(FULL.encode())
    assert settings.egress_region == "CA"
    assert settings.socks_port == 2081
    assert settings.establish_timeout == 0
    assert settings.ipv6_probe == ("2001:db8::53",)
    assert settings.core_advanced["LimitTunnelProtocols"] == ("OSSH", "QUIC-OSSH")


def test_a_missing_file_and_an_empty_one_give_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path / "none.toml") == Settings() == parse_settings(b"")


def test_settings_show_no_secrets() -> None:
    shown = repr(parse_settings(FULL.encode()))
    assert "hunter2" not in shown
    assert ENTRY not in shown


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("log_level = 'info'\nsocks_port = = 1\n", 2, "not TOML"),
        ("a = 'unclosed\n", 1, "not TOML"),
        ("x = " + "[" * 5000, 1, "not TOML"),
        ("log_level = 'info'\nsocks_port = " + "9" * 5000, 2, "not TOML"),
        ("\n\negress_regoin = 'CA'\n", 3, "did you mean egress_region?"),
        ("EgressRegion = 'CA'\n", 1, "did you mean egress_region?"),
        ("[zzzz]\n", 1, "there are egress_region"),
        ("\n[core.advanced]\nNetworkLatencyMultiplyer = 2\n", 3, "did you mean NetworkLatencyMultiplier?"),
        ("\n[core]\nadvance = 2\n", 3, "did you mean advanced?"),
        ("core = 1", 1, "must be a table"),
        ("\ncore.advanced = 1", 2, "must be a table"),
        ("TargetServerEntry = 'aa'", 1, "belongs below the line [core.advanced]"),
        ("[core.advanced]\nsocks_port = 1081", 2, "belongs above the line [core.advanced]"),
        ("egress_region = 'ca'", 1, "two capital letters"),
        ("egress_region = 'CAN'", 1, "two capital letters"),
        ("egress_region = 5", 1, "text in quotes"),
        ("socks_port = '1081'", 1, "a whole number"),
        ("socks_port = true", 1, "a whole number"),
        ("socks_port = 80", 1, "from 1024 to 65535"),
        ("establish_timeout = -1", 1, "from 0 to 86400"),
        ("log_level = 'loud'", 1, "one of debug, info, warning, error"),
        ("ipv6_probe = '2001:db8::1'", 1, "a list"),
        ("ipv6_probe = ['192.0.2.1']", 1, "an IPv6 address"),
        ("ipv6_probe = ['fe80::1%eth0']", 1, "on the internet"),
        ("ipv6_probe = ['::1']", 1, "on the internet"),
        ("ipv6_probe = ['::ffff:192.0.2.1']", 1, "on the internet"),
        ("upstream_proxy = 'ftp://192.0.2.1:1'", 1, "must look like http://"),
        ("upstream_proxy = 'http://192.0.2.1'", 1, "must look like http://"),
        ("upstream_proxy = 'http://[::1'", 1, "must look like http://"),
        ("upstream_proxy = 'http://192.0.2.1:99999'", 1, "must look like http://"),
        ("upstream_proxy = 'http://192.0.2.1:1/x'", 1, "end after the port"),
        ("upstream_proxy = 'http://a b:1'", 1, "spaces"),
        ("upstream_proxy = 'http://DOM\\\\user:pw@192.0.2.7:3128'", 1, "must be written as %XX"),
        ("upstream_proxy = 'http://user:p%zz@192.0.2.7:3128'", 1, "must be written as %XX"),
        ("upstream_proxy = 'http://10.200.3.9:3128'", 1, "tunnel's own subnet"),
        ("upstream_proxy = 'http://[fd42:42:42::9]:3128'", 1, "tunnel's own subnet"),
        ("[core.advanced]\nLimitTunnelProtocols = ['OSSH', 'TAPDANCE-OSSH']", 2, "of this list: SSH, OSSH"),
        ("[core.advanced]\nLimitTunnelProtocols = []", 2, "1 to 64 entries"),
        ("[core.advanced]\nNetworkLatencyMultiplier = 0.5", 2, "from 1 to 100"),
        ("[core.advanced]\nNetworkLatencyMultiplier = nan", 2, "from 1 to 100"),
        ("[core.advanced]\nDisableTactics = 1", 2, "true or false"),
        ("[core.advanced]\nTargetServerEntry = 'xyz'", 2, "a long row of hexadecimal digits"),
        ("[core.advanced]\nSponsorId = '12'", 2, "16 hexadecimal digits"),
        ("[core.advanced]\nSSHPacketTunnelChannelWindowSize = 129", 2, "from 1 to 128"),
        ("[core.advanced]\nCustomHeaders = { 'a b' = ['x'] }", 2, "a header's name"),
        ('[core.advanced]\nCustomHeaders = { a = ["x\\r\\ny"] }', 2, "control characters"),
        ("[core.advanced]\nRateLimits = { Speed = 1 }", 2, "one of ReadBytesPerSecond"),
        ("[core.advanced]\nRateLimits = { ReadBytesPerSecond = -1 }", 2, "ReadBytesPerSecond: it must be"),
        ("[core.advanced]\nRemoteServerListURLs = [{ URL = 'http://x' }]", 2, "URL: it must be base64"),
        ("[core.advanced]\nRemoteServerListURLs = [{}]", 2, "the field URL is missing"),
        (
            "[core.advanced]\nRemoteServerListURLs = [{ URL = 'aHR0cHM6Ly94', OnlyAfterAttempts = 1 }]",
            2,
            "OnlyAfterAttempts 0",
        ),
        ("[core.advanced]\n\nRemoteServerListURLs = [{ URL = 'aHR0cHM6Ly94' }]", 3, "sudo psiphon-vpn servers trust"),
        ("servers = 'No Name'", 1, "it must be the name of a profile"),
        ("\nservers = 'unknown-one'", 2, "there is no profile"),
        ("[core.advanced]\nInitialLimitTunnelProtocols = ['OSSH']", 2, "only together with"),
        ("[core.advanced]\nInitialLimitTunnelProtocolsCandidateCount = 1", 2, "only together with"),
    ],
)
def test_a_mistake_is_refused_with_its_line_and_reason(text: str, line: int, reason: str) -> None:
    error = refuse(text)
    assert error.line == line
    assert reason in error.why
    assert "\n" not in str(error)
    assert error.exit_code == 78


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "[::1]",
        "localhost",
        "proxy.LOCALHOST.",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
    ],
)
def test_a_proxy_on_this_machine_is_refused(host: str) -> None:
    assert refuse(f"upstream_proxy = 'http://{host}:8080'").line == 1


def test_a_proxy_elsewhere_is_accepted() -> None:
    for url in ("http://proxy.example:3128", "socks5://[2001:db8::1]:1080", "socks4a://user:p%40ss@192.0.2.1:1/"):
        assert parse_settings(f"upstream_proxy = '{url}'".encode()).upstream_proxy == url
    assert parse_settings(b"upstream_proxy = ''").upstream_proxy is None


@pytest.mark.defect(5, 17)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_option_of_the_core_that_is_unsafe_is_refused_with_the_reason(name: str) -> None:
    for spelling in (name, name.lower()):
        error = refuse(f"[core.advanced]\n{spelling} = 1")
        assert error.line == 2
        assert REFUSED[name]() in error.why


def test_no_option_is_both_allowed_and_refused_whatever_the_case() -> None:
    allowed = {name.casefold() for name in ALLOWED}
    assert len(allowed) == len(ALLOWED)
    assert allowed.isdisjoint(name.casefold() for name in REFUSED)


def test_an_error_never_repeats_a_secret_value() -> None:
    assert "hunter2" not in str(refuse("upstream_proxy = 'http://user:hunter2@127.0.0.1:1'"))
    assert "hunter2" not in str(refuse("upstream_proxy = 'htp://user:hunter2@192.0.2.1:1'"))
    assert "hunter2" not in str(refuse("[core.advanced]\nTargetServerEntry = 'hunter2'"))


def test_the_line_is_right_after_values_of_several_lines_and_in_any_spelling() -> None:
    text = 'ipv6_probe = [\n "2001:db8::1", # [core.advanced]\n]\n"log_level" = """\nsocks_port = 5"""\n'
    assert refuse(text).line == 4
    assert refuse("# x\r\n\r\nsocks_port = 1\r\n").line == 3
    assert refuse("log_level='info'\ncore . 'advanced' . \"SponsorId\" = '1'").line == 2
    assert refuse("log_level='info'\ncore = {advanced = {SponsorId = '1'}}").line == 2
    assert refuse("\n\n[core]\n[core.advanced.RateLimits]\nBad = 1").line == 4


def test_a_file_that_is_not_utf8_is_refused_with_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(b"# fine\nlog_level = '\xff'\n")
    assert caught.value.line == 2


@example(codecs.BOM_UTF16_LE)
@example(codecs.BOM_UTF16_BE + b"\n\0")
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_bytes_give_settings_or_an_error_with_a_line(content: bytes) -> None:
    try:
        assert isinstance(parse_settings(content), Settings)
    except ConfigError as error:
        # UTF-16 is a fault of the whole file, so there is no line to name.
        assert (error.line is None) == content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        assert error.line is None or 1 <= error.line <= content.count(b"\n") + 1


toml_values = st.recursive(
    st.sampled_from(
        ["true", "nan", "-inf", "1e400", "07:32:00", "1979-05-27", "''", "'OSSH'", "'aHR0cHM6Ly94'", "'::1'"]
    )
    | st.integers().map(str)
    | st.floats().map(lambda number: f"{number:f}")
    | st.text(max_size=20).map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["URL", "SkipVerify", "a"]), inner, max_size=2).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=5,
)
top_names = st.sampled_from([field.name for field in dataclasses.fields(Settings)] + ["x"])
core_names = st.sampled_from([*ALLOWED, *REFUSED, "x"])


@given(st.dictionaries(top_names, toml_values, max_size=3), st.dictionaries(core_names, toml_values, max_size=3))
def test_any_value_of_any_key_gives_settings_or_an_error_with_a_line(top: dict[str, str], core: dict[str, str]) -> None:
    lines = [f"{key} = {value}" for key, value in top.items()]
    lines += ["[core.advanced]", *(f"{key} = {value}" for key, value in core.items())]
    try:
        settings = parse_settings("\n".join(lines).encode(errors="surrogatepass"))
    except ConfigError as error:
        assert error.line is not None
        assert 1 <= error.line <= len(lines)
    else:
        # What is accepted must also render.
        json.dumps(render_core_config(settings, data_dir=Path("/d"), network_id="WIRED-x"))


def write(path: Path, text: str = "socks_port = 2000\n", *, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_the_running_user_is_read(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "c.toml")).socks_port == 2000


@pytest.mark.defect(11, 13)
@pytest.mark.requirement("R12")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="other users may write"):
        load_settings(write(tmp_path / "c.toml", mode=mode))


@pytest.mark.requirement("R12")
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_of_another_user_is_refused_unless_trusted(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml")
    os.chown(path, 65534, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        load_settings(path)
    assert load_settings(path, trusted_uids=(65534,)).socks_port == 2000


@pytest.mark.requirement("R12")
def test_a_file_that_everyone_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_settings(write(tmp_path / "a.toml", mode=0o640))
        assert caplog.text == ""
        load_settings(write(tmp_path / "b.toml", mode=0o644))
    assert "every user can read it" in caplog.text


def test_what_is_no_ordinary_file_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(ConfigError, match="it is not a file"):
            load_settings(path)
    with pytest.raises(ConfigError, match="larger than"):
        load_settings(write(tmp_path / "large", "#" * (MAX_BYTES + 1)))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(write(tmp_path / "file") / "below")


@pytest.mark.defect(5)
def test_the_core_configuration_is_safe_whatever_the_settings() -> None:
    for settings in (Settings(), parse_settings(FULL.encode())):
        config = render_core_config(settings, data_dir=Path("/var/lib/x"), network_id="WIRED-0")
        assert config["DisableLocalHTTPProxy"] is True  # its /direct/ path bypasses the tunnel
        assert config["EmitDiagnosticNotices"] is True  # without it failures are silent
        assert config["EmitDiagnosticNetworkParameters"] is False
        assert config["EmitClientAddress"] is False
        assert config["TunnelPoolSize"] == 1
        assert config["EstablishTunnelTimeoutSeconds"] == 0
        assert config["PacketTunnelTransparentDNSIPv4Address"] == "10.200.3.2"
        assert "PacketTunnelTransparentDNSIPv6Address" not in config
        assert config["SplitTunnelRegions"] == []
        assert " " not in str(config["ClientPlatform"])
        # The core ignores case in names, so no two may differ only in case.
        assert len({name.casefold() for name in config}) == len(config)


def test_the_core_configuration_carries_what_the_user_chose() -> None:
    config = json.loads(
        json.dumps(render_core_config(parse_settings(FULL.encode()), data_dir=Path("/d"), network_id="WIFI-1"))
    )
    assert config["EgressRegion"] == "CA"
    assert config["LocalSocksProxyPort"] == 2081
    assert config["UpstreamProxyURL"] == "socks5://user:hunter2@192.0.2.7:1080"
    assert config["LimitTunnelProtocols"] == ["OSSH", "QUIC-OSSH"]
    assert config["RateLimits"] == {"ReadBytesPerSecond": 1000, "CloseAfterExhausted": False}
    assert config["TargetServerEntry"] == ENTRY
    assert config["NetworkID"] == "WIFI-1"
    assert config["SponsorId"] == "F" * 16
    assert "UpstreamProxyURL" not in render_core_config(Settings(), data_dir=Path("/d"), network_id="x")


def test_no_allowed_option_can_replace_what_the_service_sets() -> None:
    fixed = render_core_config(Settings(), data_dir=Path("/d"), network_id="x")
    assert {name for name in ALLOWED if name in fixed} == {"PropagationChannelId", "SponsorId", "ClientVersion"}


def test_a_list_address_is_checked_behind_its_base64() -> None:
    assert check_base64_url("aHR0cHM6Ly94") == "aHR0cHM6Ly94"
    with pytest.raises(ValueError, match="an http or https address"):
        check_base64_url("ZmlsZTovLy9ldGMvc2hhZG93")


GOOD = 'egress_region = "CA"\nlog_level = "info"\n'


@pytest.mark.parametrize(
    ("content", "line", "why", "step"),
    [
        (GOOD.encode("utf-16"), None, "UTF-16", "Save the file as UTF-8"),
        (("# caf\u00e9\n" + GOOD).encode("latin-1"), 1, "not UTF-8", "Save the file as UTF-8"),
        (GOOD.replace("\n", "\r").encode(), 1, "carriage return alone", "line ends of Unix"),
        (GOOD.replace('"', "\u201d").encode(), 1, "typographic quotation marks", "Type this line anew"),
        ((GOOD + "log\u00a0= 1\n").encode(), 3, "cannot be seen", "Type this line anew"),
        ((GOOD + "\0\0\0").encode(), 3, "zero bytes", "write the file anew"),
        ((GOOD + "a = = 1 # \u201cquotes\u201d\n").encode(), 3, "not TOML", "Correct this line"),
        ((GOOD + "\ufeffa = 1\n").encode(), 3, "byte order mark", "Type this line anew"),
    ],
)
def test_what_an_editor_did_is_named(content: bytes, line: int | None, why: str, step: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(content)
    assert caught.value.line == line
    assert why in caught.value.why
    assert step in caught.value.next_step


CORE_CONFIG = """{
  "LocalHttpProxyPort": 8081,
  "PropagationChannelId": "FFFFFFFFFFFFFFFF",
  "EgressRegion": "CA",%s
}
"""


@pytest.mark.parametrize(
    ("content", "line", "why", "step"),
    [
        (CORE_CONFIG % "", 1, "a psiphon.config", "servers import FILE"),
        (CORE_CONFIG % '"comma": 1,', 1, "a psiphon.config", "servers import FILE"),
        ("\ufeff\n" + CORE_CONFIG % "", 1, "a psiphon.config", "servers import FILE"),
        ('{"egress_region": "CA"}', 1, "this is JSON", "config set NAME VALUE"),
        (GOOD + '"socks_port": 1082,\n', 3, "this line is JSON", "config edit"),
        (GOOD + "socks_port: 1082\n", 3, "a colon", "config edit"),
        (GOOD + "uplink = eth0\n", 3, "in quotation marks", "config edit"),
        (GOOD + "[core.advanced]\nDisableTactics = True\n", 4, "in small letters", "config edit"),
        (GOOD + "[core.advanced]\nDisableTactics = yes # why\n", 4, "true or false", "config edit"),
        ("<!DOCTYPE html>\n<p>Sign in", 1, "a web page", "an empty file"),
        (ENTRY + "\n", 1, "a server entry", "servers import FILE"),
        ("RemoteServerListUrl = 'x'\n", 1, "the old name; use RemoteServerListURLs", "config edit"),
        ("UseIndistinguishableTLS = true\n", 1, "the tunnel program no longer uses it", "config edit"),
        ("[core.advanced]\nDataStoreDirectory = 'x'\n", 2, "the tunnel program no longer uses it", "config edit"),
    ],
)
def test_another_kind_of_file_is_named(content: str, line: int, why: str, step: str) -> None:
    error = refuse(content)
    assert error.line == line
    assert why in error.why
    assert step in error.next_step


def test_compressed_data_is_named() -> None:
    with pytest.raises(ConfigError, match="compressed data"):
        parse_settings(zlib.compress(b"a list of servers" * 50))


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode(), ("# \u00a0\u201d\n" + GOOD).encode()],
    ids=["mark", "windows", "comment"],
)
def test_what_does_no_harm_is_taken(content: bytes) -> None:
    assert parse_settings(content).egress_region == "CA"
