# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Root has the configuration parsed by a process without privileges, and does not trust its answer."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psiphon_vpn.checks import Refused
from psiphon_vpn.config import Settings, parse_settings
from psiphon_vpn.config_file import MAX_BYTES
from psiphon_vpn.editing import requests
from psiphon_vpn.editing.catalogue import Setting, find_setting, list_settings
from psiphon_vpn.editing.message import CHANGE, SET, UNSET, VIEW, pack, unpack
from psiphon_vpn.editing.requests import Change, View, change_content, read_settings, view_content
from psiphon_vpn.editing.values import read_value, show_value
from psiphon_vpn.editing.worker import work
from psiphon_vpn.errors import ConfigError, UserError
from psiphon_vpn.unprivileged import Trouble, UnprivilegedError

PATH = Path("/etc/psiphon-vpn/config.toml")
ENTRY = "3139382e35312e3130302e3130203022" * 4


def change(name: str, typed: str | None) -> Change:
    return Change(setting=find_setting(name), typed=typed)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a parser in this process gets anything."""

    def fail(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the content was parsed in this process")

    monkeypatch.setattr(tomllib, "loads", fail)
    monkeypatch.setattr(tomllib, "load", fail)
    monkeypatch.setitem(sys.modules, "tomlkit", types.ModuleType("tomlkit"))


@pytest.mark.usefixtures("forbidden")
@pytest.mark.requirement("R12", "R24")
def test_nothing_of_the_file_is_parsed_by_the_process_that_asks() -> None:
    content = b"# why\negress_region = 'CA'\n"
    changed = change_content(content, [change("socks_port", "2000"), change("egress_region", None)], path=PATH)
    assert changed.content == b"# why\nsocks_port = 2000\n"
    assert view_content(content, path=PATH).values == {"egress_region": ('"CA"', "CA", "CA")}
    assert read_settings(content, path=PATH) == Settings(egress_region="CA")


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize(
    "content",
    [
        b"x = " + b"[" * 100_000,
        b"a" + b".a" * 10_000 + b" = 1",
        b"x = " + b"9" * 200_000,
        b'"""' * 60_000,
        b"\xff\xfe" * 1000,
        b"[a]\n" * 50_000,
        b"x = '\n" * 40_000,
        b"[[a]]\n" * 40_000,
        b"a.b = 1\na = 2\n",
        b"x = {" + b"a = {" * 5000,
    ],
)
def test_hostile_content_costs_no_more_than_an_error(content: bytes) -> None:
    try:
        assert view_content(content, path=PATH).problem is not None
    except UserError as error:
        assert "cannot be read" in str(error)
    try:
        assert change_content(content, [change("socks_port", "2000")], path=PATH).after.problem is not None
    except UserError as error:
        assert str(error).isprintable()


LONG = "x = [\n" + "  1,\n" * 2000 + "]\n"


def test_a_large_file_is_changed_too() -> None:
    content = ("# a comment that fills lines\n" * 5000 + "socks_port = 2000\n" + LONG).encode()
    changed = change_content(content, [change("socks_port", "2001")], path=PATH)
    assert changed.content == content.replace(b"2000\n", b"2001\n", 1)


@pytest.mark.parametrize("trouble", Trouble)
def test_without_an_answer_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, trouble: Trouble) -> None:
    def refuse(*_args: object) -> bytes:
        raise UnprivilegedError(trouble, "\x1b[2Jkilled")

    monkeypatch.setattr(requests, "run_unprivileged", refuse)
    with pytest.raises(UserError, match="cannot be read") as caught:
        view_content(b"", path=PATH)
    assert "\x1b" not in str(caught.value)


EVIL_TEXT = "\x1b]0;evil\x07\n\x85\u2028 red"


@given(
    answer=st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(EVIL_TEXT),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["values", "problem", "before", "refused", "refused_value", "why", "next_step", "line"])
                | st.text(max_size=3),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ).map(lambda value: pack(value if isinstance(value, dict) else {"values": value}, b"x = 1\n"))
)
def test_whatever_the_answer_root_takes_no_more_than_text_that_can_be_shown(answer: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "run_unprivileged", lambda *_args: answer)
        for ask in (
            lambda: view_content(b"", path=PATH),
            lambda: change_content(b"", [change("uplink", "x")], path=PATH),
            lambda: read_settings(b"", path=PATH),
        ):
            try:
                found = ask()
            except UserError as error:
                assert str(error).isprintable()
            else:
                for view in [found] if isinstance(found, View) else []:
                    assert all(text.isprintable() for *texts, _value in view.values.values() for text in texts)
                    assert "\x1b" not in json.dumps(
                        [value for *_texts, value in view.values.values()], ensure_ascii=False
                    )


