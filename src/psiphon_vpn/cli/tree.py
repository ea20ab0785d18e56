"""The tree of commands, for a command that needs all of them: each of them is imported by the tree."""

import click


def find_commands() -> click.Group:
    """The program's commands, found from the one that is being carried out."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root
