# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose servers are used is root's decision: the configuration, which psiphon-user can write, only names a profile."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server_lists import make_key

from psiphon_vpn.config import Settings, parse_settings
from psiphon_vpn.core.options import ALLOWED, PROFILE_KEYS
from psiphon_vpn.core.settings import render_core_config
from psiphon_vpn.errors import ConfigError
from psiphon_vpn.servers.keys import read_urls, render_options
from psiphon_vpn.servers.profile import Profile, load_profile
from psiphon_vpn.system.layout import Layout

PUBLIC = load_profile("psiphon", Layout())
OTHER_KEY = make_key(3).public


def encode(url: str) -> str:
    return base64.b64encode(url.encode()).decode()


def render(settings: Settings, profile: Profile | None) -> dict[str, object]:
    network = {} if profile is None else render_options(profile)
    return render_core_config(settings, data_dir=Path("/d"), network_id="WIRED-x", network=network)


def test_the_core_gets_addresses_and_keys_of_the_profile() -> None:
    config = render(Settings(), PUBLIC)
    assert config["RemoteServerListSignaturePublicKey"] == PUBLIC.signature_key
    assert config["ServerEntrySignaturePublicKey"] == PUBLIC.entry_signature_key
    assert read_urls(config["RemoteServerListURLs"]) == tuple(url.url for url in PUBLIC.list_urls)
    assert read_urls(config["ObfuscatedServerListRootURLs"]) == PUBLIC.osl_urls
    for name in PROFILE_KEYS:
        ALLOWED[name](config[name])
    assert not set(PROFILE_KEYS) & set(render(Settings(), None))


ADVANCED = {
    "RemoteServerListURLs": f"[{{ URL = '{encode(PUBLIC.list_urls[0].url)}' }}]",
    "ObfuscatedServerListRootURLs": f"[{{ URL = '{encode(PUBLIC.osl_urls[0])}' }}]",
    "RemoteServerListSignaturePublicKey": f"'{PUBLIC.signature_key}'",
    "ServerEntrySignaturePublicKey": f"'{PUBLIC.entry_signature_key}'",
}
FOREIGN = {
    "RemoteServerListURLs": f"[{{ URL = '{encode('https://evil.example/list')}' }}]",
    "ObfuscatedServerListRootURLs": f"[{{ URL = '{encode('https://evil.example/osl')}' }}]",
    "RemoteServerListSignaturePublicKey": f"'{OTHER_KEY}'",
    "ServerEntrySignaturePublicKey": "'AAAA'",
}


def write(values: dict[str, str], top: str = "") -> bytes:
    return "\n".join([top, "[core.advanced]", *(f"{name} = {value}" for name, value in values.items())]).encode()


def test_keys_that_only_repeat_the_profile_are_accepted_as_older_configurations_have_them() -> None:
    settings = parse_settings(write(ADVANCED))
    assert settings.core_advanced == {}
    assert render(settings, PUBLIC) == render(Settings(), PUBLIC)
    doubled = PUBLIC.list_urls[0].url.replace("/psiphon", "//psiphon")
    assert parse_settings(write({"RemoteServerListURLs": f"[{{ URL = '{encode(doubled)}' }}]"})).core_advanced == {}


@pytest.mark.parametrize("name", PROFILE_KEYS)
@pytest.mark.parametrize("top", ["", "servers = 'psiphon'"])
def test_any_other_key_or_address_is_refused_with_a_next_step_that_works_offline(name: str, top: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(write(ADVANCED | {name: FOREIGN[name]}, top))
    assert name in caught.value.why
    assert "sudo psiphon-vpn servers trust /etc/psiphon-vpn/config.toml" in str(caught.value)


@pytest.mark.parametrize("name", PROFILE_KEYS)
def test_without_a_profile_every_such_key_is_refused(name: str) -> None:
    assert parse_settings(b"servers = 'none'").servers == "none"
    with pytest.raises(ConfigError):
        parse_settings(write({name: ADVANCED[name]}, "servers = 'none'"))


@given(
    st.dictionaries(
        st.sampled_from(PROFILE_KEYS),
        st.sampled_from(["''", "'x'", "[]", "5", *ADVANCED.values(), *FOREIGN.values()]),
    ),
    st.sampled_from(["", "servers = 'none'", "servers = 'psiphon'", "servers = 'mine'"]),
)
def test_no_configuration_brings_a_key_of_its_own(values: dict[str, str], top: str) -> None:
    try:
        settings = parse_settings(write(values, top))
    except ConfigError:
        return
    assert json.dumps(render(settings, PUBLIC)) == json.dumps(render(Settings(), PUBLIC))
