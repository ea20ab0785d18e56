"""The command `psiphon-vpn`: its entry point, which turns every failure into one line and an exit code."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from psiphon_vpn import PROGRAM, __version__
from psiphon_vpn.cli import bridge, commands, develop, diagnose, manage
from psiphon_vpn.errors import UserError, join_line
from psiphon_vpn.i18n import _

DEFAULT_RUNTIME_DIR: Final = Path("/run/psiphon-vpn")
EXIT_USAGE: Final = 2
EXIT_FAULT: Final = 70
"""sysexits.h EX_SOFTWARE."""
EXIT_INTERRUPTED: Final = 130


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=_("Sends this machine's traffic through Psiphon and lets nothing out any other way."),
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_RUNTIME_DIR,
    show_default=True,
    help=_("Directory of the service's control socket."),
)
@click.option("--debug", is_flag=True, help=_("Show where in the program a failure came from."))
@click.pass_context
def cli(context: click.Context, *, runtime_dir: Path, debug: bool) -> None:
    """Hold the options that every command shares."""
    context.obj = runtime_dir
    context.meta["debug"] = debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("help", help=_("Show this help, the help of one command, or 'stranded': what to do when offline."))
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


for _command in (*commands.COMMANDS, *manage.COMMANDS, *bridge.COMMANDS, *diagnose.COMMANDS, *develop.COMMANDS):
    cli.add_command(_command)


def is_for_this_machine(argv: Sequence[str]) -> bool:
    """Whether a command concerns the service on this machine, rather than the laboratory or development."""
    return not {command.name for command in develop.COMMANDS}.intersection(argv)


def run_cli(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: without the program's name.

    Returns:
        The exit code: 0, the command's own, 2 for wrong usage, 70 for a fault of this program.
    """
    debug = "--debug" in argv
    try:
        code = cli.main(args=list(argv), prog_name=PROGRAM, standalone_mode=False)
    except UserError as error:
        _show_failure(str(error), debug=debug)
        return error.exit_code
    except click.ClickException as error:
        hint = _("See '{program} help'.").format(program=PROGRAM)
        _show_failure(f"{error.format_message()} {hint}", debug=debug)
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone, as with `| head`: nothing more to print.
        return _silence_stdout()
    except Exception as fault:  # noqa: BLE001  the last line of defence: a user gets a sentence, not a traceback
        name = type(fault).__name__
        text = _("This is a fault in {program} ({name}). Run it again with --debug and report its output.")
        _show_failure(text.format(program=PROGRAM, name=name), debug=debug)
        return EXIT_FAULT
    return code if isinstance(code, int) else 0


def _silence_stdout() -> int:
    import os
    import sys

    # Python flushes standard output at exit and would complain again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _show_failure(text: str, *, debug: bool) -> None:
    if debug:
        click.echo(traceback.format_exc(), err=True)
    click.echo(click.style(join_line(text), fg="red"), err=True)
