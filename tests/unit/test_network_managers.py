# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A network manager is one value: everything that needs it follows, and nothing else names it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from psiphon_vpn import network_managers
from psiphon_vpn.network_managers import MANAGERS
from psiphon_vpn.system.resources import DIRECTORY

PACKAGE = Path(network_managers.__file__).parents[1]
HERE = Path(network_managers.__file__).parent
MODULES = {path.stem for path in HERE.glob("*.py")} - {"__init__", "model"}
NEW = """
from psiphon_vpn.network_managers.model import NetworkManager

MANAGER = NetworkManager(
    name="newd", units=("newd.service",), users=("daemon",), logins=("newlogin",), reread="reload",
    files={"/usr/lib/newd/psiphon.conf": "tun.network"}, released_files={"/run/newd/psiphon.conf": "tun.network"},
    leases=("/var/lib/newd",), networks=("/etc/newd",), find_portal=lambda index, _links: index == 77,
)
"""
LOOK = """
import json
from pathlib import Path
from psiphon_vpn import network_managers
from psiphon_vpn.accounts import find_user
from psiphon_vpn.diagnose import identities, unit_facts
from psiphon_vpn.linux.identity import find_network_managers
from psiphon_vpn.system import configure, files, logins, released, removal, units
from psiphon_vpn.system.layout import Layout

layout = Layout()
print(json.dumps({
    "order at boot": "newd.service" in units.render_units()["psiphon-killswitch.service"],
    "drop-in": "Requires=psiphon-killswitch.service" in units.render_dropins().get("newd.service", ""),
    "removed with the lock": layout.dropin("newd.service") in removal.list_lock_files(layout),
    "file": Path("/usr/lib/newd/psiphon.conf") in files.render_system_files(layout),
    "reread": any((reader.unit, reader.verb) == ("newd.service", "reload") for reader in configure.READERS),
    "released": any(path == Path("/run/newd/psiphon.conf") for _reader, path, _text in released.list_masks(layout)),
    "DHCP": find_user("daemon").uid in find_network_managers(),
    "login": "newlogin" in logins.PROGRAMS,
    "diagnose": "newd.service" in unit_facts.MANAGERS,
    "leases in reports": "/var/lib/newd" in identities.LEASES,
    "networks in reports": "/etc/newd" in [place for place, _pattern in identities.NETWORKS],
    "sign-in page": network_managers.find_portal(77) and not network_managers.find_portal(78),
}))
"""


def look(source: Path) -> dict[str, bool]:
    """What the rest of the program knows of "newd", in the package below this directory."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{LOOK}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, bool] = json.loads(done.stdout)
    return found


def test_the_next_one_is_one_file_and_its_line_in_the_list(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    without = look(tmp_path)
    assert not any(without.values()), "the control"
    (package / HERE.name / "newd.py").write_text(NEW)
    listing = package / HERE.name / "__init__.py"
    text = listing.read_text()
    assert "    connman.MANAGER,\n" in text
    text = text.replace("    connman.MANAGER,\n", "    connman.MANAGER,\n    newd.MANAGER,\n")
    listing.write_text(text.replace("    networkmanager,\n", "    networkmanager,\n    newd,\n"))
    assert look(tmp_path) == dict.fromkeys(without, True)


def test_every_module_is_in_the_list() -> None:
    assert {id(getattr(network_managers, name).MANAGER) for name in MODULES} == {id(manager) for manager in MANAGERS}


def test_every_file_for_a_network_manager_is_there_and_whoever_reads_one_reads_it_again() -> None:
    for manager in MANAGERS:
        assert all((DIRECTORY / name).is_file() for name in (*manager.files.values(), *manager.released_files.values()))
        assert bool(manager.files) is (manager.reread is not None)


WORDS = {word for manager in MANAGERS for word in (*manager.units, *manager.logins, *manager.users, *manager.leases)}
TOLD = {"diagnose/checks/login.py", "policy/permits.py"}
"""Sentences for people: what to type, and why a row is there."""


def find_words(path: Path) -> set[str]:
    """The given words that occur in a module's strings, except docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in plain
    ]
    return {word for text in texts for word in text.replace(",", " ").split() if word in WORDS}


@pytest.mark.parametrize("package", ["linux", "service", "system", "diagnose", "policy", "cli", "core"])
def test_no_other_module_names_one(package: str) -> None:
    named = {
        path.relative_to(PACKAGE).as_posix(): found
        for path in sorted((PACKAGE / package).rglob("*.py"))
        if (found := find_words(path))
    }
    assert set(named) <= TOLD, named


def test_a_module_that_names_one_would_be_found() -> None:
    assert find_words(HERE / "dhcpcd.py") >= {"dhcpcd", "dhcpcd@.service"}
