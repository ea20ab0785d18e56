"""The kinds of changes that there are, by the words under which the journal stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psiphon_vpn.system.change import Change, Previous
from psiphon_vpn.system.system_changes import (
    AccountMade,
    ServiceReread,
    SettingWritten,
    TablesLoaded,
    UnitsRead,
    UnitStarted,
    WaysMade,
)
from psiphon_vpn.system.tree_changes import DirectoryMade, FileWritten

KINDS: Mapping[str, type[Change]] = {
    kind.kind: kind
    for kind in (
        FileWritten,
        DirectoryMade,
        AccountMade,
        SettingWritten,
        UnitStarted,
        TablesLoaded,
        WaysMade,
        UnitsRead,
        ServiceReread,
    )
}


def restore_change(stored: Mapping[str, Any]) -> Change:
    """The change that `store` made this of.

    Raises:
        ValueError: it is none.
    """
    values = dict(stored)
    kind = KINDS.get(values.pop("kind", ""))
    if kind is None:
        raise ValueError("an unknown kind of change")
    if isinstance(values.get("previous"), dict):
        values["previous"] = Previous(**values["previous"])
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error
