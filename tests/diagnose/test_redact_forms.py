# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""No identity comes out of the redactor in any form that we know, and ordinary text stays readable."""

from __future__ import annotations

import base64
import ipaddress
import json
import quopri
import re
import unicodedata
import urllib.parse
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from psiphon_vpn.diagnose.redact import PLACEHOLDER, Redactor, harvest, list_own_texts

pytestmark = pytest.mark.requirement("R15")

KEEP = harvest(list_own_texts())
Form = Callable[[bytes], str]

# -- how bytes are written: names as UTF-8, addresses and identifiers as they are -------------------------------------
PAIRS: dict[str, Form] = {
    "hex": lambda raw: raw.hex(),
    "HEX": lambda raw: raw.hex().upper(),
    **{f"hex with {sign!r}": (lambda raw, sign=sign: raw.hex(sign)) for sign in ":-. _,"},  # type: ignore[misc]
    "hex bytes of C": lambda raw: ", ".join(f"{byte:#04x}" for byte in raw),
    "short hex bytes": lambda raw: " ".join(f"0x{byte:02X}" for byte in raw),
}
LISTS: dict[str, Form] = {
    "keyfile": lambda raw: "".join(f"{byte};" for byte in raw),
    "JSON list": lambda raw: json.dumps([*raw]),
    "numbers": lambda raw: " ".join(map(str, raw)),
    "numbers in a column": lambda raw: "\n".join(map(str, raw)),
}
CODES: dict[str, Form] = {
    "base64": lambda raw: base64.b64encode(raw).decode(),
    "base64 of URLs": lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("="),
    "base64 within more": lambda raw: base64.b64encode(b"id:" + raw + b"!").decode(),
    "base64 within others": lambda raw: base64.b64encode(b"{" + raw + b"}").decode(),
    "all bytes escaped": lambda raw: "".join(f"\\x{byte:02x}" for byte in raw),
    "all bytes in octal": lambda raw: "".join(f"\\{byte:03o}" for byte in raw),
    "all bytes in percent": lambda raw: "".join(f"%{byte:02X}" for byte in raw),
}
BYTES = {**PAIRS, **LISTS, **CODES}


def escape_systemd(raw: bytes) -> str:
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\x{byte:02x}" for byte in raw)


def escape_object_path(raw: bytes) -> str:
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"_{byte:02x}" for byte in raw)


TEXTS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "upper case": lambda text: text.upper(),
    "JSON": json.dumps,
    "quoted by Python": ascii,
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "mail": lambda text: quopri.encodestring(text.encode(), quotetabs=True).decode(),
    "systemd": lambda text: escape_systemd(text.encode()),
    "object path": lambda text: escape_object_path(text.encode()),
    "XML": lambda text: "".join(char if char.isascii() and char.isalnum() else f"&#{ord(char)};" for char in text),
    "mounts": lambda text: text.replace("\\", "\\134").replace(" ", "\\040"),
}


def is_left(form: str, shown: str) -> bool:
    """Whether the form, or more than half of it in one piece, is still shown."""
    text = PLACEHOLDER.sub("\0", shown).casefold()
    wanted = form.casefold()
    size = max(4, len(wanted) // 2 + 1)
    return any(wanted[at : at + size] in text for at in range(max(1, len(wanted) - size + 1)))


# -- what it stands in ------------------------------------------------------------------------------------------------
prose = st.sampled_from(
    ["", "", "link up, ", "rule 5070: ", "state=OPEN ", "Nov 24 23:45:01 psiphon-vpnd[7]: ", "(", '"', "\n"]
)
rest = st.sampled_from(["", "", ", done", " dev lo", " via", ")", '"', "\n", "; next", " 7 of 7"])
names = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{2,14}[a-z0-9]", fullmatch=True),
    st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=3, max_size=14),
    st.builds(
        " ".join,
        st.lists(st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=2, max_size=8), min_size=2, max_size=3),
    ),
)
KINDS = ("user", "host", "network")


def hide(redactor: Redactor, form: str, start: str, end: str) -> None:
    shown = redactor.redact(f"{start}{form}{end}")
    assert not is_left(form, shown), shown


@given(st.sampled_from(sorted(BYTES)), st.sampled_from(KINDS), names, prose, rest)
def test_no_known_name_comes_out_written_as_bytes(way: str, kind: str, name: str, start: str, end: str) -> None:
    hide(Redactor({kind: [name]}), BYTES[way](name.encode()), start, end)


