# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Signed server lists with the test's own keys."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from psiphon_vpn.servers.profile import Profile, compute_key_digest, make_profile

ID = "FFFFFFFFFFFFFFFF"


@dataclass(frozen=True)
class Key:
    """An RSA key pair."""

    private: str
    public: str
    """base64 of the SubjectPublicKeyInfo."""

    def sign(self, data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "key"
            path.write_text(self.private)
            argv = ["openssl", "dgst", "-sha256", "-sign", str(path)]
            return subprocess.run(argv, input=data, capture_output=True, check=True, timeout=30).stdout


@functools.cache
def make_key(number: int = 0, *, exponent: int = 3) -> Key:
    """A key for each number."""
    argv = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    argv += ["-pkeyopt", f"rsa_keygen_pubexp:{exponent}"]
    private = subprocess.run(argv, capture_output=True, check=True, timeout=60, text=True).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubout", "-outform", "DER"],
        input=private.encode(),
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    return Key(private, base64.b64encode(der).decode())


def make_test_profile(
    key: Key, *, name: str = "lab", urls: tuple[str, ...] = ("https://list.example/list",)
) -> Profile:
    return make_profile(
        name=name,
        list_urls=urls,
        osl_urls=(),
        signature_key=key.public,
        entry_signature_key="",
        propagation_channel_id=ID,
        sponsor_id=ID,
        sources={},
    )


def make_entry(number: int, *, region: str = "DE", capabilities: tuple[str, ...] = ("OSSH",), padding: int = 0) -> str:
    """A line of a list. padding: additional characters, as real entries have certificates and keys."""
    address = f"198.18.{number // 250 % 250}.{number % 250 + 1}"
    fields = {
        "ipAddress": address,
        "region": region,
        "capabilities": list(capabilities),
        "sshPort": 22,
        "number": number,
        "padding": "x" * padding,
    }
    return f"{address} 80 secret cert {json.dumps(fields)}".encode().hex()


def make_data(count: int, *, regions: tuple[str, ...] = ("DE", "NL"), padding: int = 0, first: int = 0) -> bytes:
    lines = (make_entry(first + n, region=regions[n % len(regions)], padding=padding) for n in range(count))
    return "\n".join(lines).encode()


def sign_list(data: bytes, key: Key, *, digest: str | None = None, signature: bytes | None = None) -> bytes:
    """A list as its signer publishes it, or with another digest or signature."""
    document = {
        "data": data.decode(),
        "signingPublicKeyDigest": compute_key_digest(key.public) if digest is None else digest,
        "signature": base64.b64encode(key.sign(data) if signature is None else signature).decode(),
    }
    return zlib.compress(json.dumps(document).encode())


def make_list(count: int, key: Key | None = None, *, padding: int = 0, first: int = 0) -> bytes:
    return sign_list(make_data(count, padding=padding, first=first), key or make_key())
