# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A signed list: verified here, opened and read by processes that can do nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import subprocess
import zlib
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server_lists import make_data, make_entry, make_key, make_list, make_test_profile, sign_list

from psiphon_vpn.servers import entries, isolated, signature, signed_list
from psiphon_vpn.servers.errors import QUESTIONS, ListError, ListFlaw
from psiphon_vpn.servers.isolated import explain, read_bare_entries, read_signed_list
from psiphon_vpn.servers.signature import CheckerError, KeyFormError, check_key, read_key, verify_signature
from psiphon_vpn.servers.signed_list import NotOpenedError, open_list

KEY, OTHER = make_key(), make_key(1)
LAB = make_test_profile(KEY)
GOOD = make_list(6, KEY)


def test_a_list_is_verified_and_counted() -> None:
    found = read_signed_list(GOOD, LAB)
    assert found.sha256 == hashlib.sha256(GOOD).hexdigest()
    assert found.entries_text == make_data(6) + b"\n"
    assert (found.summary.entries, found.summary.by_region) == (6, {"DE": 3, "NL": 3})
    assert (found.summary.by_protocol, found.summary.duplicates) == ({"OSSH": 6}, 0)


@pytest.mark.parametrize("exponent", [3, 65537])
def test_keys_like_psiphons_with_exponent_3_verify(exponent: int) -> None:
    key = make_key(7, exponent=exponent)
    assert verify_signature(b"data", key.sign(b"data"), key.public)
    assert not verify_signature(b"dada", key.sign(b"data"), key.public)


def test_openssl_keeps_the_privileges_of_its_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it ran as nobody, or as psiphon-user like the core, any process with that uid could make it accept a list."""
    program = tmp_path / "openssl"
    program.write_text(f"#!/bin/sh\ngrep -E '^(Uid|CapPrm)' /proc/self/status >{tmp_path}/seen\necho Verified OK\n")
    program.chmod(0o755)
    monkeypatch.setattr(signature, "CLEAN_ENV", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert verify_signature(b"data", SIGNATURE, KEY.public)
    own = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(("Uid", "CapPrm"))]
    assert (tmp_path / "seen").read_text().splitlines() == own


@pytest.mark.parametrize("ending", ["exit 0", "exit 1", "echo Verification failure; exit 3", "kill -9 $$", "echo ok"])
def test_an_openssl_that_does_not_decide_is_said_to_be_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str
) -> None:
    program = tmp_path / "openssl"
    program.write_text(f"#!/bin/sh\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setattr(signature, "CLEAN_ENV", {"PATH": str(tmp_path)})
    with pytest.raises(CheckerError):
        verify_signature(b"data", SIGNATURE, KEY.public)


def test_without_openssl_a_list_is_refused_with_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> bool:
        raise CheckerError("No such file or directory: 'openssl'")

    monkeypatch.setattr(isolated, "verify_signature", fail)
    with pytest.raises(ListError, match="Install the package openssl") as caught:
        read_signed_list(GOOD, LAB)
    assert caught.value.flaw is ListFlaw.CHECKER


SIGNATURE = KEY.sign(b"data")
MODULUS = int.from_bytes(read_key(KEY.public)[-261:-5], "big")
"""Of a key with 2048 bits and the exponent 65537, which takes the last 5 bytes."""
FEW = settings(max_examples=25)
"""Each example starts openssl."""


@FEW
@given(st.binary(max_size=600))
def test_no_signature_but_the_key_s_own_is_right(signature: bytes) -> None:
    assert not verify_signature(b"data", signature, KEY.public)


@FEW
@given(st.integers(0, 8 * len(SIGNATURE) - 1))
def test_a_signature_with_another_bit_is_wrong(bit: int) -> None:
    number = int.from_bytes(SIGNATURE, "big") ^ (1 << bit)
    assert not verify_signature(b"data", number.to_bytes(len(SIGNATURE), "big"), KEY.public)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"\0" + SIGNATURE,
        bytes(256),
        (1).to_bytes(256, "big"),
        (MODULUS - 1).to_bytes(256, "big"),
        MODULUS.to_bytes(256, "big"),
        # The same number modulo the modulus: another encoding of the same signature.
        (int.from_bytes(SIGNATURE, "big") + MODULUS).to_bytes(257, "big"),
    ],
    ids=range(7),
)
def test_odd_signatures_are_wrong(signature: bytes) -> None:
    assert not verify_signature(b"data", signature, KEY.public)


def test_a_hash_behind_short_padding_is_wrong_although_a_cube_root_makes_one_for_exponent_3() -> None:
    """Bleichenbacher's forgery of 2006: code that parses the padding instead of comparing it accepts this."""
    key = make_key(7, exponent=3)
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(b"data").digest()
    begin = b"\0\1" + b"\xff" * 8 + b"\0" + info
    wanted = int.from_bytes(begin + b"\xff" * (256 - len(begin)), "big")
    low, high = 0, 1 << 700
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= wanted else (low, middle - 1)
    assert (low**3).to_bytes(256, "big").startswith(begin), "the positive control"
    assert not verify_signature(b"data", low.to_bytes(256, "big"), key.public)


