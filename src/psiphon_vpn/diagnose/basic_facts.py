# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts about the machine itself, without its rules and units: each is read once, when it is first needed.

A fact that cannot be read raises `Unknowable` for every check that needs it; one that does not apply raises `Skip`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from psiphon_vpn.diagnose.no_answer import Skip, Unknowable
from psiphon_vpn.diagnose.system import Service, System
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.system import layout as places
from psiphon_vpn.system.layout import Layout

if TYPE_CHECKING:
    from psiphon_vpn.config import Settings
    from psiphon_vpn.diagnose.network import Device, Network
    from psiphon_vpn.network.uplink import Uplink

T = TypeVar("T")
PROC: Final = Path("/proc")
SYSCTLS: Final = PROC / "sys"


class fact(Generic[T]):
    """Like `cached_property`, for threads: computed once, even if it raises."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> fact[T]: ...
    @overload
    def __get__(self, instance: BasicFacts, owner: type) -> T: ...
    def __get__(self, instance: BasicFacts | None, owner: type) -> T | fact[T]:
        """Return the fact, or raise what reading it raised."""
        if instance is None:
            return self
        return instance.once(self._name, lambda: self._compute(instance))


class BasicFacts:
    """What is known about this machine.

    Args:
        system: access to the machine.
        layout: where an installation's files are.
        runtime_dir: directory of the daemon's socket; None for the layout's.
    """

    def __init__(self, system: System, layout: Layout, *, runtime_dir: Path | None = None) -> None:
        self.system = system
        self.layout = layout
        self.runtime_dir = layout.runtime_dir if runtime_dir is None else runtime_dir
        self._known: dict[str, tuple[bool, Any]] = {}
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Compute something at the first call, and return or raise the same at each further one."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._known:
                try:
                    self._known[name] = (True, compute())
                except Exception as error:  # noqa: BLE001  kept, and raised for each check that asks
                    self._known[name] = (False, error)
            good, value = self._known[name]
        if not good:
            raise value
        result: T = value
        return result

    # -- files ------------------------------------------------------------------------------------------------------

    def at(self, path: str) -> Path:
        """A path of the system with the installation."""
        return self.layout.root / path.lstrip("/")

    def exists(self, path: Path) -> bool:
        """Whether something is there, even a dangling link."""
        try:
            self.system.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Unknowable(f"{path}: {error.strerror}") from error
        return True

    def read_text(self, path: Path) -> str:
        """A text file. Raises Unknowable if it cannot be read."""
        try:
            return self.system.read(path).decode("utf-8", "replace")
        except OSError as error:
            raise Unknowable(f"{path}: {error.strerror}") from error

    def find_text(self, path: Path) -> str | None:
        """A text file; None if it does not exist."""
        try:
            return self.system.read(path).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unknowable(f"{path}: {error.strerror}") from error

    def list_names(self, path: Path) -> tuple[str, ...]:
        """Names in a directory; empty if it does not exist."""
        try:
            return self.system.list_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise Unknowable(f"{path}: {error.strerror}") from error

    def read_sysctl(self, name: str) -> str | None:
        """A kernel setting by its path below /proc/sys; None if the kernel does not have it."""
        text = self.find_text(SYSCTLS / name)
        return None if text is None else text.strip()

    @fact
    def installed(self) -> bool:
        """Whether there is an installation, complete or not."""
        place = self.layout
        markers = (place.program_manifest, place.boot_rules, place.unit_dir / places.KILLSWITCH_UNIT)
        return any(self.exists(path) for path in markers)

    @fact
    def set_up(self) -> bool:
        """Whether anything that acts was put in place: a package alone changes nothing."""
        place = self.layout
        return any(self.exists(path) for path in (place.install_journal, place.rules_dir))

    def need_installed(self) -> None:
        """Skip if nothing is installed, or nothing of it is set up."""
        if not self.installed:
            raise Skip(_("nothing is installed here"))
        if not self.set_up:
            raise Skip(_("it is not set up"))

    # -- who --------------------------------------------------------------------------------------------------------

    @fact
    def identity(self) -> Identity:
        """psiphon-user by number."""
        managers = self.system.find_network_managers()
        user = self.system.find_user(places.USER)
        if user is None:
            # Not installed, but running, as in the laboratory: use the account of the daemon that answers.
            found = self.service_or_reason
            if isinstance(found, UserError) or found.uid == 0:
                raise Skip(_("there is no user {name}").format(name=places.USER))
            return Identity(uid=found.uid, gid=found.uid, network_manager_uids=managers)
        group = self.system.find_group(places.GROUP)
        return Identity(
            uid=user.uid,
            gid=user.gid if group is None else group,
            network_manager_uids=managers,
        )

    # -- the kernel -------------------------------------------------------------------------------------------------

    @fact
    def network(self) -> Network:
        """Links, addresses, rules and routes."""
        try:
            return self.system.read_network()
        except OSError as error:
            raise Unknowable(_("netlink does not answer ({reason})").format(reason=error)) from error

    @fact
    def uplink(self) -> Uplink | None:
        """The uplink that the service would choose."""
        from psiphon_vpn.network.uplink import choose_uplink

        return choose_uplink(self.network.snapshot, self.settings_or_default.uplink)

    @fact
    def tun(self) -> Device:
        """The device with the TUN's name. Skips if there is none."""
        device = self.network.tun
        if device is None:
            raise Skip(_("there is no {name}").format(name=names.TUN_NAME))
        return device

    # -- the service ------------------------------------------------------------------------------------------------

    @fact
    def service_or_reason(self) -> Service | UserError:
        """The daemon's answer, or why it does not answer."""
        try:
            return self.system.ask_service(self.runtime_dir)
        except UserError as error:
            return error
        except OSError as error:
            raise Unknowable(str(error)) from error

    @property
    def service(self) -> Service:
        """The daemon's answer. Skips if it does not answer."""
        found = self.service_or_reason
        if isinstance(found, UserError):
            raise Skip(_("the service does not answer"))
        return found

    @property
    def state(self) -> str | None:
        """The service's state; None if it does not answer."""
        found = self.service_or_reason
        return None if isinstance(found, UserError) else str(found.status.get("state"))

    @property
    def core_pid(self) -> int:
        """The running core. Skips if it does not run."""
        pid = self.service.status.get("core_pid")
        if not isinstance(pid, int):
            raise Skip(_("the tunnel program is not running"))
        return pid

    def read_process(self, pid: int) -> dict[str, str]:
        """The lines of /proc/PID/status (proc(5)) by their name."""
        text = self.read_text(PROC / str(pid) / "status")
        return {
            key: value.strip() for key, colon, value in (line.partition(":") for line in text.splitlines()) if colon
        }

    @fact
    def settings(self) -> Settings:
        """The configuration. Raises UserError if it is unusable."""
        from psiphon_vpn.config import Settings

        try:
            content = self.system.read(self.layout.config)
        except (FileNotFoundError, NotADirectoryError):
            return Settings()
        except OSError as error:
            raise Unknowable(f"{self.layout.config}: {error.strerror}") from error
        return self.system.parse_settings(content, self.layout.config)

    @property
    def settings_or_default(self) -> Settings:
        """The configuration as far as it is usable."""
        from psiphon_vpn.config import Settings

        with contextlib.suppress(UserError, Unknowable):
            return self.settings
        return Settings()
