"""What loopback is called here. It is known by its index; root may call it, and a card, as he likes."""

import socket

from psiphon_vpn.policy import names
from psiphon_vpn.policy.values import InterfaceName


def name_loopback() -> str:
    """The name that loopback has in this network namespace, of whatever form."""
    return socket.if_indextoname(names.LOOPBACK_INDEX)


def find_plain_name() -> InterfaceName | None:
    """The name of loopback, or else of any interface, that can stand in a rule; None where there is none."""
    found = (name_loopback(), *(name for _, name in socket.if_nameindex()))
    return next((plain for name in found if (plain := InterfaceName.of(name)) is not None), None)
