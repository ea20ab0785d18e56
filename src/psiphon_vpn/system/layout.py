# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""All paths of an installation. Only this module and `resources/` name paths on a user's machine.

Owners (R12, SECURITY.md): files that root executes or loads belong to root, below directories that only root can write
to; the tunnel core, its configuration, its data and the service's state belong to psiphon-user. The record of the
core's SHA-256, beside the core, belongs to root: psiphon-user cannot change what its program is checked against.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

USER: Final = "psiphon-user"
GROUP: Final = "psiphon-group"

KILLSWITCH_UNIT: Final = "psiphon-killswitch.service"
"""Root oneshot: plain `nft -f` of the boot rules, before network-pre.target."""
KILLSWITCH_FAILED_UNIT: Final = "psiphon-killswitch-failed.service"
"""Runs if that load fails: drops everything, and says so on the console."""
GUARD_UNIT: Final = "psiphon-guard.service"
"""Root: holds the wire guard."""
SERVICE_UNIT: Final = "psiphon-vpn.service"
"""The daemon, as psiphon-user."""
SLEEP_UNIT: Final = "psiphon-sleep.service"
"""Root oneshot: closes the tunnel before the machine sleeps, and notifies the daemon when the sleep ends."""

DROPIN: Final = "50-psiphon-vpn.conf"
"""Name of the installation's drop-ins for units of other packages."""
SERVERS_UNIT: Final = "psiphon-servers.service"
"""Root oneshot: fetches a newer server list through the open tunnel, or does nothing."""
SERVERS_TIMER: Final = "psiphon-servers.timer"
"""Starts it every few hours, at random."""

