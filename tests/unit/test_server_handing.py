# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The known servers reach the core verified and sealed, and a restart costs no new verification."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.server_lists import make_data, make_key, make_list, make_test_profile

from psiphon_vpn.servers import handing
from psiphon_vpn.servers.errors import ListFlaw
from psiphon_vpn.servers.handing import Handed, Handing
from psiphon_vpn.servers.profile import PUBLIC_PATH, Profile, compute_key_digest
from psiphon_vpn.servers.store import ServerStore
from psiphon_vpn.system.layout import Layout

KEY = make_key()
LAB = make_test_profile(KEY)


class Scene:
    """Lists and profiles below the test's own directory, and what the core gets from them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root)
        self.store = ServerStore(self.layout, root_uid=os.geteuid())
        self.fetched = root / "fetched-list"
        self.handing = Handing(
            self.store, profiles_dir=self.layout.profiles_dir, fetched=self.fetched, root_uid=os.geteuid()
        )
        self.layout.profiles_dir.mkdir(parents=True)
        self.put_profile(LAB)

    def put_profile(self, profile: Profile) -> None:
        text = PUBLIC_PATH.read_text().split("\n")
        lines = [line for line in text if not line.startswith(("signature_key", "entry_signature_key"))]
        at = lines.index("[sources]") if "[sources]" in lines else len(lines)
        lines[at:] = [
            f'signature_key = "{profile.signature_key}"',
            f'signature_key_digest = "{compute_key_digest(profile.signature_key)}"',
            'entry_signature_key = ""',
        ]
        (self.layout.profiles_dir / f"{profile.name}.toml").write_text("\n".join(lines))

    def add(self, content: bytes) -> None:
        self.store.add(content, source="a stick", profile=LAB)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def read(handed: Handed) -> bytes:
    assert handed.image is not None
    assert handed.path is not None
    return Path(handed.path).read_bytes()


def test_without_a_list_there_is_only_the_profile(scene: Scene) -> None:
    handed = scene.handing.prepare("lab")
    assert (handed.profile, handed.image, handed.record, handed.flaw) == (read_profile(scene), None, None, None)
    assert scene.handing.prepare("none") == Handed()


def read_profile(scene: Scene) -> Profile:
    from psiphon_vpn.servers.profile import load_profile

    return load_profile("lab", scene.layout, owner=os.geteuid())


def test_the_stored_list_is_handed_verified_and_nobody_can_change_it(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    handed = scene.handing.prepare("lab")
    assert read(handed) == make_data(6) + b"\n"
    assert handed.record == scene.store.read_current()
    assert handed.path is not None
    with pytest.raises(PermissionError):
        os.pwrite(os.open(handed.path, os.O_RDWR), b"x", 0)


def test_a_restart_verifies_nothing_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.add(make_list(6, KEY))
    first = scene.handing.prepare("lab")
    monkeypatch.setattr(handing, "read_signed_list", None)
    assert scene.handing.prepare("lab") is first


def test_a_list_that_changed_on_the_disk_is_not_handed(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    scene.handing.prepare("lab")
    place = scene.layout.servers_current / "list"
    content = place.read_bytes()
    place.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    handed = scene.handing.prepare("lab")
    assert (handed.image, handed.record, handed.flaw) == (None, None, ListFlaw.DAMAGED)
    scene.add(make_list(7, KEY))
    assert read(scene.handing.prepare("lab")) == make_data(7) + b"\n"


def test_a_list_counts_only_for_the_profile_that_verified_it(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    for name in ("psiphon", "none"):
        handed = scene.handing.prepare(name)
        assert (handed.image, handed.flaw) == (None, ListFlaw.OTHER_PROFILE)
    assert scene.handing.prepare("missing").flaw is ListFlaw.NO_PROFILE


def test_a_profile_that_changed_its_key_makes_its_list_a_false_one(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    scene.handing.prepare("lab")
    scene.put_profile(make_test_profile(make_key(1)))
    handed = scene.handing.prepare("lab")
    assert (handed.image, handed.flaw) == (None, ListFlaw.WRONG_KEY)


def test_bare_entries_that_root_imported_are_handed_whatever_the_profile(scene: Scene) -> None:
    scene.store.add(make_data(2), source="a friend", profile=None)
    for name in ("lab", "psiphon", "none"):
        assert read(scene.handing.prepare(name)) == make_data(2) + b"\n"


def test_a_list_that_the_daemon_fetched_is_added_and_only_for_its_signature(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    scene.fetched.write_bytes(make_list(2, KEY, first=100))
    assert read(scene.handing.prepare("lab")) == make_data(6) + b"\n" + make_data(2, first=100) + b"\n"
    for content, flaw in ((make_list(2, make_key(1)), ListFlaw.WRONG_KEY), (make_data(2), ListFlaw.UNSIGNED)):
        scene.fetched.write_bytes(content)
        handed = scene.handing.prepare("lab")
        assert read(handed) == make_data(6) + b"\n", "the stored list is passed on all the same"
        assert handed.flaw is flaw
    scene.fetched.unlink()
    os.mkfifo(scene.fetched)
    assert scene.handing.prepare("lab").flaw is ListFlaw.UNREADABLE


def test_a_closed_handing_keeps_nothing_open(scene: Scene) -> None:
    scene.add(make_list(6, KEY))
    handed = scene.handing.prepare("lab")
    scene.handing.close()
    with pytest.raises(OSError):
        os.fstat(handed.image or -1)
