# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`config`: shows and changes the settings. Root does not parse the file (`psiphon_vpn.editing`)."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from psiphon_vpn.cli.config_place import find_place
from psiphon_vpn.errors import DaemonDownError, NotRootError, UserError
from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    from psiphon_vpn.editing.catalogue import Setting
    from psiphon_vpn.editing.requests import Change, Changed, View

FILE: Final = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    hidden=True,
    help=_("Another file than the installed one, for the laboratory."),
)
_TERMINAL_LINE: Final = 4095
"""Letters that a terminal passes on in one line (N_TTY_BUF_SIZE, termios(3))."""
_MAX_TYPED: Final = 256 * 1024


def _complete_name(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from psiphon_vpn.editing.catalogue import list_settings

    return [setting.name for setting in list_settings() if setting.name.startswith(begun)]


@click.group(help=_("Show and change the settings."))
def config() -> None:
    """A group of commands."""


@config.command(
    help=_("Print the value of a setting, or its default. Exit code 1: it has neither."),
    short_help=_("Print the value of a setting, or its default."),
)
@click.argument("name", shell_complete=_complete_name)
@FILE
def get(*, name: str, path: Path | None) -> int:
    """Print one value for scripts."""
    from psiphon_vpn.editing.catalogue import find_setting

    need_root("config get")
    setting = find_setting(name)
    view = _view(path)
    if setting.name in view.values:
        click.echo(view.values[setting.name][1])
        return 0
    default = find_default(setting)
    if default is None:
        text = (
            _("{name} is not set; the tunnel program decides.") if setting.is_core_option else _("{name} is not set.")
        )
        click.echo(text.format(name=setting.name), err=True)
        return 1
    click.echo(default if isinstance(default, str) else json.dumps(default))
    return 0


@config.command(
    "set",
    help=_(
        "Set NAME to VALUE, or several as NAME=VALUE, and apply it at once. Without VALUE it is read: typed, or from "
        "standard input."
    ),
    short_help=_("Set NAME to VALUE, and apply it at once."),
    context_settings={"ignore_unknown_options": True},
)
@click.argument("words", nargs=-1, required=True, metavar="NAME [VALUE] | NAME=VALUE...", shell_complete=_complete_name)
@FILE
@click.pass_obj
def set_(runtime_dir: Path, *, words: tuple[str, ...], path: Path | None) -> int:
    """Set one or several."""
    need_root("config set")
    return change(runtime_dir, find_changes(words), path=path)


@config.command(
    help=_("Take settings out of the file, so that their defaults hold, and apply it at once."),
    short_help=_("Go back to the defaults of settings, applied at once."),
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_complete_name)
@FILE
@click.pass_obj
def unset(runtime_dir: Path, *, names: tuple[str, ...], path: Path | None) -> int:
    """Unset; also what is no setting, since a wrong name must be removable."""
    from psiphon_vpn.editing.requests import Change

    need_root("config unset")
    return change(runtime_dir, [Change(setting=name, typed=None) for name in names], path=path)


@config.command(help=_("Show the settings. No secret is shown."))
@click.option("--all", "show_all", is_flag=True, help=_("Also what each means, and the options that are not set."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
@FILE
def show(*, show_all: bool, as_json: bool, path: Path | None) -> int:
    """Show what holds."""
    need_root("config show")
    view = _view(path)
    click.echo(_render_json(view) if as_json else _render(view, show_all=show_all))
    if view.problem is not None:
        raise view.problem
    return 0


@config.command(
    help=_("Open the file in your editor, check the result, and apply it. The editor does not run as root."),
    short_help=_("Open the file in your editor, and apply it."),
)
@FILE
@click.pass_obj
def edit(runtime_dir: Path, *, path: Path | None) -> int:
    """Edit a copy as the calling user."""
    from psiphon_vpn.editing.editor import edit_copy, find_caller
    from psiphon_vpn.editing.files import open_exclusively, read_file
    from psiphon_vpn.editing.requests import view_content

    need_root("config edit")
    caller = find_caller(os.environ)
    place = find_place(path, runtime_dir)
    found = read_file(place)
    before = b"" if found is None else found.content

    def check(content: bytes) -> UserError | None:
        return view_content(content, path=place.path).problem

    def ask(problem: UserError) -> bool:
        say(_describe_mistake(problem), err=True)
        return click.confirm(_("Edit it again? If not, nothing is changed."), default=True, err=True)

    after = edit_copy(before, caller, check=check, ask=ask)
    if after is None or after == before:
        click.echo(_("Nothing was changed."))
        return 0
    with open_exclusively(place) as opened:
        if opened.content != before:
            question = _("The file was changed meanwhile by something else. Put yours in its place?")
            click.confirm(question, default=False, abort=True, err=True)
        opened.replace(after)
    return apply(runtime_dir)


@config.command(
    help=_("Say whether the configuration, or another FILE, is usable; if not, which line is wrong, and why."),
    short_help=_("Say whether the configuration is usable."),
)
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def check(*, file: Path | None) -> int:
    """Check without changing anything."""
    from psiphon_vpn.editing.requests import view_content

    if file is None:
        need_root("config check")
    path, content = _read_installed() if file is None else (file, _read_given(file))
    if content is None:
        click.echo(_("There is no file {path}: the defaults hold.").format(path=path))
        return 0
    if (problem := view_content(content, path=path).problem) is not None:
        raise problem
    click.echo(_("{path} is usable.").format(path=path))
    return 0


def _read_installed() -> tuple[Path, bytes | None]:
    from psiphon_vpn.editing.files import read_file

    place = find_place(None)
    found = read_file(place)
    return place.path, None if found is None else found.content


def _read_given(path: Path) -> bytes:
    from psiphon_vpn.config_file import MAX_BYTES
    from psiphon_vpn.stored_files import StoredError, read_stored

    try:
        return read_stored(path, high=MAX_BYTES)
    except (OSError, StoredError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(_("Cannot check {path}").format(path=path), why, _("Look at its name.")) from error


# -- for this and other commands ---------------------------------------------------------------------------------------


def say(text: str, *, err: bool = False) -> None:
    """Print a sentence, with whole words at the width of a terminal."""
    from psiphon_vpn.cli.view import find_width
    from psiphon_vpn.wrapping import wrap

    is_terminal = (sys.stderr if err else sys.stdout).isatty()
    click.echo("\n".join(wrap(text, find_width())) if is_terminal else text, err=err)


def need_root(command: str) -> None:
    """Raise NotRootError for other users."""
    if os.geteuid() != 0:
        raise NotRootError(f"psiphon-vpn {command}")


def change(runtime_dir: Path, changes: Sequence[Change], *, path: Path | None, meaning: str = "") -> int:
    """Make changes, say them, and apply them.

    Args:
        runtime_dir: of the service that is to use them.
        changes: made all together or not at all.
        path: another file than the installed one.
        meaning: what they mean, said once they are made.
    """
    from psiphon_vpn.editing.files import open_exclusively
    from psiphon_vpn.editing.requests import change_content

    place = find_place(path, runtime_dir)
    with open_exclusively(place) as opened:
        changed = change_content(opened.content, changes, path=place.path)
        new, old = changed.after.problem, changed.before.problem
        if new is not None and old is None:
            raise UserError(
                _("Nothing was changed"),
                new.reason,
                _(
                    "Correct the value. To set values that belong together: "
                    "sudo psiphon-vpn config set NAME=VALUE NAME=VALUE"
                ),
                exit_code=new.exit_code,
            )
        if changed.content == opened.content:
            say(_("Nothing to change: it is so already."))
            if new is not None:
                raise new
            return 0
        opened.replace(changed.content)
    for line in filter(None, (meaning, *_describe_changes(changed, changes))):
        say(line)
    if new is not None:
        # Something else in the file is still wrong: with it, the service would lock until it is corrected.
        raise new
    return apply(runtime_dir)


def apply(runtime_dir: Path) -> int:
    """Have the service read the configuration, and show what it makes of it."""
    from psiphon_vpn import client
    from psiphon_vpn.cli import view

    try:
        found = client.send_command(runtime_dir, "reload")
    except DaemonDownError as error:
        say(_("The service reads it when it starts: {why}. {step}").format(why=error.why, step=error.next_step))
        return 0
    click.echo(_("The service uses it now."))
    click.echo(view.render_text(found))
    return 0


def find_default(setting: Setting) -> Any:
    """The default of a setting; None if it has none."""
    from psiphon_vpn.config import Settings

    return None if setting.is_core_option else getattr(Settings(), setting.name)


def find_changes(words: Sequence[str]) -> list[Change]:
    """What `config set` is to do.

    Raises:
        UserError: there is no such setting, or a secret is on the command line.
    """
    from psiphon_vpn.editing.catalogue import find_setting
    from psiphon_vpn.editing.requests import Change

    if "=" not in words[0]:
        setting = find_setting(words[0])
        if len(words) == 1:
            return [Change(setting=setting, typed=_ask_for_value(setting))]
        pairs = [(setting, " ".join(words[1:]))]
    else:
        pairs = []
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                text = _("'{word}' is not of the form NAME=VALUE.")
                raise click.UsageError(text.format(word=name[:60]))
            pairs.append((find_setting(name.strip()), value))
    for setting, value in pairs:
        if setting.may_be_secret(value):
            raise UserError(
                _("{name} was not changed").format(name=setting.name),
                _("it may be a secret, and every user of this machine can read a command line while the command runs"),
                _(
                    "Leave the value out and type it when asked, or send it from a file: "
                    "sudo psiphon-vpn config set {name} < FILE; remove it from your shell's history too."
                ).format(name=setting.name),
            )
    return [Change(setting=setting, typed=value) for setting, value in pairs]


def _ask_for_value(setting: Setting) -> str:
    from psiphon_vpn.editing.catalogue import PROXY

    if not sys.stdin.isatty():
        return sys.stdin.read(_MAX_TYPED)
    hide = setting.is_secret or setting.name == PROXY
    prompt = _("{name} (not shown while you type)") if hide else "{name}"
    typed: str = click.prompt(
        prompt.format(name=setting.name), hide_input=hide, default="", show_default=False, err=True
    )
    if len(typed.encode()) >= _TERMINAL_LINE:
        raise UserError(
            _("{name} was not changed").format(name=setting.name),
            _("a terminal passes on no more than {count} letters of a line").format(count=_TERMINAL_LINE),
            _("Send it from a file: sudo psiphon-vpn config set {name} < FILE").format(name=setting.name),
        )
    return typed


def _describe_mistake(problem: UserError) -> str:
    from psiphon_vpn.errors import ConfigError

    if isinstance(problem, ConfigError) and problem.line is not None:
        return _("Line {line}: {why}.").format(line=problem.line, why=problem.reason.rstrip("."))
    return _("It is not usable: {why}.").format(why=problem.why.rstrip("."))


def _describe_changes(changed: Changed, changes: Sequence[Change]) -> list[str]:
    lines = []
    for change in changes:
        name = change.name.rpartition(".")[2]
        before, after = (view.values.get(name, (None,))[0] for view in (changed.before, changed.after))
        if after is None:
            lines.append(_("{name}: no longer set").format(name=change.name))
        elif before in {None, after}:
            lines.append(f"{name} = {after}")
        else:
            lines.append(_("{name} = {after} (it was {before})").format(name=name, after=after, before=before))
    return lines


def _view(path: Path | None) -> View:
    from psiphon_vpn.editing.files import read_file
    from psiphon_vpn.editing.requests import View, view_content

    place = find_place(path)
    found = read_file(place)
    return View(values={}, problem=None) if found is None else view_content(found.content, path=place.path)


def _render_json(view: View) -> str:
    from psiphon_vpn.editing.catalogue import list_settings

    shown = {}
    for setting in list_settings():
        is_set = setting.name in view.values
        value = view.values[setting.name][2] if is_set else find_default(setting)
        shown[setting.name] = {"value": value, "set": is_set, "core": setting.is_core_option}
    return json.dumps(shown)


def _render(view: View, *, show_all: bool) -> str:
    from psiphon_vpn.cli.view import find_width
    from psiphon_vpn.editing.catalogue import list_settings

    settings = list(list_settings())
    lines = []
    meanings = _find_meanings() if show_all else {}
    width = max(len(setting.name) for setting in settings if not setting.is_core_option)
    for setting in settings:
        if setting.is_core_option:
            continue
        shown = view.values.get(setting.name, (None,))[0]
        default = find_default(setting)
        text = (
            _("{value} (default)").format(value=_("not set") if default is None else json.dumps(default))
            if shown is None
            else shown
        )
        lines.append(f"{setting.name.ljust(width)} = {text}")
        if show_all:
            lines += textwrap.wrap(
                meanings.get(setting.name, ""), find_width(), initial_indent="    ", subsequent_indent="    "
            )
    core = [setting for setting in settings if setting.is_core_option]
    lines += ["", _("[core.advanced], the tunnel program's own options:")]
    present = [f"{setting.name} = {view.values[setting.name][0]}" for setting in core if setting.name in view.values]
    lines += present or [_("none is set")]
    if show_all:
        missing = ", ".join(setting.name for setting in core if setting.name not in view.values)
        lines += ["", *textwrap.wrap(_("Not set: {names}").format(names=missing), find_width(), break_on_hyphens=False)]
    return "\n".join(lines)


def _find_meanings() -> dict[str, str]:
    from psiphon_vpn.system.manual import describe_settings

    return describe_settings()


COMMANDS: Final = (config,)
