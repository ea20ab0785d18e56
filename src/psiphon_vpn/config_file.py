# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration file without parsing it, and refuses one that others could have written."""

import dataclasses
import errno
import logging
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from psiphon_vpn.errors import ConfigError
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import GROUP, USER

log = logging.getLogger(__name__)

DEFAULT_PATH: Final = Path("/etc/psiphon-vpn/config.toml")
MAX_BYTES: Final = 256 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A configuration file as it was read.

    Attributes:
        content: not parsed, at most `MAX_BYTES`.
        status: owner and mode of the file that was read.
    """

    content: bytes = dataclasses.field(repr=False)
    status: os.stat_result


def read_config(path: Path, *, trusted_uids: Collection[int], directory: int | None = None) -> FoundFile | None:
    """Read a configuration file.

    Args:
        path: the file.
        trusted_uids: owners that it may have.
        directory: descriptor of the directory that it is in; with it, a link in the place of the file is refused.

    Returns:
        The file; None if it does not exist.

    Raises:
        ConfigError: it cannot be read or trusted.
    """
    # Not blocking: opening a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        if directory is None:
            descriptor = os.open(path, flags)
        else:
            descriptor = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as cause:
        if directory is not None and cause.errno == errno.ELOOP:
            raise _not_a_file(path) from cause
        raise _unreadable(path, cause) from cause
    try:
        status = os.fstat(descriptor)
        _check_file(path, status, trusted_uids)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    finally:
        os.close(descriptor)
    check_size(path, content)
    return FoundFile(content=content, status=status)


def check_size(path: Path, content: bytes) -> None:
    """Raise ConfigError if a configuration is too large."""
    if len(content) > MAX_BYTES:
        why = _("it is larger than {size} KiB").format(size=MAX_BYTES // 1024)
        raise ConfigError(path, why, _("Remove what is not a setting."))


def _give_to_service(path: Path) -> str:
    return _("Run: sudo chown {user}:{group} {path}; sudo chmod 600 {path}; sudo psiphon-vpn reload").format(
        user=USER, group=GROUP, path=path
    )


def _unreadable(path: Path, cause: OSError) -> ConfigError:
    why = _("it cannot be read ({reason})").format(reason=cause.strerror)
    if not isinstance(cause, PermissionError):
        return ConfigError(path, why, _("See what is wrong with this file or with its disk."))
    try:
        owner = path.stat().st_uid
    except PermissionError:
        why = _("the service, which is not root, may not enter the directory {path}").format(path=path.parent)
        return ConfigError(path, why, _("Run: sudo chmod 755 {path}").format(path=path.parent))
    except OSError:
        owner = os.geteuid()
    if owner == os.geteuid():
        step = _("See what else keeps this file from being read: its mode, SELinux, AppArmor.")
        return ConfigError(path, why, step)
    # Usually root: an editor replaced the file.
    name = "root" if owner == 0 else str(owner)
    why = _("it belongs to {owner}, and the service, which runs as {user}, may not read it").format(
        owner=name, user=USER
    )
    return ConfigError(path, why, _give_to_service(path))


def _not_a_file(path: Path) -> ConfigError:
    return ConfigError(path, _("it is not a file"), _("Put an ordinary file there."))


def _check_file(path: Path, status: os.stat_result, trusted_uids: Collection[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_a_file(path)
    if status.st_uid not in trusted_uids:
        why = _("it belongs to another user, who could steer the tunnel")
        raise ConfigError(path, why, f"{_('Look at what it says first.')} {_give_to_service(path)}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = _("other users may write to it and could steer the tunnel")
        raise ConfigError(path, why, _("Look at what it says, then run: sudo chmod 600 {path}").format(path=path))
    if status.st_mode & stat.S_IROTH:
        log.warning("%s may hold secrets and every user can read it; chmod 600 it", path)
