# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this machine was set up, which the journal knows: a package alone changes nothing."""

from __future__ import annotations

import enum

from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.stage import JournalError, Stage, read_stage


class SetUp(enum.Enum):
    """How far a machine is set up."""

    NO = enum.auto()
    """Nothing that acts was put in place."""
    UNFINISHED = enum.auto()
    """It was begun, and did not come to its end."""
    REMOVING = enum.auto()
    """A removal was begun, and did not come to its end. Only root can see that."""
    YES = enum.auto()
    """It is done; or whoever asks may not read that: then the service and the kernel say what holds."""


def find_set_up(layout: Layout) -> SetUp:
    """How far this machine is set up. Never raises."""
    try:
        stage = read_stage(layout.install_journal)
    except JournalError:
        return SetUp.YES  # only root may read it, or it is damaged, which every command that needs it says
    if stage is None:
        # Rules without a journal are a lost journal: the units start with either.
        return SetUp.YES if layout.rules_dir.is_dir() else SetUp.NO
    return {Stage.INSTALLING: SetUp.UNFINISHED, Stage.REMOVING: SetUp.REMOVING, Stage.INSTALLED: SetUp.YES}[stage]
