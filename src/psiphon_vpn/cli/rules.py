"""`ruleset`: the policy's own texts, for review and for loading without Python."""

import click

from psiphon_vpn.i18n import _

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
    """Render a table; the base table is that of the locked state, which needs to know nothing of the machine."""
    from psiphon_vpn.linux.identity import find_network_managers
    from psiphon_vpn.policy.base import build_base_table
    from psiphon_vpn.policy.guards import build_wire_guard
    from psiphon_vpn.policy.model import Identity, Policy, State

    number = _find_uid() if uid is None else uid
    identity = Identity(uid=number, gid=number, network_manager_uids=find_network_managers())
    if table == "guard":
        click.echo(build_wire_guard(identity).render(), nl=False)
    else:
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