def test_an_answer_that_is_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: dict[str, object] = {"values": {}, "problem": None}
    answer = pack({**empty, "before": empty}, b"#" * (MAX_BYTES + 1))
    monkeypatch.setattr(requests, "run_unprivileged", lambda *_args: answer)
    with pytest.raises(ConfigError, match="larger than"):
        change_content(b"", [change("uplink", "x")], path=PATH)


def write_catalogue(path: Path, texts: dict[str, str]) -> None:
    """Write a compiled catalogue (GNU gettext, "The Format of GNU MO Files")."""
    pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **texts}.items())
    place, tables, body = 28 + 16 * len(pairs), [b"", b""], b""
    for column in (0, 1):
        for pair in pairs:
            text = pair[column].encode()
            tables[column] += struct.pack("<II", len(text), place + len(body))
            body += text + b"\0"
    head = struct.pack("<IIIIIII", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(head + tables[0] + tables[1] + body)


def test_what_is_wrong_is_said_in_the_users_language(tmp_path: Path) -> None:
    package = tmp_path / "psiphon_vpn"
    shutil.copytree(Path(requests.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    write_catalogue(package / "locale/de/LC_MESSAGES/psiphon-vpn.mo", {"it must be {type}": "es muss {type} sein"})
    program = (
        "from pathlib import Path; from psiphon_vpn.editing.requests import view_content;"
        "print(view_content(b'uplink = 5', path=Path('x')).problem.reason)"
    )
    environment = {"PYTHONPATH": str(tmp_path), "LANG": "de_DE.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "uplink: es muss text in quotes sein\n"


# -- the worker, called in this process -------------------------------------------------------------------------------


def ask(request: str, content: bytes, *changes: list[str]) -> tuple[dict[str, Any], bytes]:
    return unpack(work([request], pack({"changes": list(changes)}, content)))


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        (("egress_region", "DE"), "DE"),
        (("egress_region", "germany"), "DE"),
        (("egress_region", '"de"'), "DE"),
        (("egress_region", '""'), ""),
        (("egress_region", "Côte d\u2019Ivoire"), "CI"),
        (("socks_port", " 2000\n"), 2000),
        (("log_level", "Debug"), "debug"),
        (("uplink", "123"), "123"),
        (("uplink", "true"), "true"),
        (("uplink", "'eth0'"), "eth0"),
        (("bootstrap_dns", "192.0.2.1, 192.0.2.2"), ["192.0.2.1", "192.0.2.2"]),
        (("bootstrap_dns", "192.0.2.1 192.0.2.2"), ["192.0.2.1", "192.0.2.2"]),
        (("bootstrap_dns", '["192.0.2.1"]'), ["192.0.2.1"]),
        (("bootstrap_dns", ""), []),
        (("upstream_proxy", "http://u:p,q@192.0.2.7:3128"), "http://u:p,q@192.0.2.7:3128"),
        (("LimitTunnelProtocols", "ossh,TLS-ossh"), ["OSSH", "TLS-OSSH"]),
        (("LimitTunnelProtocols", '["ossh"]'), ["OSSH"]),
        (("NetworkLatencyMultiplier", "2"), 2),
        (("NetworkLatencyMultiplier", "1.5"), 1.5),
        (("DisableTactics", "yes"), True),
        (("DisableTactics", "false"), False),
        (("ClientVersion", "12"), "12"),
        (("SponsorId", "1234567890123456"), "1234567890123456"),
        (("CustomHeaders", '{"X-Name": ["a"]}'), {"X-Name": ["a"]}),
        (("CustomHeaders", "{ X-Name = ['a'] }"), {"X-Name": ["a"]}),
        (("RateLimits", "{ReadBytesPerSecond = 5}"), {"ReadBytesPerSecond": 5}),
        (("TargetServerEntry", ENTRY + "\n"), ENTRY),
    ],
)
def test_a_value_is_taken_as_it_was_meant(typed: tuple[str, str], value: object) -> None:
    name, text = typed
    assert read_value(find_setting(name), text) == value
    fields, changed = ask(CHANGE, b"", [SET, name, text])
    assert fields["problem"] is None
    found: Any = tomllib.loads(changed.decode())
    if find_setting(name).is_core_option:
        found = found["core"]["advanced"]
    assert found == {name: value}


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (("egress_region", "Germny"), "did you mean Germany (DE)?"),
        (("egress_region", "best of all"), "two capital letters"),
        (("socks_port", "eighty"), "a whole number"),
        (("socks_port", "80"), "from 1024 to 65535"),
        (("socks_port", "2000\nlog_level = 'info'"), "a whole number"),
        (("log_level", "debugg"), "did you mean debug?"),
        (("LimitTunnelProtocols", "OSSH,TLS-OSH"), "did you mean TLS-OSSH?"),
        (("LimitTunnelProtocols", ""), "1 to 64 entries"),
        (("DisableTactics", "perhaps"), "true or false"),
        (("uplink", "lo"), "leads nowhere"),
    ],
)
def test_a_wrong_value_is_refused_with_the_nearest_right_one(typed: tuple[str, str], reason: str) -> None:
    name, text = typed
    with pytest.raises(Refused) as caught:
        read_value(find_setting(name), text)
    assert reason in str(caught.value)
    fields, changed = ask(CHANGE, b"socks_port = 2001\n", [SET, name, text])
    assert reason in fields["refused_value"]
    assert changed == b""