@given(st.sampled_from(sorted(TEXTS)), st.sampled_from(KINDS), names, prose, rest)
def test_no_known_name_comes_out_written_with_escapes(way: str, kind: str, name: str, start: str, end: str) -> None:
    hide(Redactor({kind: [name]}), TEXTS[way](name), start, end)


def compose_half(text: str) -> str:
    """As a Vietnamese keyboard writes (Windows-1258): the letter with its circumflex or horn, then the tone mark."""
    pieces = []
    for char in unicodedata.normalize("NFC", text):
        letters = [*unicodedata.normalize("NFD", char)]
        inner = [mark for mark in letters[1:] if mark in "\u0302\u0306\u031b"]
        tones = [mark for mark in letters[1:] if mark not in inner]
        pieces += [unicodedata.normalize("NFC", "".join([letters[0], *inner])), *tones]
    return "".join(pieces)


NORMAL_FORMS: dict[str, Callable[[str], str]] = {
    "NFC": partial(unicodedata.normalize, "NFC"),
    "NFD": partial(unicodedata.normalize, "NFD"),
    "NFKC": partial(unicodedata.normalize, "NFKC"),
    "NFKD": partial(unicodedata.normalize, "NFKD"),
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    **NORMAL_FORMS,
    "half": compose_half,
    "with joiners": lambda text: text[:1] + "\u200c" + text[1:],
}
CASES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "lower": str.lower,
    "upper": str.upper,
    "title": str.title,
    "folded": str.casefold,
    "swapped": str.swapcase,
}
accented = st.text(
    st.one_of(
        st.sampled_from("éèñüåøçÅŞğİıßﬁǆŉΐᾳήệốữạđйёґזּ각한ガパبآكى"),
        st.characters(categories=["Lu", "Ll", "Lt", "Lo"]),
        st.sampled_from("abcdefghijk"),
    ),
    min_size=3,
    max_size=12,
)


@given(
    st.sampled_from(sorted(SPELLINGS)),
    st.sampled_from(sorted(SPELLINGS)),
    st.sampled_from(sorted(CASES)),
    st.tuples(st.sampled_from(sorted(TEXTS)), prose, rest),
    st.tuples(st.sampled_from(KINDS), accented),
)
def test_no_known_name_comes_out_in_another_form_of_unicode_or_case(
    known: str, reported: str, case: str, place: tuple[str, str, str], identity: tuple[str, str]
) -> None:
    (way, start, end), (kind, name) = place, identity
    spell, change_case = SPELLINGS[reported], CASES[case]
    form = TEXTS[way](spell(change_case(spell(name))))
    hide(Redactor({kind: [SPELLINGS[known](name)]}), form, start, end)


@given(
    st.sampled_from(["NFC", "NFD", "half"]),  # nobody can guess what the other two leave out
    st.sampled_from(sorted(NORMAL_FORMS)),
    st.sampled_from(["as it is", "lower", "upper", "title", "folded"]),
    st.tuples(st.sampled_from(sorted(BYTES)), prose, rest),
    st.tuples(st.sampled_from(KINDS), accented),
)
def test_no_known_name_comes_out_as_bytes_in_another_form_of_unicode_or_case(
    known: str, reported: str, case: str, place: tuple[str, str, str], identity: tuple[str, str]
) -> None:
    (way, start, end), (kind, name) = place, identity
    spell, change_case = NORMAL_FORMS[reported], CASES[case]
    form = BYTES[way](spell(change_case(spell(name))).encode())
    hide(Redactor({kind: [SPELLINGS[known](name)]}), form, start, end)


def test_a_name_in_both_forms_gets_one_placeholder_and_leaves_no_mark_behind() -> None:
    shown = Redactor({"user": ["josé"], "host": ["jose"]}).redact("josé jose\u0301 JOSÉ, JOSE\u0301")
    assert shown == "<user-1> <user-1> <user-1>, <user-1>"


@given(st.sampled_from(KINDS), st.text(st.characters(categories=["Ll", "Lo"]), min_size=3, max_size=12), prose, rest)
def test_no_known_name_comes_out_in_the_ascii_of_domains(kind: str, name: str, start: str, end: str) -> None:
    assume(not name.isascii())
    try:
        form = name.encode("idna").decode()
    except UnicodeError:
        assume(False)
    hide(Redactor({kind: [name]}), form, start, end)


