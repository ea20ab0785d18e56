# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory's own keys: one signs server lists, the other one the certificate of the host with the list.

A list is a zlib stream of a JSON object with data, signature and the digest of the key; see psiphon-tunnel-core's
common/authPackage.go. openssl(1) makes both keys for one world, and they are removed with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path

ID = "F" * 16
_SUBJECT = "/CN=the laboratory"


class ListSigner:
    """An RSA key that signs server lists. directory: for its file."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "list.key"
        # The exponent 3, as in the public network's key: a program that does not accept it fails here too.
        argv = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_pubexp:3"]
        _run_openssl([*argv, "-out", str(self._path)])
        der = _run_openssl(["pkey", "-in", str(self._path), "-pubout", "-outform", "DER"])
        self.public_key = base64.b64encode(der).decode("ascii")
        self.digest = base64.b64encode(hashlib.sha256(self.public_key.encode()).digest()).decode("ascii")

    def sign(self, entries: Iterable[str]) -> bytes:
        """A signed list. entries: hexadecimal lines."""
        data = "".join(f"{entry.strip()}\n" for entry in entries)
        signature = _run_openssl(["dgst", "-sha256", "-sign", str(self._path)], content=data.encode())
        fields = {
            "data": data,
            "signingPublicKeyDigest": self.digest,
            "signature": base64.b64encode(signature).decode("ascii"),
        }
        return zlib.compress(json.dumps(fields).encode())

    def render_profile(self, url: str) -> str:
        """A profile of the laboratory's own network, as root stores it. url: the list's address."""
        values: dict[str, object] = {
            "list_urls": [url],
            "osl_urls": [],
            "signature_key": self.public_key,
            "signature_key_digest": self.digest,
            "entry_signature_key": "",
            "propagation_channel_id": ID,
            "sponsor_id": ID,
        }
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


class TlsAuthority:
    """A certificate authority. directory: for its files and certificates."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.certificate = directory / "ca.crt"
        self._key = directory / "ca.key"
        argv = [*_request(self._key), "-x509", "-days", "30", "-subj", _SUBJECT, "-out", str(self.certificate)]
        _run_openssl([*argv, "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
        self.certificate.chmod(0o644)

    def issue(self, name: str, *addresses: str) -> tuple[Path, Path]:
        """A certificate for a host's name and addresses, and its key."""
        certificate, key, request = (self._directory / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
        _run_openssl([*_request(key), "-subj", f"/CN={name}", "-out", str(request)])
        names = ",".join([f"DNS:{name}", *(f"IP:{address}" for address in addresses)])
        extensions = f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n"
        (self._directory / "extensions").write_text(extensions, encoding="ascii")
        argv = ["x509", "-req", "-in", str(request), "-days", "30", "-out", str(certificate), "-CAcreateserial"]
        argv += ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        _run_openssl([*argv, "-extfile", str(self._directory / "extensions")])
        return certificate, key


def _request(key: Path) -> list[str]:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    return ["req", "-new", *curve, "-nodes", "-keyout", str(key)]


def _run_openssl(arguments: list[str], *, content: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=content, capture_output=True, check=True, timeout=60).stdout
