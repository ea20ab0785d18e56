# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Root's side: has the configuration parsed and changed without privileges, and checks the form of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from psiphon_vpn.client import clean_text
from psiphon_vpn.config import Settings, check_document
from psiphon_vpn.config_file import MAX_BYTES, check_size
from psiphon_vpn.editing.catalogue import Setting
from psiphon_vpn.editing.message import CHANGE, READ, SET, UNSET, VIEW, WORKER, pack, unpack
from psiphon_vpn.errors import EXIT_BAD_CONFIG, ConfigError, UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.stored_files import StoredError, take, take_or_none
from psiphon_vpn.unprivileged import Limits, Trouble, UnprivilegedError, run_unprivileged

_LIMITS: Final = Limits(memory=256 << 20, cpu=10, wait=60.0, output=3 * MAX_BYTES)


@dataclass(frozen=True, kw_only=True)
class View:
    """A configuration, as it may be shown.

    Attributes:
        values: of the settings that the file has, by name: as in the file, as plain text for scripts, and the value
            itself for programs, None for a secret.
        problem: why the file is not usable; None if it is.
    """

    values: Mapping[str, tuple[str, str, object]]
    problem: ConfigError | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting and what the user typed for it; None to have its default again."""

    setting: Setting | str
    typed: str | None = field(repr=False)

    @property
    def name(self) -> str:
        """Of the setting, or what was typed in the place of one."""
        return self.setting if isinstance(self.setting, str) else self.setting.name


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A configuration after changes: what to write, and what may be shown of before and after."""

    content: bytes = field(repr=False)
    before: View
    after: View


def read_settings(content: bytes, *, path: Path) -> Settings:
    """The settings of a file's content.

    Raises:
        ConfigError: it is not usable.
        UserError: there is no answer.
    """
    fields, _content = _ask(READ, {}, content, path)
    with _Form(path):
        view = _take_view(fields, path)
        document = take(fields, "document", dict)
    if view.problem is not None:
        raise view.problem
    return check_document(document, path=path)


def view_content(content: bytes, *, path: Path) -> View:
    """What a file's content says.

    Raises:
        UserError: there is no answer.
    """
    fields, _content = _ask(VIEW, {}, content, path)
    with _Form(path):
        return _take_view(fields, path)


def change_content(content: bytes, changes: Sequence[Change], *, path: Path) -> Changed:
    """The content after changes, which differs in nothing else.

    Raises:
        ConfigError: a value is refused, or the content cannot be changed. The text names no value.
        UserError: there is no answer.
    """
    listed = [[UNSET, change.name] if change.typed is None else [SET, change.name, change.typed] for change in changes]
    fields, changed = _ask(CHANGE, {"changes": listed}, content, path)
    with _Form(path):
        if (refused := _take_problem(fields, "refused", path)) is not None:
            raise refused
        if (reason := take_or_none(fields, "refused_value", str)) is not None:
            step = _("What was there is still there.")
            raise UserError(_("Nothing was changed"), clean_text(reason), step, exit_code=EXIT_BAD_CONFIG)
        before, after = _take_view(take(fields, "before", dict), path), _take_view(fields, path)
    check_size(path, changed)
    return Changed(content=changed, before=before, after=after)


class _Form:
    """Turns an answer of the wrong form into an error for the user."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, StoredError):
            raise _no_answer(self._path, str(error)) from error


def _ask(request: str, fields: Mapping[str, object], content: bytes, path: Path) -> tuple[dict[str, object], bytes]:
    try:
        answer = run_unprivileged(WORKER, [request], pack(fields, content), _LIMITS)
    except UnprivilegedError as error:
        if error.trouble is Trouble.TOO_SLOW:
            why = _("reading it took too long")
        elif error.trouble is Trouble.NOT_STARTED:
            why = _("the process without privileges that reads it cannot be started ({reason})")
        else:
            why = _("reading it ended without a result ({reason})")
        raise _no_answer(path, why.format(reason=clean_text(error.said) or error.trouble)) from error
    with _Form(path):
        return unpack(answer)


def _no_answer(path: Path, why: str) -> UserError:
    return UserError(
        _("{path} cannot be read").format(path=path),
        why,
        _("Nothing was changed. Look at what the file says, or move it away and begin with an empty one."),
    )


def _take_view(fields: Mapping[str, object], path: Path) -> View:
    values = {}
    for name, told in take(fields, "values", dict).items():
        if not isinstance(told, list) or len(told) != 3 or not all(isinstance(text, str) for text in told[:2]):
            raise StoredError("a value is of the wrong kind")
        values[clean_text(name)] = clean_text(told[0]), clean_text(told[1]), _clean(told[2])
    return View(values=values, problem=_take_problem(fields, "problem", path))


def _clean(value: object) -> object:
    """The same value with texts that are safe to show."""
    if isinstance(value, dict):
        return {clean_text(name): _clean(field) for name, field in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    return clean_text(value) if isinstance(value, str) else value


def _take_problem(fields: Mapping[str, object], name: str, path: Path) -> ConfigError | None:
    problem = take_or_none(fields, name, dict)
    if problem is None:
        return None
    why, step = (clean_text(take(problem, part, str)) for part in ("why", "next_step"))
    return ConfigError(path, why, step, line=take_or_none(problem, "line", int))