@FEW
@given(st.integers(0, 3000))
def test_a_key_that_is_cut_off_is_refused_in_one_way(place: int) -> None:
    content = base64.b64decode(KEY.public)
    with pytest.raises(KeyFormError):
        check_key(base64.b64encode(content[: place % len(content)]).decode())


def test_keys_that_can_verify_are_accepted_and_small_or_other_ones_are_not(tmp_path: Path) -> None:
    check_key(KEY.public)
    for options in (["RSA", "-pkeyopt", "rsa_keygen_bits:1024"], ["ed25519"]):
        secret = str(tmp_path / options[0])
        subprocess.run(["openssl", "genpkey", "-algorithm", *options, "-out", secret], check=True, capture_output=True)
        public = ["openssl", "pkey", "-in", secret, "-pubout", "-outform", "DER"]
        content = subprocess.run(public, check=True, capture_output=True).stdout
        with pytest.raises(KeyFormError):
            check_key(base64.b64encode(content).decode())


@given(st.text())
def test_what_is_no_key_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(KeyFormError):
        check_key(text)


@given(st.sampled_from(sorted(ListFlaw)) | st.text())
def test_a_process_that_was_taken_over_can_only_refuse(word: str) -> None:
    """It cannot ask the user a question, nor cause an unexpected error."""
    with pytest.raises(NotOpenedError) as caught:
        signed_list.read_answer(b"-" + word.encode("utf-8", "surrogatepass"))
    assert explain(caught.value.flaw, content=b"x").flaw not in QUESTIONS


BOMB = zlib.compress(b"x" * (signed_list.MAX_INFLATED + 1))
DATA = make_data(3)


def wrap(document: object) -> bytes:
    return zlib.compress(json.dumps(document).encode())


def change(**fields: object) -> bytes:
    return wrap(json.loads(zlib.decompress(make_list(3, KEY))) | fields)


