# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tree of commands, for a command that needs all of them: each of them is imported by the tree."""

import click


def find_commands() -> click.Group:
    """The program's commands, found from the one that is being carried out."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root
