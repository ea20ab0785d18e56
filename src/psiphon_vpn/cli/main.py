# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `psiphon-vpn`: its entry point, which turns every failure into one line and an exit code."""

import sys
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

import click

from psiphon_vpn import PROGRAM, __version__
from psiphon_vpn.cli.failures import EXIT_INTERRUPTED, guard, show_failure
from psiphon_vpn.cli.quick_options import DEBUG, DEFAULT_RUNTIME_DIR, RUNTIME_DIR
from psiphon_vpn.i18n import _

EXIT_USAGE: Final = 2


_HELP_OPTIONS: Final = ("-h", "--help")
_DEVELOP: Final = "develop"
_ONLY_IN_CHECKOUT: Final = ("install",)
HOMES: Final[dict[str, tuple[str, ...]]] = {
    "commands": ("status", "start", "system-sleep", "stop", "restart", "reload"),
    "rules": ("ruleset", "rules"),
    "notify": ("notify",),
    "update": ("update",),
    "log": ("log",),
    "manage": ("install", "setup", "uninstall", "release", "system-configure", "system-deconfigure"),
    "bridge": ("bridge",),
    "config_edit": ("config",),
    "region": ("region",),
    "bundle": ("bundle",),
    "servers": ("servers",),
    "diagnose": ("diagnose", "verify"),
    _DEVELOP: ("demo", "leaktest", "bench", "test", "package", "pin-core"),
}
"""The commands of each module of this package, which has them in COMMANDS."""


class _Commands(click.Group):
    """Imports a command's module when the command is asked for: all of them cost more time than most commands."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loaded: dict[str, click.Command] = {}
        super().__init__(*args, **options)

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All commands."""
        for home, names in HOMES.items():
            if not self._loaded.keys() >= set(names):
                self._load(home)
        return self._loaded

    @commands.setter
    def commands(self, commands: Mapping[str, click.Command]) -> None:
        self._loaded.update(commands)

    def _load(self, home: str) -> None:
        for command in import_module(f"{__package__}.{home}").COMMANDS:
            self.add_command(command)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Take a command."""
        self._loaded[name or cmd.name or ""] = cmd

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        home = next((home for home, names in HOMES.items() if cmd_name in names), None)
        if home is not None and cmd_name not in self._loaded:
            self._load(home)
        return self._loaded.get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that work here: an installed copy has no laboratory and no tests, and cannot install itself."""
        from psiphon_vpn.cli.checkout import is_checkout

        only = () if is_checkout() else (*HOMES[_DEVELOP], *_ONLY_IN_CHECKOUT)
        known = {*self._loaded, *(name for names in HOMES.values() for name in names)}
        return sorted(known.difference(only))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        from psiphon_vpn.cli.summaries import make_summaries

        known = self._loaded | make_summaries()
        listed = {name: known[name] for name in self.list_commands(ctx) if name in known}
        click.Group(commands=listed).format_commands(ctx, formatter)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": [*_HELP_OPTIONS], "max_content_width": 100},
    help=_("Sends this machine's traffic through Psiphon and lets nothing out any other way."),
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.option(
    RUNTIME_DIR,
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(DEFAULT_RUNTIME_DIR),
    show_default=True,
    help=_("Directory of the service's control socket."),
)
@click.option(DEBUG, is_flag=True, help=_("Show where in the program a failure came from."))
@click.pass_context
def cli(context: click.Context, *, runtime_dir: Path, debug: bool) -> None:
    """Hold the options that every command shares."""
    context.obj = runtime_dir
    context.meta["debug"] = debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(
    "help",
    help=_("Show this help, the help of one command, or 'stranded': what to do when offline."),
    short_help=_("Show help, of one command, or 'stranded' when offline."),
)
@click.argument("command", required=False)
@click.pass_context
def show_help(context: click.Context, *, command: str | None) -> None:
    """Print help."""
    parent = context.parent
    assert parent is not None
    if command is None:
        click.echo(parent.get_help())
        return
    if command == "stranded":
        from psiphon_vpn.cli.stranded import render_stranded

        click.echo(render_stranded(), nl=False)
        return
    found = cli.get_command(parent, command)
    if found is None:
        raise click.UsageError(_("There is no command '{command}'.").format(command=command))
    click.echo(found.get_help(click.Context(found, info_name=command, parent=parent)))


def is_for_this_machine(argv: Sequence[str]) -> bool:
    """Whether a command concerns the service on this machine, rather than the laboratory, development, or only help."""
    return not _is_only_help(argv) and not set(HOMES[_DEVELOP]).intersection(argv)


def _is_only_help(argv: Sequence[str]) -> bool:
    """Whether help is printed and nothing else: False in doubt."""
    if not argv or argv[0] in {*_HELP_OPTIONS, "help"}:
        return True
    return len(argv) == 2 and not argv[0].startswith("-") and argv[1] in _HELP_OPTIONS


def load_commands(argv: Sequence[str]) -> None:
    """Import the modules of the commands that a command line names. If it names none, see whether all are there.

    Raises:
        ImportError: one does not load, or is missing; `psiphon_vpn.system.last_resort` does without.
    """
    homes = [home for home, names in HOMES.items() if set(names).intersection(argv)]
    for home in homes:
        import_module(f"{__package__}.{home}")
    for home in () if homes else HOMES:
        _find_module(f"{__package__}.{home}")


def _find_module(name: str) -> None:
    """Raise ImportError if a module is missing. It is not imported: that costs more time than what is asked for."""
    place = [str(Path(__file__).parent)]
    if sys.modules.get(name, name) is None or PathFinder.find_spec(name, place) is None:
        raise ImportError(f"there is no module {name}", name=name)


def run_cli(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: without the program's name.

    Returns:
        The exit code: 0, the command's own, 2 for wrong usage, 70 for a fault of this program.
    """
    debug = DEBUG in argv

    def command() -> object:
        try:
            return cli.main(args=list(argv), prog_name=PROGRAM, standalone_mode=False)
        except click.ClickException as error:
            hint = _("See '{program} help'.").format(program=PROGRAM)
            show_failure(f"{error.format_message()} {hint}", debug=debug)
            return EXIT_USAGE
        except click.Abort:
            return EXIT_INTERRUPTED

    return guard(command, debug=debug)
