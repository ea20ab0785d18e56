"""The server entry: how a client is told where its server is. The text form is the real one, with fields of our own.

It is the hexadecimal form of "ip webport websecret webcert {json}". The stand-in's JSON has its port, the SHA-256
fingerprint of its certificate (pinned, no authority involved) and the exit region.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerEntry:
    """A stand-in server. address: IPv4 literal. fingerprint: SHA-256 of the certificate's DER form, hexadecimal."""

    address: str
    port: int
    secret: str
    fingerprint: str
    region: str


def encode_server_entry(entry: ServerEntry) -> str:
    """The entry as one hexadecimal line."""
    fields = {
        "ipAddress": entry.address,
        "region": entry.region,
        "capabilities": ["STANDIN"],
        "configurationVersion": 0,
        "standinPort": entry.port,
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
            port=int(fields["standinPort"]),
            secret=secret,
            fingerprint=str(fields["standinFingerprint"]),
            region=str(fields["region"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("not a server entry of a stand-in server") from error
