# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What root and the worker exchange: a line of JSON, and after it the content of a file, byte for byte. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from psiphon_vpn.stored_files import parse_object

WORKER: Final = "psiphon_vpn.editing.worker"
READ: Final = "read"
"""All values as they are, for the program itself, if the file is usable."""
VIEW: Final = "view"
"""The values as they may be shown, and what is wrong with the file."""
CHANGE: Final = "change"
"""The same for the content after changes, and that content."""
SET: Final = "set"
UNSET: Final = "unset"


def pack(fields: Mapping[str, object], content: bytes = b"") -> bytes:
    """Put fields and a content together."""
    return json.dumps(fields).encode() + b"\n" + content


def unpack(message: bytes) -> tuple[dict[str, object], bytes]:
    """Take them apart.

    Raises:
        StoredError: the first line is not one JSON object. The only exception, whatever the bytes.
    """
    head, _newline, content = message.partition(b"\n")
    return parse_object(head), content