SECRETS = {
    "upstream_proxy": "http://anna:hunter2@192.0.2.7:3128",
    "TargetServerEntry": ENTRY,
    "CustomHeaders": '{ Authorization = ["hunter2"] }',
}


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_in_what_may_be_shown(name: str) -> None:
    typed = SECRETS[name]
    fields, changed = ask(CHANGE, b"", [SET, name, typed])
    assert b"hunter2" in changed or ENTRY.encode() in changed
    for shown in (fields, ask(VIEW, changed)[0], ask(CHANGE, changed, [SET, name, "\x00wrong"])[0]):
        assert "hunter2" not in repr(shown)
        assert ENTRY not in repr(shown)
    # Neither is a value that no check accepts: it may be a secret with a mistake in it.
    assert "hunter2" not in show_value(find_setting("upstream_proxy"), "http://hunter2@x@192.0.2.7")
    assert find_setting(name).may_be_secret(typed)


@given(typed=st.text(max_size=30), setting=st.sampled_from(list(list_settings())))
@settings(deadline=None)
def test_whatever_is_typed_is_refused_or_gives_a_usable_file(typed: str, setting: Setting) -> None:
    if any("\ud800" <= character <= "\udfff" for character in typed):
        return
    fields, changed = ask(CHANGE, b"# kept\n", [SET, setting.name, typed])
    if "refused_value" in fields:
        return
    assert changed.startswith(b"# kept\n")
    try:
        parse_settings(changed)
    except ConfigError as error:
        # One value alone cannot show the other settings, or which profiles of servers this computer has.
        expected = (
            "only together with",
            "could not be verified",
            "there is no profile with the name",
            "it is not of the servers that this machine trusts",
        )
        assert any(words in error.why for words in expected), error.why


def test_a_mark_at_the_beginning_stays() -> None:
    _fields, changed = ask(CHANGE, b"\xef\xbb\xbfsocks_port = 2000\r\n", [SET, "uplink", "eth0"])
    assert changed == b'\xef\xbb\xbfsocks_port = 2000\r\nuplink = "eth0"\r\n'


def test_a_wrong_name_can_be_taken_away() -> None:
    _fields, changed = ask(
        CHANGE, b"bogus = 1\n[core.advanced]\nBad = 1\n", [UNSET, "bogus"], [UNSET, "core.advanced.Bad"]
    )
    assert parse_settings(changed) == Settings()


def test_an_unknown_setting_gets_the_nearest_name_or_the_reason() -> None:
    for typed, said in (
        ("egress_regoin", "did you mean egress_region?"),
        ("EgressRegion", "set it with egress_region"),
        ("core.advanced.LimitTunelProtocols", "did you mean LimitTunnelProtocols?"),
        ("LocalHttpProxyPort", "fetches pages outside the tunnel"),
        ("UseIndistinguishableTLS", "no longer uses it"),
        ("zzzz", "no name is similar"),
    ):
        with pytest.raises(UserError) as caught:
            find_setting(typed)
        assert said in str(caught.value)
