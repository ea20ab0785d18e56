# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine to install on: a real tree of files below a scratch directory, with stand-ins for systemd and the kernel.

Their state is in a file, so it outlives a process that is killed during an installation, as real state does. They
follow the rules that matter: what a unit's start loads, what a stop leaves, what cannot be removed while it is held.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.run import CommandError
from psiphon_vpn.system.layout import GUARD_UNIT, KILLSWITCH_UNIT, SERVICE_UNIT, Layout
from psiphon_vpn.system.platform import Account, Platform

UID = 990
NETWORK_MANAGER = "NetworkManager.service"


@dataclass(frozen=True, kw_only=True)
class ScratchFile:
    """A file of a payload."""

    path: str
    content: bytes
    mode: int = 0o644


_PROGRAM = (
    ScratchFile(path="/usr/bin/psiphon-vpn", content=b"#!launcher\n", mode=0o755),
    ScratchFile(path="/usr/lib/psiphon-vpn/lib/psiphon_vpn/__init__.py", content=b"# program\n"),
    ScratchFile(path="/usr/lib/psiphon-vpn/config.toml", content=b"# settings\n"),
    ScratchFile(path="/usr/lib/systemd/system/psiphon-killswitch.service", content=b"[Unit]\n"),
    ScratchFile(path="/usr/lib/systemd/system/psiphon-vpn.service", content=b"[Unit]\n"),
)
_OWNED = [file.path for file in _PROGRAM]
_LISTED = json.dumps({"version": "1", "files": [{"path": path} for path in _OWNED]}).encode()
PAYLOAD = (*_PROGRAM, ScratchFile(path="/usr/lib/psiphon-vpn/manifest.json", content=_LISTED))
"""What a package contains."""
ACTING = (
    ScratchFile(path=str(Layout().sysusers), content=b"u psiphon-user\n"),
    ScratchFile(path=str(Layout().tmpfiles), content=b"d /run/psiphon-vpn\n"),
    ScratchFile(path=str(Layout().dropin(NETWORK_MANAGER)), content=b"[Unit]\nRequires=\n"),
    ScratchFile(path=str(Layout().dropin("sysinit.target")), content=b"[Unit]\nWants=\n"),
)
"""What only a machine that was set up has."""


class Store:
    """The stand-ins' state, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.path.read_text())
        return state

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        state = self.read()
        step()
        yield state
        self.path.write_text(json.dumps(state))


def step() -> None:
    """Called before each effect; a test that kills the process replaces this."""
    hook()


def nothing() -> None:
    """The hook that does nothing."""


hook = nothing


class ScratchManager:
    """systemd."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, self._layout = store, layout

    def is_running(self) -> bool:
        return True

    def reread(self) -> None:
        step()

    def is_active(self, unit: str) -> bool:
        return unit in self._store.read()["active"]

    def start(self, unit: str) -> None:
        layout = self._layout
        with self._store.change() as state:
            if unit in state["broken"]:
                raise CommandError(["systemctl", "start", unit], "it fails", returncode=1)
            if unit not in state["active"]:
                state["active"].append(unit)
            if unit == KILLSWITCH_UNIT:
                assert layout.boot_rules.is_file(), "the boot lock is started without rules"
                state["tables"] = True
            if unit == GUARD_UNIT:
                state["guard"] = True
            if unit == SERVICE_UNIT:
                assert state["tables"], "the service is started on an open machine"
                state["ways"] = True

    def stop(self, unit: str) -> None:
        with self._store.change() as state:
            requiring = self._layout.dropin(NETWORK_MANAGER).exists()
            assert unit != KILLSWITCH_UNIT or not requiring, "the network managers would be stopped too"
            if unit in state["stuck"]:
                raise CommandError(["systemctl", "stop", unit], "it hangs", returncode=1)
            state["active"] = [active for active in state["active"] if active != unit]
            if unit == GUARD_UNIT:
                state["guard"] = False

    def restart(self, unit: str) -> None:
        assert unit not in {KILLSWITCH_UNIT, GUARD_UNIT}, "this unit refuses it"
        with self._store.change() as state:
            state["restarted"].append(unit)

    def reload(self, unit: str) -> None:
        with self._store.change() as state:
            if unit in state["broken"]:
                raise CommandError(["systemctl", "reload", unit], "it fails", returncode=1)
            state["restarted"].append(unit)


