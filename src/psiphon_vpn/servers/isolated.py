# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Verifies a signed list without parsing anything of it here: two processes that can do nothing else read it.

The first opens the file and may be taken over by it; it only hands out bytes. Whether the profile's key has signed
these bytes says openssl(1), where no list is parsed and which no process of another's privileges can reach
(`signature.py`). The second reads entries, of a verified list only; the form of its answer is checked.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from psiphon_vpn.core.options import TUNNEL_PROTOCOLS
from psiphon_vpn.i18n import _
from psiphon_vpn.servers import entries, signed_list
from psiphon_vpn.servers.entries import ListSummary
from psiphon_vpn.servers.errors import ListError, ListFlaw, advise_again
from psiphon_vpn.servers.profile import Profile
from psiphon_vpn.servers.signature import CheckerError, verify_signature
from psiphon_vpn.servers.signed_list import MAX_INFLATED, MAX_SIGNED, NotOpenedError
from psiphon_vpn.stored_files import StoredError, parse_object, take
from psiphon_vpn.unprivileged import Limits, UnprivilegedError, run_unprivileged

_OPEN_LIMITS: Final = Limits(memory=512 << 20, output=MAX_INFLATED + 4096)
_READ_LIMITS: Final = Limits(memory=768 << 20, cpu=60, wait=120.0, output=4 << 20)


@dataclass(frozen=True, kw_only=True)
class VerifiedList:
    """A list whose signature is right, or entries that root vouches for.

    Attributes:
        sha256: SHA-256 of the file, in hexadecimal.
        data_sha256: SHA-256 of the signed bytes in it. Anybody can pack these otherwise, and has another file.
        summary: what is in it.
        entries_text: the entries, one a line, for the core.
    """

    sha256: str
    data_sha256: str
    summary: ListSummary
    entries_text: bytes = field(repr=False)


def read_signed_list(content: bytes, profile: Profile) -> VerifiedList:
    """Verify a signed list and count what is in it. Takes about a second for 2,000 servers.

    Args:
        content: the file.
        profile: whose key must have signed it.

    Raises:
        ListError: it is not used, by `flaw`.
    """
    if len(content) > MAX_SIGNED:
        raise explain(ListFlaw.TOO_LARGE)
    try:
        answer = run_unprivileged(signed_list.__name__, (), content, _OPEN_LIMITS)
        digest, signature, data = signed_list.read_answer(answer)
    except UnprivilegedError as error:
        raise explain_trouble(error) from error
    except NotOpenedError as refused:
        raise explain(refused.flaw, content=content) from refused
    if not hmac.compare_digest(digest.encode(), profile.key_digest.encode()):
        raise explain(ListFlaw.WRONG_KEY)
    try:
        is_signed = verify_signature(data, signature, profile.signature_key)
    except CheckerError as error:
        raise explain_checker(error) from error
    if not is_signed:
        raise explain(ListFlaw.BAD_SIGNATURE)
    return _read_entries(data, hashlib.sha256(content).hexdigest())


def read_bare_entries(content: bytes) -> VerifiedList:
    """Read entries that nobody has signed: every line must be one.

    Raises:
        ListError: it is not used, by `flaw`.
    """
    if len(content) > MAX_INFLATED:
        raise explain(ListFlaw.TOO_LARGE)
    if not content.strip():
        raise explain(ListFlaw.EMPTY)
    found = _read_entries(content, hashlib.sha256(content).hexdigest())
    if found.summary.unreadable:
        raise explain(ListFlaw.MALFORMED_ENTRY)
    return found


def _read_entries(data: bytes, sha256: str) -> VerifiedList:
    try:
        answer = run_unprivileged(entries.__name__, (), data, _READ_LIMITS)
    except UnprivilegedError as error:
        raise explain_trouble(error) from error
    try:
        fields = parse_object(answer)
        bad = _take_numbers(fields)
        summary = ListSummary(
            entries=_take_count(fields, "entries"),
            by_region=_take_counts(fields, "by_region", _is_region),
            by_protocol=_take_counts(fields, "by_protocol", TUNNEL_PROTOCOLS.__contains__),
            duplicates=_take_count(fields, "duplicates"),
            unreadable=len(bad),
        )
    except StoredError as error:
        raise explain(ListFlaw.MALFORMED_ENTRY) from error
    if summary.entries < 1:
        raise explain(ListFlaw.MALFORMED_ENTRY if bad else ListFlaw.EMPTY)
    digest = hashlib.sha256(data).hexdigest()
    return VerifiedList(sha256=sha256, data_sha256=digest, summary=summary, entries_text=_leave_out(data, bad))


