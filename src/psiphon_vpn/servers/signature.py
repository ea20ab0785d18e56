# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a key has signed bytes, by openssl(1): RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2.2).

openssl keeps the privileges of the process that asks, root or the daemon with its capabilities. As nobody, or as
psiphon-user without a capability like the core, it could be made to say yes by any process with the same number:
ptrace(2) and /proc/PID/mem are open to a process of the same user that has all capabilities of the other. Nothing of
the list is parsed there: the data is hashed, the signature is one number, and the key is root's or the package's.
"""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
import textwrap
from typing import Final

from psiphon_vpn.memory_files import memory_file
from psiphon_vpn.run import CLEAN_ENV

_RSA_ENCRYPTION: Final = bytes.fromhex("300d06092a864886f70d0101010500")
"""AlgorithmIdentifier of an RSA key (RFC 3279, 2.3.1): the object identifier, and NULL."""
_HEAD: Final = 32
"""Bytes of a SubjectPublicKeyInfo before its key, at most."""
_LEAST_BITS, _MOST_BITS = 2048, 16384
_MODULUS: Final = re.compile(r"Modulus=([0-9A-F]+)")
_SECONDS: Final = 60


class KeyFormError(ValueError):
    """This is no RSA key that can verify lists. The text is the reason, in English."""


class CheckerError(Exception):
    """openssl(1) is missing, or does not work. The text is its own, in English."""


def read_key(text: str) -> bytes:
    """Take a key's text for what openssl reads: the form alone, without openssl.

    Args:
        text: base64 of its SubjectPublicKeyInfo (RFC 5280, 4.1), in DER.

    Raises:
        KeyFormError: it is not base64, or not of an RSA key.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFormError("it is not base64") from error
    if _RSA_ENCRYPTION not in content[:_HEAD]:
        raise KeyFormError("it is no RSA key")
    return content


def check_key(text: str) -> None:
    """Accept a key that openssl can verify lists with.

    Raises:
        KeyFormError: it is anything else, or too small.
        CheckerError: openssl does not work.
    """
    code, output, _said = _run_openssl(("rsa", "-pubin", "-inform", "DER", "-noout", "-modulus"), read_key(text))
    found = _MODULUS.fullmatch(output.strip())
    if code != 0 or found is None:
        raise KeyFormError("openssl reads no RSA key in it")
    if not _LEAST_BITS <= int(found[1], 16).bit_length() <= _MOST_BITS:
        raise KeyFormError("its modulus is too small or too large")


def verify_signature(data: bytes, signature: bytes, key: str) -> bool:
    """Whether a key has signed data. Anything that openssl does not say yes to is a no.

    Args:
        data: the signed bytes.
        signature: as many bytes as the key's modulus; openssl ignores what follows them.
        key: base64 of its SubjectPublicKeyInfo.

    Raises:
        CheckerError: openssl does not work.
    """
    if not signature:
        return False  # openssl would say that it cannot read it
    lines = "\n".join(textwrap.wrap(key, 64))
    pem = f"-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n".encode("ascii", "replace")
    with memory_file(pem) as key_file, memory_file(signature) as signature_file:
        arguments = ("dgst", "-sha256", "-verify", _path(key_file), "-signature", _path(signature_file))
        code, output, said = _run_openssl(arguments, data, pass_fds=(key_file, signature_file))
    if code == 0 and output.strip() == "Verified OK":
        return True
    # The same exit code stands for a wrong signature and for an openssl that could not decide.
    if code == 1 and output.strip().lower() == "verification failure":
        return False
    raise CheckerError(said)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _run_openssl(arguments: tuple[str, ...], content: bytes, pass_fds: tuple[int, ...] = ()) -> tuple[int, str, str]:
    """Run openssl; returns code, output, and the last line of its errors."""
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            input=content,
            capture_output=True,
            env=dict(CLEAN_ENV),
            cwd="/",
            pass_fds=pass_fds,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckerError(str(error)) from error
    said = done.stderr.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
    return done.returncode, done.stdout.decode("ascii", "replace"), said