@given(
    st.from_regex(r"[a-z]{4,12}(-[a-z0-9]{1,8})?", fullmatch=True), st.sampled_from(["", ".local", ".lan"]), prose, rest
)
def test_a_machines_name_goes_with_and_without_its_domain_and_cut_off(
    label: str, domain: str, start: str, end: str
) -> None:
    redactor = Redactor({"host": [f"{label}.corp.example.ir"]})
    for form in (
        label,
        label.upper(),
        f"{label}{domain}",
        label[:15].upper(),
        f"{label[:7]}+" if len(label) > 8 else label,
    ):
        hide(redactor, form, start, end)


# Addresses of others too: nothing is known of them in advance, except for forms without a fixed length.
ipv4 = st.integers(1 << 24, (224 << 24) - 1).map(ipaddress.IPv4Address)
ipv6 = st.integers(0x2000 << 112, (1 << 128) - 1).map(ipaddress.IPv6Address)
IPV4: dict[str, Callable[[ipaddress.IPv4Address], str]] = {
    "dotted": str,
    "with a port": lambda it: f"{it}:443",
    "hex": lambda it: it.packed.hex(),
    "/proc/net/tcp": lambda it: f"{it.packed[::-1].hex().upper()}:01BB",
    "hex number": lambda it: f"{int(it):#x}",
    "decimal": lambda it: f"{int(it)}",
    "octal": lambda it: f"0{int(it):o}",
    "octal parts": lambda it: ".".join(f"{byte:04o}" for byte in it.packed),
    "hex parts": lambda it: ".".join(f"{byte:#x}" for byte in it.packed),
    "in-addr.arpa": lambda it: it.reverse_pointer,
    "mapped": lambda it: f"::ffff:{it}",
    "mapped in hex": lambda it: f"::ffff:{it.packed[:2].hex()}:{it.packed[2:].hex()}",
    "6to4": lambda it: f"2002:{it.packed[:2].hex()}:{it.packed[2:].hex()}::1",
    "in a name": lambda it: "ip-" + str(it).replace(".", "-"),
    "in another name": lambda it: "ip_" + str(it).replace(".", "_"),
    "URL": lambda it: str(it).replace(".", "%2E"),
    "regular expression": lambda it: str(it).replace(".", "\\."),
}
KNOWN_IPV4: dict[str, Callable[[ipaddress.IPv4Address], str]] = {
    "other order": lambda it: f"{int.from_bytes(it.packed, 'little')}",
    "signed": lambda it: f"{int(it) - (1 << 32)}",
    "three parts": lambda it: f"{it.packed[0]}.{it.packed[1]}.{int.from_bytes(it.packed[2:], 'big')}",
    "two parts": lambda it: f"{it.packed[0]}.{int.from_bytes(it.packed[1:], 'big')}",
    **{name: (lambda it, write=write: write(it.packed)) for name, write in BYTES.items()},  # type: ignore[misc]
}
IPV6: dict[str, Callable[[ipaddress.IPv6Address], str]] = {
    "compressed": str,
    "exploded": lambda it: it.exploded,
    "upper": lambda it: str(it).upper(),
    "if_inet6": lambda it: it.packed.hex(),
    "with a zone": lambda it: f"{it}%1",
    "with a port": lambda it: f"[{it}]:443",
    "ip6.arpa": lambda it: it.reverse_pointer,
    "URL": lambda it: urllib.parse.quote(str(it), safe=""),
    "decimal": lambda it: str(int(it)),
    **{name: (lambda it, write=write: write(it.packed)) for name, write in BYTES.items()},  # type: ignore[misc]
}


@given(st.sampled_from(sorted(IPV4)), ipv4, prose, rest)
def test_no_ipv4_address_of_anybody_comes_out_in_any_form(
    way: str, address: ipaddress.IPv4Address, start: str, end: str
) -> None:
    form = IPV4[way](address)
    assume(KEEP.isdisjoint({form, form.split(":")[0]}))
    hide(Redactor(), form, start, end)


@given(st.sampled_from(sorted(KNOWN_IPV4)), ipv4, prose, rest)
def test_no_address_of_this_machine_comes_out_in_any_form(
    way: str, address: ipaddress.IPv4Address, start: str, end: str
) -> None:
    form = KNOWN_IPV4[way](address)
    assume("parts" not in way or address.packed[2])  # otherwise it could be a version number
    assume(len(form.lstrip("-")) > 4)
    hide(Redactor({"address": [str(address)]}), form, start, end)


