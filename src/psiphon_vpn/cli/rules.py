# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`ruleset` prints the policy's rules, to review or to load without Python; `rules` says what may pass, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from psiphon_vpn.i18n import _

if TYPE_CHECKING:
    from psiphon_vpn.policy.match import Permit

_DEFAULT_USER = "psiphon-user"


@click.command(help=_("Print the rules of the lock as text that 'nft -f' loads."))
@click.option(
    "--table",
    type=click.Choice(["base", "guard"]),
    default="base",
    show_default=True,
    help=_("The base rules as they are loaded at boot, or the wire guard."),
)
@click.option("--uid", type=click.IntRange(1, 2**32 - 2), help=_("Number of the user that may use the wire."))
def ruleset(*, table: str, uid: int | None) -> int:
    """Render a table. The base table is the one of the locked state, which does not depend on the machine."""
    from psiphon_vpn.linux.identity import find_network_managers
    from psiphon_vpn.policy.model import Identity, Policy, State

    number = _find_uid() if uid is None else uid
    identity = Identity(uid=number, gid=number, network_manager_uids=find_network_managers())
    if table == "guard":
        from psiphon_vpn.policy.guards import build_wire_guard

        click.echo(build_wire_guard(identity).render(), nl=False)
    else:
        from psiphon_vpn.policy.base import build_base_table

        click.echo(build_base_table(Policy(state=State.LOCKED, identity=identity)).render_replacement(), nl=False)
    return 0


def _find_uid() -> int:
    from psiphon_vpn.accounts import find_user
    from psiphon_vpn.errors import UserError

    if (user := find_user(_DEFAULT_USER)) is not None:
        return user.uid
    raise UserError(
        _("The rules cannot be printed"),
        _("there is no user '{name}' on this machine").format(name=_DEFAULT_USER),
        _("Name a user by number: --uid 990"),
    )


@click.group(help=_("What may pass, and why."))
def rules() -> None:
    """A group of commands."""


@rules.command(
    help=_("Explain what may leave, enter the tunnel, come in or be forwarded; or only the given rows."),
    short_help=_("Explain what may pass, or only the given rows."),
)
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object for programs."))
def explain(*, names: tuple[str, ...], as_json: bool) -> int:
    """Print the rows from which every layer's rules are made, in words."""
    from psiphon_vpn.errors import UserError
    from psiphon_vpn.policy.permits import PERMITS

    known = {row.name: row for row in PERMITS}
    for name in names:
        if name not in known:
            from psiphon_vpn.policy.values import show_name

            raise UserError(
                _("Nothing is explained"),
                _("there is no row '{name}'").format(name=show_name(name)),
                _("All of them: psiphon-vpn rules explain"),
            )
    rows = [known[name] for name in dict.fromkeys(names)] or list(PERMITS)
    if as_json:
        import json

        click.echo(json.dumps({"rows": [_to_json(row) for row in rows]}, indent=2))
    else:
        click.echo("\n\n".join(_show(row) for row in rows))
    return 0


def _to_json(row: Permit) -> dict[str, object]:
    from psiphon_vpn.cli.explain import describe_layer, describe_match, find_section

    return {
        "name": row.name,
        "way": find_section(row),
        "who": _(row.match.owner),
        "what": _(row.what),
        "values": describe_match(row.match),
        "states": [str(state) for state in row.states],
        "layers": {layer.layer: describe_layer(row, layer) for layer in row.layers},
        "wider_in": [layer.layer for layer in row.wider_in],
        "within": row.within.name if row.within else None,
        "why": _(row.why),
        "shows": _(row.shows) if row.shows else "",
        "comment": row.comment,
    }


def _show(row: Permit) -> str:
    from psiphon_vpn.cli.explain import describe_layers, describe_match, describe_states, find_section

    lines = (
        (_("way"), find_section(row)),
        (_("who"), _(row.match.owner)),
        (_("values"), describe_match(row.match)),
        (_("when"), describe_states(row)),
        (_("layers"), describe_layers(row)),
        (_("wider in"), ", ".join(layer.layer for layer in row.wider_in)),
        (_("why"), _(row.why)),
        (_("shows"), _(row.shows) if row.shows else _("nothing to your network")),
        (_("in nft list"), row.comment),
    )
    width = max(len(label) for label, _text in lines)
    shown = (f"  {label:<{width}}  {text}" for label, text in lines if text)
    return "\n".join([f"{row.name}: {_(row.what)}", *shown])


COMMANDS: Final = (ruleset, rules)
