# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cards the frame guard is on, as the kernel lists it, and what that means for people."""

from collections.abc import Iterable
from typing import Final

from psiphon_vpn.i18n import _
from psiphon_vpn.linux.netlink import iterate_attributes, read_attributes
from psiphon_vpn.linux.nfnetlink import NftSocket
from psiphon_vpn.linux.nftimage import FAMILIES, NFT_MSG_GETCHAIN, find_owner
from psiphon_vpn.policy.own_tables import FRAMES
from psiphon_vpn.policy.values import InterfaceName, decode_name
from psiphon_vpn.shown import show_names

_LOAD_AGAIN: Final = "sudo systemctl reload-or-restart psiphon-guard"
"""Has the holder load its tables again, for the cards that there are now; starts it where it does not run."""
_CHAIN_TABLE, _CHAIN_HOOK, _CHAIN_POLICY = 1, 4, 5
_HOOK_NUMBER, _HOOK_DEVICE, _HOOK_DEVICES = 1, 3, 4
_NF_NETDEV_EGRESS, _NF_DROP = 1, 0


def read_guarded_cards(netlink: NftSocket) -> frozenset[str] | None:
    """The devices whose frames the frame guard drops unless one of its rules accepts them.

    Returns:
        Their names; None where the table does not stand, is dormant, or has no owner, so that anybody can flush it.

    Raises:
        OSError: the kernel does not list tables to us.
    """
    if find_owner(netlink, *FRAMES.address) is None:
        return None
    chains = netlink.dump(NFT_MSG_GETCHAIN, FAMILIES[FRAMES.family])
    return frozenset(name for chain in chains for name in _list_devices(read_attributes(chain)))


def _list_devices(chain: dict[int, bytes]) -> Iterable[str]:
    """The devices at whose egress a chain of the frame guard stands and drops (nf_tables_fill_chain_info)."""
    hook = read_attributes(chain.get(_CHAIN_HOOK, b""))
    is_ours = _read_text(chain.get(_CHAIN_TABLE, b"")) == FRAMES.name
    drops = _read_number(hook, _HOOK_NUMBER) == _NF_NETDEV_EGRESS and _read_number(chain, _CHAIN_POLICY) == _NF_DROP
    if not is_ours or not drops:
        return ()
    listed = [value for _kind, value in iterate_attributes(hook.get(_HOOK_DEVICES, b""))]
    return (_read_text(value) for value in listed or [hook.get(_HOOK_DEVICE, b"")] if value)


def _read_number(attributes: dict[int, bytes], kind: int) -> int | None:
    return int.from_bytes(attributes[kind], "big") if kind in attributes else None


def _read_text(value: bytes) -> str:
    return decode_name(value.split(b"\0")[0])


def describe_frame_guard(guarded: frozenset[str] | None, cards: Iterable[str]) -> tuple[str, str] | None:
    """State and detail of the layer.

    Args:
        guarded: what `read_guarded_cards` found.
        cards: names of the machine's cards.

    Returns:
        None where there is nothing to guard: no card, and no device in the table.
    """
    bare = sorted(set(cards) - (guarded or frozenset()))
    if not bare:
        return ("ok", _("on {names}").format(names=show_names(sorted(guarded)))) if guarded else None
    text = _("root's raw frames can leave by {names} before the service starts. {step}")
    detail = text.format(names=show_names(bare), step=explain_step(bare))
    return ("missing" if guarded is None else "incomplete"), detail


def explain_step(bare: Iterable[str]) -> str:
    """What brings the guard onto cards that it is not on, for people; a card with an odd name stands in no rule."""
    if odd := [name for name in bare if InterfaceName.of(name) is None]:
        text = _("Give {names} a name of letters, digits and . _ - alone, then: {command}")
        return text.format(names=show_names(odd), command=_LOAD_AGAIN)
    return _("Load it there: {command}").format(command=_LOAD_AGAIN)