@given(st.sampled_from(sorted(IPV6)), ipv6, prose, rest)
def test_no_ipv6_address_of_this_machine_comes_out_in_any_form(
    way: str, address: ipaddress.IPv6Address, start: str, end: str
) -> None:
    hide(Redactor({"address": [str(address)]}), IPV6[way](address), start, end)


macs = st.lists(st.integers(100, 255), min_size=6, max_size=6).map(bytes)
"""Of three digits each: of a long identifier the address is half."""
DUIDS: dict[str, Callable[[bytes], bytes]] = {
    "hardware address": lambda mac: mac,
    "client id": lambda mac: b"\x01" + mac,
    "DUID of time": lambda mac: b"\x00\x01\x00\x01\x2a\x3b\x4c\x5d" + mac,
    "DUID of hardware": lambda mac: b"\x00\x03\x00\x01" + mac,
    "EUI-64": lambda mac: bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:],
}


@given(st.sampled_from(sorted(DUIDS)), st.sampled_from(sorted(BYTES)), macs, prose, rest)
def test_no_hardware_address_comes_out_in_any_form_or_identifier(
    what: str, way: str, mac: bytes, start: str, end: str
) -> None:
    hide(Redactor({"hardware": [mac.hex(":")]}), BYTES[way](DUIDS[what](mac)), start, end)


@given(macs, prose, rest)
def test_no_hardware_address_comes_out_as_a_part_of_an_ipv6_address(mac: bytes, start: str, end: str) -> None:
    words = DUIDS["EUI-64"](mac)
    form = "fe80::" + ":".join(words[at : at + 2].hex().lstrip("0") or "0" for at in range(0, 8, 2))
    hide(Redactor(), form, start, end)


@given(st.lists(st.tuples(st.sampled_from(sorted(BYTES)), st.sampled_from(KINDS), names), min_size=2, max_size=4))
def test_several_identities_in_one_text_do_not_hide_each_other(found: list[tuple[str, str, str]]) -> None:
    redactor = Redactor({kind: [name for _, other, name in found if other == kind] for kind in KINDS})
    forms = [BYTES[way](name.encode()) for way, _, name in found]
    shown = redactor.redact(" and ".join(forms))
    assert not [form for form in forms if is_left(form, shown)]


def test_a_home_directory_tells_a_user_that_no_file_of_accounts_names() -> None:
    shown = Redactor().redact("cwd /home/parisa/bin, user=parisa2 host=nightingale ssid=Azadi")
    assert not re.search(r"parisa|nightingale|Azadi", shown)


def test_the_positive_control_finds_what_is_left() -> None:
    assert is_left("706172697361", "x 706172697361 y")
    assert is_left("706172697361", "x <secret-1>697361 2 7061726973")
    assert not is_left("706172697361", "x <secret-1> y")


# -- what must stay ---------------------------------------------------------------------------------------------------
WORDS = (
    "the lock holds nothing leaves this machine tunnel open closed verifying connecting uplink interface kernel rules "
    "refused dropped accepted feedback defaced facade decade abba cafe dead beef effaced added faded bead".split()
)
sentences = st.lists(
    st.one_of(
        st.sampled_from(WORDS),
        st.integers(0, 9_999_999).map(str),
        st.builds("{}.{}.{}".format, st.integers(0, 40), st.integers(0, 99), st.integers(0, 20)),
        st.builds("{:02}:{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)),
        st.builds("{}%".format, st.integers(0, 100)),
        st.builds("{} ms".format, st.floats(0, 1000, allow_nan=False).map(lambda value: round(value, 1))),
        st.sampled_from(["psiphon-vpn.service", "PsiphonTUN", "table 20595", "0x50530000", "exit code 77", "R4, R16"]),
    ),
    min_size=1,
    max_size=12,
)


@given(sentences)
def test_ordinary_words_versions_times_and_counts_stay(words: list[str]) -> None:
    text = " ".join(words)
    # Seven or more small numbers in a row may be an address in bytes; here they stand between words.
    assert Redactor({"user": ["parisa"], "host": ["nightingale"], "address": ["192.0.2.77"]}).redact(text) == text


def test_a_report_of_this_programs_own_texts_stays_as_it_is() -> None:
    redactor = Redactor(
        {"user": ["parisa"], "host": ["nightingale"], "address": ["192.0.2.77"], "hardware": ["00:11:22:33:44:55"]}
    )
    changed = [text for text in list_own_texts() if redactor.redact(text) != text]
    assert not changed
