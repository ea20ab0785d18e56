# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages, made from the commands and the settings themselves, so that they stay in step."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from typing import Final

import click

from psiphon_vpn import PROGRAM, __version__
from psiphon_vpn.config import LOG_LEVELS, Settings
from psiphon_vpn.core import options
from psiphon_vpn.policy import names
from psiphon_vpn.system.layout import KILLSWITCH_UNIT, SERVICE_UNIT, UNIT_FILES, Layout

COMMANDS_PAGE: Final = "psiphon-vpn.8"
DAEMON_PAGE: Final = "psiphon-vpnd.8"
SETTINGS_PAGE: Final = "psiphon-vpn.toml.5"
CORE_FIELD: Final = "core_advanced"
"""The only setting with a different name in the file: the table [core.advanced]."""


def render_manual(commands: click.Group) -> dict[str, str]:
    """The pages, by file name; the program's commands are in one of them."""
    return {
        COMMANDS_PAGE: _render_commands(commands),
        DAEMON_PAGE: f".so man8/{COMMANDS_PAGE}\n",
        SETTINGS_PAGE: _render_settings(),
    }


def escape(text: str) -> str:
    """Escape text so that roff shows it literally (groff_man_style(7), "Portability")."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _page(name: str, section: int, summary: str) -> list[str]:
    title = escape(name).upper()
    return [
        f'.TH {title} {section} "" "psiphon-vpn {__version__}" "Psiphon Linux VPN Service"',
        ".SH NAME",
        f"{escape(name)} \\- {escape(summary)}",
    ]


def _render_commands(commands: click.Group) -> str:
    layout = Layout()
    context = click.Context(commands, info_name=PROGRAM)
    lines = _page(PROGRAM, 8, (commands.help or "").rstrip("."))
    lines += [".SH SYNOPSIS", f".B {escape(PROGRAM)}", "[OPTION]... COMMAND [ARGUMENT]..."]
    lines += [".SH DESCRIPTION"]
    lines += _paragraphs(
        "While there is no checked tunnel, nothing leaves this machine except what keeps its own link alive. The "
        f"kernel enforces that lock; {KILLSWITCH_UNIT} loads it before any network interface is up, and "
        f"{SERVICE_UNIT} does not lift it when it stops, restarts or fails.",
    )
    lines += [".SH OPTIONS", *_options(commands, context)]
    lines += [".SH COMMANDS"]
    for name, command in _list_commands(commands):
        child = click.Context(command, info_name=name, parent=context)
        usage = " ".join(word for word in command.collect_usage_pieces(child) if word != "[OPTIONS]")
        lines += [f".SS {escape(f'{name} {usage}'.strip())}", escape(command.help or "")]
        lines += _options(command, child)
    lines += [".SH EXIT STATUS"]
    lines += _paragraphs(
        "0: done; for status: locked. 1: it failed; for status: not locked. 2: wrong usage. 3: the service does not "
        "run. 70: a fault of this program. 77: it needs root. 78: the configuration cannot be used."
    )
    lines += [".SH FILES"]
    for path, what in (
        (layout.config, "the configuration, see psiphon-vpn.toml(5)"),
        (layout.bridges, "the bridges with guests that this machine may talk to, one per line"),
        (layout.readers, "the users that may read the status and see notifications, one per line"),
        (layout.state_dir, "data of the service and the tunnel program"),
        (layout.core_dir, "the tunnel program, and the record of its SHA-256"),
        (layout.boot_rules, f"the rules that {KILLSWITCH_UNIT} loads at boot"),
    ):
        lines += [".TP", f".I {escape(str(path))}", escape(what)]
    lines += [".SH UNITS", escape(", ".join(UNIT_FILES))]
    lines += [".SH SEE ALSO", "psiphon\\-vpn.toml(5), nft(8), systemctl(1), journalctl(1)"]
    return "\n".join(lines) + "\n"


def _list_commands(commands: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Commands with their full names; those of a group after it."""
    for name in sorted(commands.commands):
        command = commands.commands[name]
        if command.hidden:
            continue
        yield above + name, command
        if isinstance(command, click.Group):
            yield from _list_commands(command, f"{above}{name} ")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f".B {escape(record[0])}", escape(" ".join(record[1].split())))


def _paragraphs(*texts: str) -> list[str]:
    lines: list[str] = []
    for text in texts:
        lines += [".PP", escape(text)]
    return lines


def _render_settings() -> str:
    layout = Layout()
    described = describe_settings()
    lines = _page("psiphon-vpn.toml", 5, "configuration of the Psiphon VPN service")
    lines += [".SH SYNOPSIS", f".I {escape(str(layout.config))}", ".SH DESCRIPTION"]
    lines += _paragraphs(
        "A TOML file. Without a setting its default holds. A mistake is reported with its line, and the machine stays "
        "locked until it is corrected. psiphon-vpn config changes it; after a change by hand: psiphon-vpn reload. Only "
        "root and the service's user may write to it."
    )
    lines += [".SH SETTINGS"]
    for field in dataclasses.fields(Settings):
        if field.name == CORE_FIELD:
            continue
        text = described[field.name]
        if field.name == "log_level":
            text += f" One of {', '.join(LOG_LEVELS)}."
        default = "not set" if field.default is None else _toml(field.default)
        lines += [".TP", f".B {escape(field.name)}", escape(f"{text} Default: {default}.")]
    lines += [".SH THE TUNNEL CORE: [core.advanced]"]
    lines += _paragraphs(
        "Options of psiphon-tunnel-core by their own names. Those that would send traffic or addresses past the tunnel "
        "are refused, with the reason. Allowed are:",
        ", ".join(sorted(options.ALLOWED)) + ".",
    )
    lines += [".SH NOTES"]
    lines += _paragraphs(f"The tunnel's own device is {names.TUN_NAME}; there is no setting for it.")
    lines += [".SH SEE ALSO", "psiphon\\-vpn(8)"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def describe_settings() -> dict[str, str]:
    """The meaning of each setting, from the docstring of Settings."""
    text = inspect.cleandoc(Settings.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        entry = re.match(r"^    (\w+): (.*)$", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return {key: _sentence(value) for key, value in found.items()}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