class ScratchKernel:
    """The kernel."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, self._layout = store, layout

    def check_rules(self, text: str) -> str | None:
        return "no such word" if "bad" in self._store.read()["broken"] or not text else None

    def load_rules(self, path: Path) -> None:
        assert path.is_file()
        with self._store.change() as state:
            state["tables"] = True

    def read_setting(self, name: str) -> str | None:
        value: str | None = self._store.read()["settings"].get(name)
        return value

    def write_setting(self, name: str, value: str) -> None:
        with self._store.change() as state:
            state["settings"][name] = value

    def list_interfaces(self) -> tuple[str, ...]:
        names = {name.split("/")[3] for name in self._store.read()["settings"]}
        return tuple(sorted(names - {"all", "default"}))

    def is_locked(self) -> bool | None:
        state = self._store.read()
        return bool(state["tables"] or state["guard"])

    def remove_routing(self) -> None:
        with self._store.change() as state:
            state["ways"] = False

    def remove_tables(self) -> None:
        with self._store.change() as state:
            assert not state["guard"], "the guard's table cannot be removed while it is held"
            state["left_at_opening"] = [
                path for path in list_tree(self._layout.root) if "psiphon" in path and "journal" not in path
            ]
            state["tables"] = False


class ScratchAccounts:
    """Accounts, in the tree's own files."""

    def __init__(self, layout: Layout) -> None:
        self._files = {name: layout.root / "etc" / name for name in ("passwd", "group")}
        self._lines = {"passwd": f"psiphon-user:x:{UID}:{UID}::/:\n", "group": f"psiphon-group:x:{UID}:\n"}

    def list_existing(self) -> tuple[bool, bool]:
        return self._lines["passwd"] in self._read("passwd"), self._lines["group"] in self._read("group")

    def find(self) -> Account | None:
        return Account(uid=UID, gid=UID) if all(self.list_existing()) else None

    def make(self, declaration: Path) -> None:
        assert declaration.is_file()
        for name, line in self._lines.items():
            if line not in self._read(name):
                step()
                self._files[name].write_text(self._read(name) + line)

    def remove(self, *, user: bool, group: bool) -> None:
        for name, wanted in (("passwd", user), ("group", group)):
            if wanted:
                step()
                self._files[name].write_text(self._read(name).replace(self._lines[name], ""))

    def find_network_managers(self) -> tuple[int, ...]:
        return (0,)

    def _read(self, name: str) -> str:
        return self._files[name].read_text()


class ScratchDirectories:
    """systemd-tmpfiles."""

    def make(self, declaration: Path) -> None:
        assert declaration.is_file()
        step()


@dataclass(frozen=True, kw_only=True)
class ScratchMachine:
    """The whole machine."""

    platform: Platform
    store: Store

    @property
    def root(self) -> Path:
        """The tree."""
        return self.platform.layout.root

    def read_all(self) -> dict[str, Any]:
        """The whole state: the tree and what the stand-ins hold."""
        state = self.store.read()
        kept = ("tables", "guard", "ways", "settings", "active")
        return {"tree": list_tree(self.root), **{name: state[name] for name in kept}}

    def break_unit(self, unit: str) -> None:
        """Make a unit's start fail."""
        state = self.store.read()
        state["broken"].append(unit)
        self.store.path.write_text(json.dumps(state))

    def set_state(self, **values: Any) -> None:
        """Change what the stand-ins hold."""
        self.store.path.write_text(json.dumps(self.store.read() | values))

    @property
    def boots_locked(self) -> bool:
        """Whether the units, with the present files, close the lock at the next boot (or leave links down)."""
        layout = self.platform.layout
        is_wanted = layout.dropin("sysinit.target").exists() and (layout.unit_dir / KILLSWITCH_UNIT).exists()
        return is_wanted and (layout.rules_dir.exists() or layout.install_journal.exists())

    def power_cycle(self) -> None:
        """Boot: the kernel knows nothing, and systemd starts what the files say (system/units.py).

        The boot lock is skipped while there are neither rules nor a journal; if it fails, interfaces stay down. A unit
        does not start without the units that it requires (systemd.unit(5), Requires=).
        """
        layout = self.platform.layout
        locked, starts = False, True
        unit = (layout.unit_dir / KILLSWITCH_UNIT).exists()
        if layout.dropin("sysinit.target").exists() and unit:
            skipped = not (layout.rules_dir.exists() or layout.install_journal.exists())
            locked = not skipped and layout.boot_rules.is_file()
            starts = skipped or locked
        if layout.dropin(NETWORK_MANAGER).exists():
            starts = starts and unit
        active = [KILLSWITCH_UNIT] * locked + [NETWORK_MANAGER] * starts + ["systemd-resolved.service"]
        self.set_state(tables=locked, guard=False, ways=False, active=active)


def make_machine(directory: Path) -> ScratchMachine:
    """A machine with other content in the places that an installation writes to."""
    root = directory / "root"
    for path in (
        "etc",
        "usr/bin",
        "usr/lib/systemd/system/sysinit.target.d",
        "var/lib",
        "run/systemd",
        "usr/lib/sysusers.d",
    ):
        (root / path).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    # Two obstacles: a link, and a file with another owner and mode. Both must come back.
    (root / "usr/bin/psiphon-vpn").symlink_to("/opt/other/psiphon")
    other = root / "usr/lib/systemd/system/psiphon-vpn.service"
    other.write_text("[Unit]\nDescription=somebody else's\n")
    other.chmod(0o640)
    os.chown(other, 1234, 1235)
    layout = Layout(root=root)
    store = Store(directory / "state.json")
    store.path.write_text(
        json.dumps(
            {
                "tables": False,
                "guard": False,
                "ways": False,
                "active": [NETWORK_MANAGER, "systemd-resolved.service"],
                "settings": dict.fromkeys(GLOBAL_SYSCTLS, "7"),
                "broken": [],
                "stuck": [],
                "restarted": [],
                "left_at_opening": None,
            }
        )
    )
    platform = Platform(
        layout=layout,
        manager=ScratchManager(store, layout),
        kernel=ScratchKernel(store, layout),
        accounts=ScratchAccounts(layout),
        directories=ScratchDirectories(),
    )
    return ScratchMachine(platform=platform, store=store)


def list_tree(root: Path) -> dict[str, str]:
    """Every file, directory and link below a root with type, mode, owner and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = ""
        if stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"
    return found