UNITS: Final = (KILLSWITCH_UNIT, KILLSWITCH_FAILED_UNIT, GUARD_UNIT, SERVICE_UNIT, SLEEP_UNIT, SERVERS_UNIT)
"""The services."""
UNIT_FILES: Final = (*UNITS, SERVERS_TIMER)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Every path of an installation below `root` ("/" on a real machine, a scratch tree in tests and packages)."""

    root: Path = Path("/")

    def locate(self, path: str) -> Path:
        """A path on the machine, below `root`."""
        return self.root / path.lstrip("/")

    # -- the program: root's --------------------------------------------------------------------------------------

    @property
    def program_dir(self) -> Path:
        """The program; nothing in it belongs to psiphon-user."""
        return self.locate("/usr/lib/psiphon-vpn")

    @property
    def python_dir(self) -> Path:
        """The packages that the launchers put on Python's path: psiphon_vpn and what it depends on."""
        return self.program_dir / "lib"

    @property
    def program_manifest(self) -> Path:
        """JSON: every installed file with SHA-256, mode and owner, for `verify`."""
        return self.program_dir / "manifest.json"

    @property
    def byte_code_record(self) -> Path:
        """JSON: the compiled files, made on this machine, in the form of the manifest's (`system/byte_code.py`)."""
        return self.program_dir / "byte_code.json"

    @property
    def rules_dir(self) -> Path:
        """The rules that root loads without Python; rendered at installation, since they have this machine's uids."""
        return self.program_dir / "rules"

    @property
    def boot_rules(self) -> Path:
        """Rules that psiphon-killswitch.service loads."""
        return self.rules_dir / "boot.nft"

    @property
    def guard_rules(self) -> Path:
        """Rules that psiphon-guard.service loads and holds."""
        return self.rules_dir / "guard.nft"

    @property
    def frame_rules(self) -> Path:
        """Frame guard that psiphon-guard.service loads and holds, after inserting the present cards."""
        return self.rules_dir / "frames.nft"

    @property
    def bridge_rules(self) -> Path:
        """Rules that psiphon-guard.service loads last: bridge guard, and the wire guard with the allowed bridges."""
        return self.rules_dir / "bridges.nft"

    @property
    def drop_rules(self) -> Path:
        """Rules for when the boot rules do not load: they accept only lo."""
        return self.rules_dir / "drop.nft"

    @property
    def guard_script(self) -> Path:
        """Script of psiphon-guard.service: a few lines of sh around nft."""
        return self.program_dir / "guard"

    @property
    def sleep_script(self) -> Path:
        """Script of psiphon-sleep.service: notifies the daemon, or closes the tunnel with nft."""
        return self.program_dir / "sleep"

    @property
    def config_template(self) -> Path:
        """Initial content of config.toml: only comments."""
        return self.program_dir / "config.toml"

    @property
    def command(self) -> Path:
        """`psiphon-vpn`."""
        return self.locate("/usr/bin/psiphon-vpn")

    @property
    def daemon(self) -> Path:
        """`psiphon-vpnd`."""
        return self.locate("/usr/sbin/psiphon-vpnd")

    @property
    def unit_dir(self) -> Path:
        """The units and the network managers' drop-ins."""
        return self.locate("/usr/lib/systemd/system")

    @property
    def user_unit_dir(self) -> Path:
        """Units of users' sessions."""
        return self.locate("/usr/lib/systemd/user")

    # -- configuration and data -----------------------------------------------------------------------------------

    @property
    def config_dir(self) -> Path:
        """Root's directory, 755."""
        return self.locate("/etc/psiphon-vpn")

    @property
    def config(self) -> Path:
        """config.toml: psiphon-user's, 600."""
        return self.config_dir / "config.toml"

    @property
    def readers(self) -> Path:
        """Root's, 644: the users that may read the status (`system/reader_list.py`)."""
        return self.config_dir / "readers"

    @property
    def bridges(self) -> Path:
        """Root's, 644: the bridges with guests that this machine may talk to (`network/bridges.py`)."""
        return self.config_dir / "bridges"

    @property
    def data_dir(self) -> Path:
        """Root's directory, 755; below it `core` (root's) and `state` (psiphon-user's)."""
        return self.locate("/var/lib/psiphon-vpn")

    @property
    def state_dir(self) -> Path:
        """The daemon's StateDirectory: intent, the core's data. psiphon-user's, 700."""
        return self.data_dir / "state"

    @property
    def install_journal(self) -> Path:
        """Root's, 600: every change of this system, written before it is made."""
        return self.data_dir / "journal.json"

    @property
    def runtime_dir(self) -> Path:
        """The daemon's RuntimeDirectory: the control socket. psiphon-user's, 755."""
        return self.locate("/run/psiphon-vpn")

    @property
    def release_record(self) -> Path:
        """Root's: who ran `release`, and when. Gone at boot. Only the kernel says whether the machine is locked."""
        return self.locate("/run/psiphon-vpn-released.json")

    @property
    def edit_lock(self) -> Path:
        """Root's, empty: whoever holds it (flock(2)) changes the configuration."""
        return self.locate("/run/psiphon-vpn-config.lock")

    # -- the tunnel core ------------------------------------------------------------------------------------------

    @property
    def core_dir(self) -> Path:
        """Root's directory: a subdirectory for each verified core, and links to two of them."""
        return self.data_dir / "core"

    @property
    def core_current(self) -> Path:
        """Symbolic link to the subdirectory in use, replaced by rename(2)."""
        return self.core_dir / "current"

    @property
    def core_previous(self) -> Path:
        """Symbolic link to the previous one, for `update --rollback`."""
        return self.core_dir / "previous"

    @property
    def core_name(self) -> Path:
        """Symbolic link by which the core gets its name in lists of processes (`core/naming.py`); root's."""
        return self.core_dir / "psiphon-tunnel-core"

    @property
    def core_binary(self) -> Path:
        """The core in use: psiphon-user's, 755, in a directory of root's."""
        return self.core_current / "psiphon-tunnel-core"

    @property
    def core_record(self) -> Path:
        """What was verified about the core in use, JSON; root's, 644."""
        return self.core_current / "record.json"

    # -- the servers: root's --------------------------------------------------------------------------------------

    @property
    def profiles_dir(self) -> Path:
        """Root's, 755: the profiles of other Psiphon networks that root trusts (`servers/profile.py`)."""
        return self.config_dir / "profiles"

    @property
    def servers_dir(self) -> Path:
        """Root's, 755: a subdirectory for each verified server list, and links to two of them (`servers/store.py`)."""
        return self.data_dir / "servers"

    @property
    def servers_current(self) -> Path:
        """Symbolic link to the list in use, replaced by rename(2)."""
        return self.servers_dir / "current"

    @property
    def servers_previous(self) -> Path:
        """Symbolic link to the previous list."""
        return self.servers_dir / "previous"

    # -- files that act on the system: root's, put in place by `setup` and `install`, never by a package -----------
    #
    # No package of any version may own one of these names: an upgrade from a package that did (0.1.0, with the names
    # psiphon-vpn.conf and zz-psiphon-vpn.conf) removes its own, and the machine has to stay locked meanwhile.

    @property
    def sysusers(self) -> Path:
        """The service's user and group (sysusers.d(5))."""
        return self.locate("/usr/lib/sysusers.d/50-psiphon-vpn.conf")

    @property
    def tmpfiles(self) -> Path:
        """The service's directories, with owners and modes (tmpfiles.d(5))."""
        return self.locate("/usr/lib/tmpfiles.d/50-psiphon-vpn.conf")

    @property
    def sysctls(self) -> Path:
        """Kernel settings from boot on (sysctl.d(5)). The name sorts after all others: the last file counts."""
        return self.locate("/usr/lib/sysctl.d/zzz-psiphon-vpn.conf")

    @property
    def modules(self) -> Path:
        """Kernel modules to load at boot (modules-load.d(5))."""
        return self.locate("/usr/lib/modules-load.d/50-psiphon-vpn.conf")

    @property
    def generator(self) -> Path:
        """Systemd runs this before any unit: loads the boot lock if an interface is up already."""
        return self.locate("/usr/lib/systemd/system-generators/psiphon-vpn")

    @property
    def boot_lock_mark(self) -> Path:
        """Stands from the boot lock's start on, and from an installation on: the generator does nothing any more."""
        return self.locate("/run/psiphon-killswitch")

    @property
    def boot_lock_failure(self) -> Path:
        """Stands while psiphon-killswitch.service has failed at this boot: network managers do not start without it."""
        return self.locate("/run/psiphon-killswitch-failed")

    @property
    def resolved_dropin(self) -> Path:
        """systemd-resolved asks the resolver in the tunnel (resolved.conf.d(5)); the last file's scalars count."""
        return self.locate("/usr/lib/systemd/resolved.conf.d/zzz-psiphon-vpn.conf")

    def dropin(self, unit: str) -> Path:
        """The installation's drop-in for another package's unit."""
        return self.unit_dir / f"{unit}.d" / DROPIN

    @property
    def session_dropin(self) -> Path:
        """The drop-in by which a graphical session starts the notifications."""
        return self.user_unit_dir / "graphical-session.target.d" / DROPIN

    # -- documents ------------------------------------------------------------------------------------------------

    @property
    def man_dir(self) -> Path:
        """Manual pages."""
        return self.locate("/usr/share/man")

    @property
    def completions(self) -> dict[str, tuple[Path, ...]]:
        """Completion files of the shells; zsh's directory depends on the distribution."""
        return {
            "bash": (self.locate("/usr/share/bash-completion/completions/psiphon-vpn"),),
            "zsh": (
                self.locate("/usr/share/zsh/site-functions/_psiphon-vpn"),
                self.locate("/usr/share/zsh/vendor-completions/_psiphon-vpn"),
            ),
            "fish": (self.locate("/usr/share/fish/vendor_completions.d/psiphon-vpn.fish"),),
        }
