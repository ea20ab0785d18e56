# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Accounts come from files, and no command of root asks a name service, which may be behind the lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.accounts import User, find_group, find_user
from psiphon_vpn.local_accounts import ACCOUNTS, use_files_only
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.system.layout import GUARD_UNIT, KILLSWITCH_UNIT, SERVICE_UNIT
from psiphon_vpn.system.units import render_units

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
cut:x:12
+nis
odd:x:-1:0::/:/bin/sh
psiphon-user:x:990:991::/:/usr/sbin/nologin
huge:x:99999999999:0::/:/bin/sh
"""


def write_files(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text("root:x:0:\npsiphon-group:x:991:\n")
    (root / "usr/lib/passwd").write_text("dhcpcd:x:995:995::/:/usr/sbin/nologin\nroot:x:1:1::/:/bin/sh\n")


def test_accounts_are_read_from_files_and_odd_lines_passed_over(tmp_path: Path) -> None:
    write_files(tmp_path)
    assert find_user("psiphon-user", root=tmp_path) == User(
        name="psiphon-user",
        uid=990,
        gid=991,
        login="/usr/sbin/nologin",
    )
    assert find_group("psiphon-group", root=tmp_path) == 991
    dhcpcd, root = find_user("dhcpcd", root=tmp_path), find_user("root", root=tmp_path)
    assert dhcpcd is not None
    assert root is not None
    assert (dhcpcd.uid, root.uid) == (995, 0)
    assert [find_user(name, root=tmp_path) for name in ("cut", "odd", "huge", "+nis", "nobody-here")] == [None] * 5


def test_a_machine_without_such_files_has_no_such_accounts(tmp_path: Path) -> None:
    assert find_user("root", root=tmp_path) is None
    assert find_group("root", root=tmp_path) is None


@given(content=st.binary(max_size=200), name=st.text(max_size=5))
def test_any_file_of_accounts_can_be_read(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(content + b"\nme:x:7:8::/:/bin/sh\n")
    found = find_user(name, root=root)
    assert found is None or 0 <= found.uid < 2**32 - 1
    mine = find_user("me", root=root)
    assert mine is not None


def test_only_accounts_are_looked_up_in_another_way() -> None:
    before = b"# caf\xe9\n passwd: files ldap\ngroup:ldap\nhosts: files resolve dns\n"
    lines = use_files_only(before).split(b"\n")
    assert lines[: len(ACCOUNTS)] == [f"{name}: files".encode() for name in ACCOUNTS]
    assert lines[len(ACCOUNTS) :] == [b"# caf\xe9", b"hosts: files resolve dns", b"", b""]


CODE = """
import subprocess, sys
from psiphon_vpn.local_accounts import use_local_accounts
assert sys.argv[1] == "control" or use_local_accounts()
env = {"LD_DEBUG": "libs", "PATH": "/usr/sbin:/usr/bin"}
done = subprocess.run(sys.argv[2:], input=sys.stdin.read(), capture_output=True, text=True, env=env)
print(done.returncode, "libnss_unreachable" in done.stderr)
"""
RULES = build_base_table(
    Policy(state=State.LOCKED, identity=Identity(uid=4242, gid=4243, network_manager_uids=(0,)))
).render_replacement()


@pytest.mark.lab
@pytest.mark.requirement("R2", "R24")
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["nft", "-c", "-f", "-"], RULES),
        (["getent", "passwd", "nobody-here"], ""),
        (["getent", "group", "4242"], ""),
    ],
    ids=["nft", "user", "group"],
)
def test_what_a_command_of_roots_starts_asks_no_name_service(argv: list[str], text: str, tmp_path: Path) -> None:
    """The control asks one: the C library looks for the service's library, as LD_DEBUG shows (ld.so(8))."""
    (tmp_path / "nsswitch.conf").write_text("passwd: files unreachable\ngroup: files unreachable\nhosts: files dns\n")
    asked = {}
    for how in ("control", "ours"):
        script = f'mount --bind {tmp_path}/nsswitch.conf /etc/nsswitch.conf && exec "$@"'
        command = ["unshare", "-m", "-n", "sh", "-c", script, "sh", sys.executable, "-c", CODE, how, *argv]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        code, was_asked = done.stdout.split()
        assert code == ("0" if argv[0] == "nft" else "2")
        asked[how] = was_asked == "True"
    assert asked == {"control": True, "ours": False}


def test_units_find_no_configuration_of_name_services_or_can_open_no_socket_for_them() -> None:
    """tests/booted/test_names.py and tests/booted/test_service.py show the same at boot."""
    texts = render_units()
    assert "InaccessiblePaths=-/etc/nsswitch.conf " in texts[SERVICE_UNIT]
    for unit in (KILLSWITCH_UNIT, GUARD_UNIT):
        assert "\nRestrictAddressFamilies=AF_NETLINK\n" in texts[unit]
