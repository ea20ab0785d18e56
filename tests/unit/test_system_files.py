# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that other programs of the system read, tested with those programs."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from psiphon_vpn.config import Settings, parse_settings
from psiphon_vpn.core import naming
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.system import files
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.resources import render_resource

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
needs_tools = pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not here")


def call(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def target(tmp_path: Path) -> Layout:
    """A scratch root with the users and directories that systemd's own tools make there."""
    layout = Layout(root=tmp_path / "root")
    write(layout.sysusers, render_resource("sysusers.conf"))
    write(layout.tmpfiles, render_resource("tmpfiles.conf"))
    write(layout.config_template, render_resource("config.toml"))
    layout.root.chmod(0o755)
    (layout.root / "etc").mkdir(exist_ok=True)
    call("systemd-sysusers", f"--root={layout.root}")
    call("systemd-tmpfiles", "--create", f"--root={layout.root}", layout.tmpfiles.name)
    return layout


def user(layout: Layout) -> tuple[int, int, str, str]:
    for line in (layout.root / "etc/passwd").read_text().splitlines():
        name, _password, uid, gid, _gecos, home, shell = line.split(":")
        if name == "psiphon-user":
            return int(uid), int(gid), home, shell
    raise AssertionError("no psiphon-user")


def mode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


@needs_root
@needs_tools
@pytest.mark.requirement("R8", "R12")
def test_the_service_has_a_user_that_nobody_can_log_in_as(target: Layout) -> None:
    uid, gid, home, shell = user(target)
    assert (uid, gid) == (573, 573)
    assert home == "/var/lib/psiphon-vpn/state"
    assert shell.endswith("nologin")
    groups = dict(line.split(":")[::2] for line in (target.root / "etc/group").read_text().splitlines())
    assert groups["psiphon-group"] == str(gid)


@needs_root
@needs_tools
@pytest.mark.requirement("R8")
@pytest.mark.parametrize(("database", "entry"), [("passwd", "other:x:573:1::/:/bin/sh"), ("group", "other:x:573:")])
def test_a_number_that_is_taken_is_shared_with_nobody(tmp_path: Path, database: str, entry: str) -> None:
    layout = Layout(root=tmp_path / "root")
    write(layout.sysusers, render_resource("sysusers.conf"))
    write(layout.root / "etc" / database, entry + "\n")
    call("systemd-sysusers", f"--root={layout.root}")
    uid, gid, _home, _shell = user(layout)
    taken = uid if database == "passwd" else gid
    assert 0 < taken < 1000
    assert taken != 573


@needs_root
@needs_tools
@pytest.mark.requirement("R8")
def test_an_account_of_an_older_version_keeps_its_numbers(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path / "root")
    write(layout.sysusers, render_resource("sysusers.conf"))
    write(layout.root / "etc/passwd", "psiphon-user:x:988:987::/var/lib/psiphon-vpn/state:/usr/sbin/nologin\n")
    write(layout.root / "etc/group", "psiphon-group:x:987:\n")
    call("systemd-sysusers", f"--root={layout.root}")
    assert user(layout)[:2] == (988, 987)


@needs_root
@needs_tools
@pytest.mark.requirement("R12")
def test_directories_have_the_owners_and_modes_of_the_policy(target: Layout) -> None:
    uid, gid, _home, _shell = user(target)
    assert mode(target.config) == (0o600, uid, gid)
    assert mode(target.state_dir) == (0o700, uid, gid)
    assert mode(target.runtime_dir) == (0o755, uid, gid)
    for roots in (target.config_dir, target.data_dir, target.core_dir):
        assert mode(roots) == (0o755, 0, 0)


@needs_root
@needs_tools
@pytest.mark.requirement("R12")
def test_the_link_that_names_the_core_is_roots_and_is_repaired(target: Layout) -> None:
    def look() -> tuple[str, int]:
        return os.readlink(target.core_name), target.core_name.lstat().st_uid

    assert look() == (naming.TARGET, 0)
    target.core_name.unlink()
    target.core_name.write_text("something else")
    call("systemd-tmpfiles", "--create", f"--root={target.root}", target.tmpfiles.name)
    assert look() == (naming.TARGET, 0)


@needs_root
@needs_tools
@pytest.mark.requirement("R12")
def test_a_configuration_that_is_there_keeps_its_text_and_gets_its_mode_back(target: Layout) -> None:
    uid, gid, _home, _shell = user(target)
    target.config.write_text("socks_port = 1090\n")
    os.chown(target.config, 0, 0)
    target.config.chmod(0o644)
    call("systemd-tmpfiles", "--create", f"--root={target.root}", target.tmpfiles.name)
    assert target.config.read_text() == "socks_port = 1090\n"
    assert mode(target.config) == (0o600, uid, gid)


def test_the_first_configuration_means_the_defaults() -> None:
    assert parse_settings(render_resource("config.toml").encode()) == Settings()


def test_sysctls_at_boot_are_those_of_the_policy() -> None:
    found = {}
    for line in files.render_sysctls().splitlines():
        if not line.startswith("#"):
            name, _equals, value = line.partition(" = ")
            assert name.startswith("-"), "a kernel without IPv6 must not make the others fail"
            found[name[1:].replace(".", "/")] = value
    assert found == GLOBAL_SYSCTLS


def last_values(text: str, section: str) -> dict[str, list[str]]:
    """The assignments in a systemd file as systemd combines them: an empty one resets the earlier ones."""
    found: dict[str, list[str]] = {}
    inside = ""
    for line in text.splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and "=" in line and not line.startswith("#"):
            key, _equals, value = line.partition("=")
            found[key] = [*found.get(key, []), value] if value else []
    return found


@pytest.mark.requirement("R11", "R18")
def test_systemd_resolved_asks_nobody_but_the_resolver_in_the_tunnel() -> None:
    assert last_values(render_resource("resolved.conf"), "Resolve") == {
        "DNS": ["10.200.3.2"],
        "Domains": ["~."],
        "FallbackDNS": [],
        "LLMNR": ["no"],
        "MulticastDNS": ["no"],
        "DNSOverTLS": ["no"],
        "DNSSEC": ["no"],
    }


@pytest.mark.requirement("R9")
def test_network_managers_leave_our_routes_and_our_device_alone() -> None:
    foreign = last_values(render_resource("networkd.conf"), "Network")
    assert foreign == {"ManageForeignRoutingPolicyRules": ["no"], "ManageForeignRoutes": ["no"]}
    assert last_values(render_resource("tun.network"), "Match") == {"Name": ["PsiphonTUN"]}
    assert last_values(render_resource("tun.network"), "Link") == {"Unmanaged": ["yes"]}
    parser = configparser.ConfigParser()
    parser.read_string(render_resource("NetworkManager.conf"))
    assert dict(parser["device-psiphon-vpn"]) == {"match-device": "interface-name:PsiphonTUN", "managed": "0"}
    assert dict(parser["connectivity"]) == {"uri": "", "interval": "0"}
    assert dict(parser["global-dns-domain-*"]) == {"servers": "10.200.3.2"}
    assert "global-dns" in parser, "without it the domains have no effect"
    released = configparser.ConfigParser()
    released.read_string(render_resource("NetworkManager-released.conf"))
    assert released.sections() == ["device-psiphon-vpn", "connectivity"]
