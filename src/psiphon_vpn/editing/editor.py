# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the editor of the user who called sudo, as that user, on a copy that only that user can read.

An editor reads a user's own files and can run any program. As root it would do that with root's rights; and the text
that it opens is one that psiphon-user could have written. So the copy is in a directory of the user's, below one where
only root can put names, and comes back like any other text that is not to be trusted.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psiphon_vpn.accounts import MAX_ID
from psiphon_vpn.config_file import MAX_BYTES
from psiphon_vpn.errors import UserError, join_line
from psiphon_vpn.i18n import _
from psiphon_vpn.run import CLEAN_ENV
from psiphon_vpn.tree_removal import remove_tree

PLACE: Final = Path("/run")
"""In memory, and root's."""
NAME: Final = "config.toml"
_CALLERS: Final[Mapping[str, str]] = {"SUDO_UID": "SUDO_GID", "PKEXEC_UID": ""}
"""Variables with uid and gid that sudo(8), run0(1) and pkexec(1) set. doas(1) sets a name, DOAS_USER."""
_CHOICES: Final = ("SUDO_EDITOR", "VISUAL", "EDITOR")
_EDITORS: Final = ("sensible-editor", "editor", "nano", "vim", "vi", "emacs")
_KEPT: Final = (
    "TERM",
    "COLORTERM",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The user who called sudo.

    Attributes:
        command: the editor and its arguments.
        environment: for it.
    """

    uid: int
    gid: int
    command: tuple[str, ...]
    environment: Mapping[str, str]


def find_caller(environment: Mapping[str, str]) -> Caller:
    """The user for whom this runs as root, and the editor of that user.

    Raises:
        UserError: there is none, or no editor.
    """
    account = _find_account(environment)
    # For setresuid(2), -1 in 32 bits means to stay what one is: root.
    if account is None or not all(0 < number <= MAX_ID for number in (account.uid, account.gid)):
        raise UserError(
            _("No editor was started"),
            _("root itself called this, and an editor must not run as root on a text that another user could write"),
            _("Call it with sudo as an ordinary user, or change single settings: psiphon-vpn config set NAME VALUE"),
        )
    env = {
        **CLEAN_ENV,
        **{name: environment[name] for name in _KEPT if name in environment},
        **account.variables,
    }
    for name in _CHOICES:
        if words := _split(environment.get(name, "")):
            return Caller(uid=account.uid, gid=account.gid, command=words, environment=env)
    for program in _EDITORS:
        if shutil.which(program, path=env["PATH"]) is not None:
            return Caller(uid=account.uid, gid=account.gid, command=(program,), environment=env)
    raise UserError(
        _("No editor was started"),
        _("there is none of {names}").format(names=", ".join(_EDITORS)),
        _("Name yours: sudo EDITOR=PROGRAM psiphon-vpn config edit"),
    )


@dataclass(frozen=True)
class _Account:
    uid: int
    gid: int
    variables: Mapping[str, str]


def _find_account(environment: Mapping[str, str]) -> _Account | None:
    """The account of the caller. One of a directory such as LDAP is not looked up: the network is locked."""
    with contextlib.suppress(KeyError, ValueError, OverflowError):
        for name, group in _CALLERS.items():
            if name in environment:
                return _read_account(int(environment[name]), environment.get(group))
        return _read_account(pwd.getpwnam(environment["DOAS_USER"]).pw_uid, None)
    return None


def _read_account(uid: int, gid: str | None) -> _Account | None:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None if gid is None else _Account(uid, int(gid), {"HOME": "/"})
    names = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name, "SHELL": entry.pw_shell}
    return _Account(uid, entry.pw_gid, names)


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def edit_copy(
    content: bytes,
    caller: Caller,
    *,
    check: Callable[[bytes], UserError | None],
    ask: Callable[[UserError], bool],
    place: Path = PLACE,
) -> bytes | None:
    """Have a copy edited until it is usable.

    Args:
        content: what is edited.
        caller: as whom.
        check: says what is wrong with a text.
        ask: shows that, and asks whether to edit again.
        place: a directory where only root can put names.

    Returns:
        The new content; None if the user gave up.

    Raises:
        UserError: the editor cannot be started, failed, or left no ordinary file.
    """
    with _make_directory(place, caller) as (path, directory):
        _write(directory, content, caller)
        while True:
            _run(caller, path / NAME)
            edited = _read(directory, caller)
            if edited == content:
                return edited
            problem = check(edited)
            if problem is None:
                return edited
            if not ask(problem):
                return None


@contextlib.contextmanager
def _make_directory(place: Path, caller: Caller) -> Iterator[tuple[Path, int]]:
    path = Path(tempfile.mkdtemp(prefix="psiphon-vpn-edit-", dir=place))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, caller.uid, caller.gid)
        yield path, descriptor
    finally:
        os.close(descriptor)
        # Its backups and swap files have the secrets too.
        with contextlib.suppress(OSError):
            remove_tree(path)


def _write(directory: int, content: bytes, caller: Caller) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(NAME, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
        os.fchown(file.fileno(), caller.uid, caller.gid)


def _run(caller: Caller, path: Path) -> None:
    # Ctrl-C is for the editor. A handler and not SIG_IGN, which the editor would inherit.
    before = signal.signal(signal.SIGINT, lambda *_args: None)
    try:
        done = subprocess.run(
            [*caller.command, str(path)],
            user=caller.uid,
            group=caller.gid,
            extra_groups=[],
            umask=0o077,
            cwd=path.parent,
            env=dict(caller.environment),
            check=False,
        )
    except OSError as error:
        why = _("{name} cannot be started: {reason}").format(name=caller.command[0], reason=error.strerror)
        raise _not_edited(why) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode != 0:
        raise _not_edited(_("{name} ended with code {code}").format(name=caller.command[0], code=done.returncode))


def _read(directory: int, caller: Caller) -> bytes:
    """What the editor left. The directory is the user's: nothing in it is opened but an ordinary file of the user's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(NAME, flags, dir_fd=directory)
    except OSError as error:
        raise _not_edited(_("it left no file ({reason})").format(reason=error.strerror)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != caller.uid or status.st_nlink != 1:
            raise _not_edited(_("it left something else than an ordinary file of yours"))
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise _not_edited(_("it is larger than {size} KiB").format(size=MAX_BYTES // 1024))
    return content


def _not_edited(why: str) -> UserError:
    return UserError(
        _("Nothing was changed"), join_line(why), _("Name another editor: sudo EDITOR=PROGRAM psiphon-vpn config edit")
    )
