# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing that identifies somebody comes out of the redactor, whatever it is and wherever it stands."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psiphon_vpn.diagnose.redact import PLACEHOLDER, Redactor, harvest, is_punctuation, list_own_texts

pytestmark = pytest.mark.requirement("R15")

KEEP = harvest(list_own_texts())
before = st.sampled_from(["", " ", "from ", "addr=", '"', "(", "[", "daddr ", "host:", "/", "\n", "x="])
after = st.sampled_from(["", " ", ",", '"', ")", "]", "/24", ":443", "\n", ".", "; drop"])
hexes = st.text("0123456789abcdef", min_size=2, max_size=2)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).flatmap(
    lambda address: st.sampled_from([str(address), address.exploded, str(address).upper()])
)
macs = st.builds(
    lambda parts, separator: separator.join(parts), st.lists(hexes, min_size=6, max_size=6), st.sampled_from(":-")
)
labels = st.from_regex(r"[a-z][a-z0-9-]{0,14}[a-z0-9]", fullmatch=True)
domains = st.builds(
    lambda names, top: ".".join([*names, top]),
    st.lists(labels, min_size=1, max_size=3),
    st.sampled_from(["com", "org", "ir", "py", "so", "sh", "network", "services", "lan", "xn--p1ai", "service"]),
)
tokens = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_=-", min_size=20, max_size=400)
words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)
networks = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=32)


def bare(text: str) -> str:
    """The redacted text without placeholders."""
    return PLACEHOLDER.sub("\0", text)


@given(before, ipv4, after)
def test_no_ipv4_address_comes_out(start: str, address: str, end: str) -> None:
    if address not in KEEP:
        assert address not in bare(Redactor().redact(f"{start}{address}{end}"))


@given(before, ipv6, after)
def test_no_ipv6_address_comes_out_in_any_spelling(start: str, address: str, end: str) -> None:
    shown = bare(Redactor().redact(f"{start}{address}{end}"))
    if address not in KEEP and str(ipaddress.ip_address(address)) not in KEEP:
        assert address not in shown
        assert not re.search(r"[0-9A-Fa-f]{3,}:", shown)


@given(before, macs, after)
def test_no_hardware_address_comes_out(start: str, address: str, end: str) -> None:
    assert address not in bare(Redactor().redact(f"{start}{address}{end}"))


@given(st.sampled_from(["enx", "wlx", "", "port-"]), st.lists(hexes, min_size=6, max_size=6))
def test_no_hardware_address_comes_out_of_the_name_of_an_interface(start: str, parts: list[str]) -> None:
    assert "".join(parts) not in bare(Redactor().redact(f"dev {start}{''.join(parts)} up"))


@given(before, domains, after)
def test_no_name_with_dots_comes_out(start: str, name: str, end: str) -> None:
    if name not in KEEP:
        assert name not in bare(Redactor().redact(f"{start}{name}{end}"))


@given(before, tokens, after)
def test_no_long_secret_comes_out(start: str, token: str, end: str) -> None:
    shown = bare(Redactor().redact(f"{start}{token}{end}"))
    if not any(part in KEEP for part in (token, f"/{token}")):
        assert token not in shown


@given(before, words, after, st.sampled_from(["user", "host", "network"]))
def test_no_known_word_comes_out_whatever_its_case(start: str, word: str, end: str, kind: str) -> None:
    shown = bare(Redactor({kind: [word]}).redact(f"{start}{word}{end} {word.upper()}"))
    assert not re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", shown)


@given(networks, st.sampled_from(["ssid {}", 'ESSID:"{}"', "joined {}, good", "{}"]))
def test_no_name_of_a_wireless_network_comes_out(name: str, form: str) -> None:
    if is_punctuation(name):
        return
    text = form.format(name)
    frame = form.format("")
    shown = bare(Redactor({"network": [name]}).redact(text))
    assert shown.count(name) <= frame.count(name)


@given(st.one_of(ipv4, ipv6, macs), st.text("abcdef0123456789.:-/", min_size=1, max_size=4), before, after)
def test_a_known_word_within_an_address_does_not_let_the_rest_out(
    address: str, word: str, start: str, end: str
) -> None:
    if address in KEEP or str(address).lower() in KEEP:
        return
    shown = bare(Redactor({"host": [word]}).redact(f"{start}{address}{end}"))
    assert not re.search(r"[0-9A-Fa-f]+[.:-][0-9A-Fa-f]+[.:-]", shown)


def test_a_known_name_of_several_words_goes_whole_though_a_part_has_a_form_of_its_own() -> None:
    shown = Redactor({"network": ["Café Azadi 5G.home net"]}).redact("joined Café Azadi 5G.home net now")
    assert shown == "joined <network-1> now"


@given(st.lists(st.one_of(ipv4, ipv6, macs, domains, tokens, words), max_size=6), st.sampled_from(' \n,;="/'))
def test_what_was_redacted_needs_no_further_redaction(values: list[str], separator: str) -> None:
    redactor = Redactor({"user": ["ann"]})
    once = redactor.redact(separator.join(values))
    assert redactor.redact(once).count("<") >= once.count("<")


def test_the_same_value_gets_the_same_placeholder() -> None:
    shown = Redactor().redact("9.9.9.9 asks 8.8.8.8 and 9.9.9.9")
    assert shown == "<address-1> asks <address-2> and <address-1>"


def test_what_belongs_to_every_installation_stays() -> None:
    for text in (
        "ip daddr 10.200.3.2 th dport 53",
        "fd42:42:42::/64 dev PsiphonTUN",
        "psiphon-killswitch.service",
        "net.ipv4.conf.all.src_valid_mark = 1",
        "Nov 24 23:45:01",
        "/usr/lib/psiphon-vpn/rules/boot.nft",
        "lookup 20595 fwmark 0x50530000",
    ):
        assert Redactor().redact(text) == text


def test_a_report_of_usual_lines_keeps_its_sense() -> None:
    redactor = Redactor({"user": ["ann"], "host": ["ann-laptop"], "interface": ["wlp3s0"]})
    shown = redactor.redact("ann-laptop: /home/ann on wlp3s0 at 192.168.1.7 via fe80::1%wlp3s0 (aa:bb:cc:dd:ee:ff)")
    assert shown == (
        "<host-1>: /home/<user-1> on <interface-1> at <address-1> via <address-2>%<interface-1> (<address-3>)"
    )
