# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The server entry, by which a client finds its server. The text has the real format, with additional fields.

It is the hexadecimal form of "ip webport websecret webcert {json}". The stand-in's JSON has a port for each of its
protocols, the SHA-256 fingerprint of its certificate (pinned, without a certificate authority) and the egress region.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerEntry:
    """A stand-in server.

    address: IP literal. ports: by protocol (OSSH, TLS-OSSH). fingerprint: SHA-256 of the certificate's DER form,
    hexadecimal.
    """

    address: str
    ports: Mapping[str, int]
    secret: str
    fingerprint: str
    region: str


def encode_server_entry(entry: ServerEntry) -> str:
    """The entry as one hexadecimal line."""
    fields = {
        "ipAddress": entry.address,
        "region": entry.region,
        "capabilities": [protocol.removesuffix("-OSSH") for protocol in entry.ports],
        "configurationVersion": 0,
        "standinPorts": dict(entry.ports),
        "standinFingerprint": entry.fingerprint,
    }
    return f"{entry.address} 0 {entry.secret} 0 {json.dumps(fields)}".encode().hex()


def decode_server_entry(text: str) -> ServerEntry:
    """Read an entry. Raises ValueError if it is malformed or not a stand-in's."""
    try:
        address, _, secret, _, blob = bytes.fromhex(text.strip()).decode().split(" ", 4)
        fields = json.loads(blob)
        return ServerEntry(
            address=address,
            ports={str(name): int(port) for name, port in fields["standinPorts"].items()},
            secret=secret,
            fingerprint=str(fields["standinFingerprint"]),
            region=str(fields["region"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a server entry of a stand-in server") from error


def set_region(text: str, region: str) -> str:
    """Any server entry, a real one too, with a region put in. Raises ValueError if it is malformed."""
    *legacy, blob = bytes.fromhex(text.strip()).decode().split(" ", 4)
    return " ".join([*legacy, json.dumps({**json.loads(blob), "region": region})]).encode().hex()
