# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may see the status without being root, said by `install` and `setup`."""

from __future__ import annotations

import contextlib

from psiphon_vpn.accounts import find_user_name
from psiphon_vpn.i18n import _
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.reader_list import load_readers


def describe_readers(layout: Layout, person: int | None) -> str:
    """A sentence that says who may see the status, and how to let others.

    Args:
        layout: the paths of the installation.
        person: user number of whoever reads the sentence; None if it is root itself.
    """
    path = layout.readers
    if person is None or person not in load_readers(path):
        user = _("a user") if person is None else _name(layout, person)
        return _(
            "To let {user} see 'psiphon-vpn status' and notifications without sudo: write the name into {path}, then: "
            "sudo psiphon-vpn reload"
        ).format(user=user, path=path)
    return _(
        "{user} may see 'psiphon-vpn status' without sudo and, on a desktop, gets notifications from the next login "
        "on. To let others: {path}"
    ).format(user=_name(layout, person), path=path)


def _name(layout: Layout, uid: int) -> str:
    with contextlib.suppress(OSError):
        return find_user_name(uid, root=layout.root) or str(uid)
    return str(uid)