BAD: Final = [
    (b"", ListFlaw.EMPTY),
    (GOOD[:-1], ListFlaw.TRUNCATED),
    (GOOD[:100], ListFlaw.TRUNCATED),
    (GOOD[:1], ListFlaw.TRUNCATED),
    (GOOD[:60] + bytes([GOOD[60] ^ 0xFF]) + GOOD[61:], ListFlaw.DAMAGED),
    (GOOD + b"x", ListFlaw.DAMAGED),
    (b"<!DOCTYPE html><html>Sign in", ListFlaw.NOT_A_LIST),
    (b'{"data": ""}', ListFlaw.NOT_A_LIST),
    (gzip.compress(b"{}", mtime=0), ListFlaw.NOT_A_LIST),
    (b"\x7fELF", ListFlaw.NOT_A_LIST),
    (make_data(3), ListFlaw.UNSIGNED),
    (BOMB, ListFlaw.TOO_LARGE),
    (bytes(signed_list.MAX_SIGNED + 1), ListFlaw.TOO_LARGE),
    (make_list(3, OTHER), ListFlaw.WRONG_KEY),
    (sign_list(DATA, OTHER, digest=LAB.key_digest), ListFlaw.BAD_SIGNATURE),
    (sign_list(DATA, KEY, signature=KEY.sign(DATA + b"\n")), ListFlaw.BAD_SIGNATURE),
    (sign_list(DATA, KEY, signature=b"x" * 256), ListFlaw.BAD_SIGNATURE),
    (sign_list(DATA, KEY, signature=b"short"), ListFlaw.BAD_SIGNATURE),
    (sign_list(DATA, KEY, digest="AAAA"), ListFlaw.DAMAGED),
    (change(extra=""), ListFlaw.DAMAGED),
    (change(data=5), ListFlaw.DAMAGED),
    (change(signature="!"), ListFlaw.DAMAGED),
    (change(data="ä"), ListFlaw.DAMAGED),
    (wrap(["data"]), ListFlaw.DAMAGED),
    (zlib.compress(b'{"data":"","data":"","signature":"","signingPublicKeyDigest":""}'), ListFlaw.DAMAGED),
    (zlib.compress(b"[" * 100_000), ListFlaw.DAMAGED),
    (sign_list(b"", KEY), ListFlaw.EMPTY),
    (sign_list(b"\n\n", KEY), ListFlaw.EMPTY),
    (sign_list(b"zz\nnothing", KEY), ListFlaw.MALFORMED_ENTRY),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_is_a_typed_error_in_one_sentence(number: int) -> None:
    content, flaw = BAD[number]
    with pytest.raises(ListError) as caught:
        read_signed_list(content, LAB)
    assert caught.value.flaw is flaw
    assert caught.value.why
    assert caught.value.next_step.endswith((".", "FILE"))


def test_lines_that_would_end_the_cores_import_are_left_out_and_counted() -> None:
    lines = [make_entry(0), "nonsense", make_entry(1), "00" * 20, "", make_entry(1), "aa" * 40_000]
    found = read_signed_list(sign_list("\n".join(lines).encode(), KEY), LAB)
    assert found.entries_text.decode().split() == [lines[0], lines[2], lines[5]]
    assert (found.summary.entries, found.summary.duplicates, found.summary.unreadable) == (2, 1, 3)


def test_of_bare_entries_every_line_must_be_one() -> None:
    assert read_bare_entries(DATA + b"\r\n").summary.entries == 3
    for content, flaw in (
        (DATA + b"\nzz", ListFlaw.MALFORMED_ENTRY),
        (b" \n", ListFlaw.EMPTY),
        (b"<html>", ListFlaw.MALFORMED_ENTRY),
        (GOOD, ListFlaw.MALFORMED_ENTRY),
    ):
        with pytest.raises(ListError) as caught:
            read_bare_entries(content)
        assert caught.value.flaw is flaw


def test_capabilities_are_counted_as_the_protocols_that_they_stand_for() -> None:
    wanted = {
        "OSSH": "OSSH",
        "SSH": "SSH",
        "TLS": "TLS-OSSH",
        "QUICv1": "QUIC-OSSH",
        "UNFRONTED-MEEK-HTTPS-PASSTHROUGH-v2": "UNFRONTED-MEEK-HTTPS-OSSH",
        "SHADOWSOCKS": "SHADOWSOCKS-OSSH",
        "INPROXY-WEBRTC-OSSH": "INPROXY-WEBRTC-OSSH",
        "ssh-api-requests": None,
    }
    line = make_entry(0, region="de", capabilities=tuple(wanted)).encode()
    summary, bad = entries.read_entries([line])
    assert summary.by_protocol == dict.fromkeys(sorted(filter(None, wanted.values())), 1)
    assert (summary.by_region, bad) == ({}, [])


# -- whatever the bytes ------------------------------------------------------------------------------------------------


def open_or_refuse(content: bytes) -> ListFlaw | None:
    try:
        open_list(content)
    except NotOpenedError as refused:
        return refused.flaw
    return None


@given(st.binary(max_size=4000))
def test_any_bytes_are_refused_with_a_flaw(content: bytes) -> None:
    assert open_or_refuse(content) in {
        ListFlaw.EMPTY,
        ListFlaw.TRUNCATED,
        ListFlaw.DAMAGED,
        ListFlaw.NOT_A_LIST,
        ListFlaw.UNSIGNED,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_stream_contains_it_is_refused_with_a_flaw(inflated: bytes) -> None:
    assert open_or_refuse(zlib.compress(inflated)) is ListFlaw.DAMAGED


@given(
    st.fixed_dictionaries(
        {
            "data": st.text() | json_values,
            "signingPublicKeyDigest": st.just(LAB.key_digest) | st.text(),
            "signature": st.binary(max_size=2000).map(lambda raw: base64.b64encode(raw).decode()) | st.text(),
        }
    )
)
def test_a_document_is_opened_exactly_or_refused(document: dict[str, object]) -> None:
    content = wrap(document)
    try:
        digest, signature, data = open_list(content)
    except NotOpenedError as refused:
        assert refused.flaw is ListFlaw.DAMAGED
        assert signed_list.work((), content) == b"-damaged"
    else:
        assert (digest, data.decode()) == (document["signingPublicKeyDigest"], document["data"])
        assert base64.b64encode(signature).decode() == document["signature"]
        assert signed_list.read_answer(signed_list.work((), content)) == (digest, signature, data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_never_gives_other_data(place: int, difference: int) -> None:
    content = GOOD[:place] + bytes([GOOD[place] ^ difference]) + GOOD[place + 1 :]
    try:
        digest, signature, data = open_list(content)
    except NotOpenedError:
        return
    # Adler-32 at its end makes this nearly impossible; the signature is what counts.
    assert (digest, signature, data) == open_list(GOOD) or not verify_signature(data, signature, LAB.signature_key)


@given(st.integers(0, len(GOOD) - 1))
def test_a_part_of_a_list_is_truncated_or_empty(length: int) -> None:
    assert open_or_refuse(GOOD[:length]) in {ListFlaw.TRUNCATED, ListFlaw.EMPTY}


@given(st.binary(max_size=200))
def test_any_answer_of_the_opening_process_is_taken_apart_or_refused(answer: bytes) -> None:
    try:
        signed_list.read_answer(answer)
    except NotOpenedError as refused:
        assert refused.flaw in ListFlaw


@given(
    st.lists(
        st.binary(max_size=200)
        | st.text().map(lambda text: text.encode().hex().encode())
        | json_values.map(lambda value: f"198.18.0.1 1 2 3 {json.dumps(value)}".encode().hex().encode())
        | st.dictionaries(st.sampled_from(["ipAddress", "region", "capabilities"]), json_values).map(
            lambda value: f"198.18.0.1 1 2 3 {json.dumps(value)}".encode().hex().encode()
        )
    )
)
def test_whatever_the_lines_each_is_an_entry_or_bad(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    summary, bad = entries.read_entries(lines)
    empty = sum(not line.strip() for line in lines)
    assert summary.entries + summary.duplicates + len(bad) + empty == len(lines)
    assert json.loads(entries.work((), b"\n".join(lines)))["entries"] == summary.entries