def _leave_out(data: bytes, bad: frozenset[int]) -> bytes:
    """The data without bad lines and empty ones, which would end the core's import."""
    lines = (line.strip() for number, line in enumerate(data.split(b"\n")) if number not in bad)
    return b"".join(line + b"\n" for line in lines if line)


def _take_numbers(fields: dict[str, object]) -> frozenset[int]:
    found = take(fields, "bad", list)
    if not all(type(number) is int for number in found):
        raise StoredError("bad is malformed")
    return frozenset(found)


def _take_count(fields: dict[str, object], name: str) -> int:
    if not 0 <= (count := take(fields, name, int)) <= MAX_INFLATED:
        raise StoredError(f"{name} is malformed")
    return count


def _take_counts(fields: dict[str, object], name: str, is_known: Callable[[str], bool]) -> dict[str, int]:
    """Counts by names, which are shown to people: only those that the process has to choose from."""
    found = take(fields, name, dict)
    if not all(is_known(key) for key in found):
        raise StoredError(f"{name} is malformed")
    return {key: _take_count(found, key) for key in found}


def _is_region(text: str) -> bool:
    return entries.REGION.fullmatch(text) is not None


def explain_trouble(error: UnprivilegedError) -> ListError:
    """The reading process gave no answer."""
    return ListError(
        ListFlaw.CHECKER,
        _("the process that reads it without privileges gave no result ({trouble})").format(trouble=error.trouble),
        _("Run it again; if that does not help, make memory free, and see that setpriv works."),
    )


def explain_checker(error: CheckerError) -> ListError:
    """openssl(1) did not decide."""
    return ListError(
        ListFlaw.CHECKER,
        _("the program that verifies signatures, openssl, is missing or does not work ({reason})").format(reason=error),
        _("Install the package openssl, and run it again; the list in use stays in use."),
    )


def explain(flaw: ListFlaw, *, content: bytes = b"") -> ListError:
    """A flaw of the file in words."""
    if flaw is ListFlaw.NOT_A_LIST:
        return ListError(flaw, _recognise(content), advise_again())
    whys = {
        ListFlaw.TRUNCATED: _("its end is missing: it did not arrive whole"),
        ListFlaw.DAMAGED: _("it begins like a signed list, and what follows is not one"),
        ListFlaw.TOO_LARGE: _("it is larger than a list can be ({size} MiB)").format(size=MAX_INFLATED >> 20),
        ListFlaw.WRONG_KEY: _("it names another key than the one that this machine trusts"),
        ListFlaw.BAD_SIGNATURE: _("its signature is wrong: somebody changed it, or it was damaged on the way"),
        ListFlaw.EMPTY: _("there is no server in it"),
        ListFlaw.MALFORMED_ENTRY: _("a server entry in it is malformed"),
        ListFlaw.UNSIGNED: _("it has server entries that nobody has signed"),
        ListFlaw.UNREADABLE: _("it cannot be read"),
        ListFlaw.OTHER_PROFILE: _("it was verified with the key of another network than the configured one"),
    }
    steps = {
        ListFlaw.WRONG_KEY: _("If it is of another network, root can trust that: sudo psiphon-vpn servers trust FILE"),
        ListFlaw.OTHER_PROFILE: _("Get the list of the configured network: sudo psiphon-vpn servers refresh"),
        ListFlaw.UNSIGNED: _("If you trust whom they come from: sudo psiphon-vpn servers import --unsigned FILE"),
    }
    return ListError(flaw, whys[flaw], steps.get(flaw, advise_again()))


def _recognise(content: bytes) -> str:
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return _("it is a web page, such as a network's sign-in page or an error message")
    if start.startswith((b"{", b"[")):
        return _("it is a text in JSON, no signed list")
    if start.startswith((b"\x1f\x8b", b"pk\x03\x04")):
        return _("it is an archive, no signed list")
    if start.startswith(b"\x7felf"):
        return _("it is a program, no signed list")
    return _("it is no signed list")


__all__ = ["MAX_SIGNED", "VerifiedList", "explain", "read_bare_entries", "read_signed_list", "verify_signature"]
