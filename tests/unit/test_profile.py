# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The profiles of networks: the public one matches its digest, and others count only if they are root's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.profile import PUBLIC_PATH, ProfileError, list_profiles, load_profile, parse_profile
from psiphon_vpn.system.layout import Layout

DIGEST = "V92HkhTZqeRRlgmIPuyWpod5nJm7xLz14BXYw6BjaPc="
TEXT = PUBLIC_PATH.read_text()


def test_the_public_networks_key_is_the_one_of_the_known_digest() -> None:
    profile = load_profile("psiphon", Layout())
    assert profile.key_digest == DIGEST
    assert len(profile.signature_key) == 732
    assert profile.list_urls[0].url == "https://s3.amazonaws.com/psiphon/web/mjr4-p23r-puwl/server_list_compressed"
    assert [url.verify_tls for url in profile.list_urls] == [True] + [False] * 6
    values = {"list_urls", "osl_urls", "signature_key", "entry_signature_key", "propagation_channel_id", "sponsor_id"}
    assert values <= set(profile.sources), "each value has its origin"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MIICID", "MIICIE"),
        (DIGEST, "AAAA" + DIGEST[4:]),
        ("sponsor_id = ", "sponsor = "),
        ('sponsor_id = "FFFF', 'sponsor_id = "gggg'),
        ("https://s3.amazonaws.com/psiphon/web/mjr4-p23r-puwl/server", "ftp://s3.amazonaws.com/server"),
        ("https://www.xy", "https://me:secret@www.xy"),
        ("sHuUVTWa", "sHuU"),
        ("list_urls = [", "list_urls = ["),
        ("osl_urls = [", "osl_urls = [5, "),
    ],
)
def test_a_corrupt_profile_is_refused(old: str, new: str) -> None:
    assert old in TEXT
    if old == new:
        assert parse_profile(TEXT.encode(), name="psiphon").name == "psiphon"
        return
    with pytest.raises(ProfileError):
        parse_profile(TEXT.replace(old, new, 1).encode(), name="psiphon")


def put_profile(root: Path, name: str = "mine") -> Path:
    layout = Layout(root=root)
    layout.profiles_dir.mkdir(parents=True, exist_ok=True)
    path = layout.profiles_dir / f"{name}.toml"
    path.write_text(TEXT)
    return path


def test_roots_profiles_are_found_by_name(tmp_path: Path) -> None:
    put_profile(tmp_path)
    put_profile(tmp_path, "psiphon")
    put_profile(tmp_path, "Not a name")
    layout = Layout(root=tmp_path)
    assert list_profiles(layout) == ("psiphon", "mine")
    assert load_profile("mine", layout, owner=os.geteuid()).name == "mine"
    for name in ("other", "none", "../mine", "", "MINE"):
        with pytest.raises(ListError) as caught:
            load_profile(name, layout, owner=os.geteuid())
        assert caught.value.flaw is ListFlaw.NO_PROFILE


def make_writable(path: Path) -> None:
    path.chmod(0o666)


def make_directory_writable(path: Path) -> None:
    path.parent.chmod(0o777)


def make_link(path: Path) -> None:
    other = path.with_name("other.toml")
    path.rename(other)
    path.symlink_to(other)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def make_huge(path: Path) -> None:
    path.write_text(TEXT + "#" * 100_000)


@pytest.mark.parametrize("spoil", [make_writable, make_directory_writable, make_link, make_pipe, make_huge])
def test_a_profile_that_others_could_have_written_is_not_trusted(spoil: object, tmp_path: Path) -> None:
    path = put_profile(tmp_path)
    assert callable(spoil)
    spoil(path)
    with pytest.raises(ListError) as caught:
        load_profile("mine", Layout(root=tmp_path), owner=os.geteuid())
    assert caught.value.flaw is ListFlaw.NO_PROFILE


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_a_profile_of_another_users_is_not_trusted(tmp_path: Path) -> None:
    path = put_profile(tmp_path)
    os.chown(path, 65534, 65534)
    with pytest.raises(ListError):
        load_profile("mine", Layout(root=tmp_path))
