# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The quick commands for click, made of the values that `quick` reads too."""

import os
from typing import Any, Final

import click

from psiphon_vpn.cli.quick_actions import ACTIONS
from psiphon_vpn.cli.quick_options import QUICK, Option, QuickCommand


def _make_parameter(option: Option) -> click.Parameter:
    if option.low is None:
        return click.Option([option.flag, option.name], is_flag=True, help=option.text())
    return click.Option(
        [option.flag, option.name],
        type=click.FloatRange(option.low, option.high),
        default=option.default,
        show_default=True,
        help=option.text(),
    )


def _make_command(command: QuickCommand) -> click.Command:
    @click.pass_obj
    def call(runtime_dir: os.PathLike[str], /, **parameters: Any) -> int:
        return ACTIONS[command.name](runtime_dir, **parameters)

    parameters: list[click.Parameter] = [_make_parameter(option) for option in command.options]
    if command.words:
        parameters.append(click.Argument(["word"], type=click.Choice(command.words)))
    return click.Command(
        command.name,
        callback=call,
        params=parameters,
        help=command.text(),
        short_help=command.short() if command.short is not None else None,
        hidden=command.hidden,
    )


COMMANDS: Final = tuple(map(_make_command, QUICK))
