"""Where the parts of an installation are: the one place that names a path on a user's machine.

Three kinds of owners (R12, SECURITY.md): what root executes or loads belongs to root, below directories that only root
can write to; the tunnel core, its configuration, its data and the service's state belong to psiphon-user. The record of
the core's SHA-256 belongs to root, beside the core: psiphon-user cannot change what its program is checked against.
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
"""What happens when that load fails: drop everything, say so on the console."""
GUARD_UNIT: Final = "psiphon-guard.service"
"""Root: holds the wire guard."""
SERVICE_UNIT: Final = "psiphon-vpn.service"
"""The daemon, as psiphon-user."""

UNITS: Final = (KILLSWITCH_UNIT, KILLSWITCH_FAILED_UNIT, GUARD_UNIT, SERVICE_UNIT)

NETWORK_MANAGER_UNITS: Final = (
    "systemd-networkd.service",
    "NetworkManager.service",
    "networking.service",
    "ifup@.service",
    "dhcpcd.service",
    "wpa_supplicant.service",
    "iwd.service",
    "connman.service",
)
"""What brings interfaces up: each gets a drop-in that requires the boot lock, so that without it they stay down."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Every path of an installation below `root` ("/" on a real machine, a scratch tree in tests and packages)."""

    root: Path = Path("/")

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    # -- the program: root's --------------------------------------------------------------------------------------

    @property
    def program_dir(self) -> Path:
        """Our own program; nothing in it is psiphon-user's."""
        return self._at("/usr/lib/psiphon-vpn")

    @property
    def python_dir(self) -> Path:
        """The packages that the launchers put on Python's path: psiphon_vpn and what it depends on."""
        return self.program_dir / "lib"

    @property
    def program_manifest(self) -> Path:
        """JSON: every installed file with SHA-256, mode and owner. What `verify` compares with."""
        return self.program_dir / "manifest.json"

    @property
    def rules_dir(self) -> Path:
        """The texts that root loads without Python; rendered at install, since they hold this machine's uids."""
        return self.program_dir / "rules"

    @property
    def boot_rules(self) -> Path:
        """What psiphon-killswitch.service loads."""
        return self.rules_dir / "boot.nft"

    @property
    def guard_rules(self) -> Path:
        """What psiphon-guard.service loads and holds."""
        return self.rules_dir / "guard.nft"

    @property
    def drop_rules(self) -> Path:
        """What is loaded when the boot rules cannot be: nothing but lo."""
        return self.rules_dir / "drop.nft"

    @property
    def command(self) -> Path:
        """`psiphon-vpn`."""
        return self._at("/usr/bin/psiphon-vpn")

    @property
    def daemon(self) -> Path:
        """`psiphon-vpnd`."""
        return self._at("/usr/sbin/psiphon-vpnd")

    @property
    def unit_dir(self) -> Path:
        """The units and the network managers' drop-ins."""
        return self._at("/usr/lib/systemd/system")

    @property
    def user_unit_dir(self) -> Path:
        """Units of users' sessions."""
        return self._at("/usr/lib/systemd/user")

    # -- what the user configures, and what the service keeps -----------------------------------------------------

    @property
    def config_dir(self) -> Path:
        """Root's directory, 755."""
        return self._at("/etc/psiphon-vpn")

    @property
    def config(self) -> Path:
        """config.toml: psiphon-user's, 600."""
        return self.config_dir / "config.toml"

    @property
    def data_dir(self) -> Path:
        """Root's directory, 755; below it `core` (root's) and `state` (psiphon-user's)."""
        return self._at("/var/lib/psiphon-vpn")

    @property
    def state_dir(self) -> Path:
        """The daemon's StateDirectory: intent, the core's data. psiphon-user's, 700."""
        return self.data_dir / "state"

    @property
    def install_journal(self) -> Path:
        """Root's, 600: what was changed on this system, written before it is changed."""
        return self.data_dir / "journal.json"

    @property
    def runtime_dir(self) -> Path:
        """The daemon's RuntimeDirectory: the control socket. psiphon-user's, 755."""
        return self._at("/run/psiphon-vpn")

    @property
    def release_record(self) -> Path:
        """Root's: who ran `release`, and when. Gone at boot. Says nothing about being locked: only the kernel does."""
        return self._at("/run/psiphon-vpn-released.json")

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
        """Symbolic link to the one before, for `update --rollback`."""
        return self.core_dir / "previous"

    @property
    def core_binary(self) -> Path:
        """The core in use: psiphon-user's, 755, in a directory of root's."""
        return self.core_current / "psiphon-tunnel-core"

    @property
    def core_record(self) -> Path:
        """What was verified about the core in use, JSON; root's, 644."""
        return self.core_current / "record.json"
