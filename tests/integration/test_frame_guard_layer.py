# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame guard as a layer of the status: on which cards it is, on which it is not, and what its next step does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.kernel import Kernel
from tests.integration.test_guard_script import IDENTITY, Holder, put_cards
from tests.integration.testbed import Testbed, open_testbed
from tests.lock_reading import read_lock

from psiphon_lab.addresses import LAN_A, LAN_B
from psiphon_lab.waiting import wait_until
from psiphon_vpn.linux import lockstate
from psiphon_vpn.linux.frame_guard import read_guarded_cards
from psiphon_vpn.linux.rtlist import list_links
from psiphon_vpn.linux.rtvalues import Link
from psiphon_vpn.policy.guards import build_frame_guard
from psiphon_vpn.policy.values import parse_names

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces"),
    pytest.mark.requirement("B4"),
]

CARDED = Path(__file__).with_name("carded_daemon.py")
STEP = "sudo systemctl reload-or-restart psiphon-guard"
HOOK = "type filter hook {} device card0 priority 0; policy {};"


@pytest.fixture
def holder(kernel: Kernel, tmp_path: Path) -> Iterator[Holder]:
    made = Holder(kernel, tmp_path)
    yield made
    made.end()


def add_card(kernel: Kernel, name: str, far: str) -> None:
    kernel.ip("link", "add", name, "type", "veth", "peer", "name", far)


def read_layer(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> dict[str, str] | None:
    """What `status` says without the daemon. Interfaces called card* count as cards, although they are veth pairs."""

    async def list_cards() -> tuple[Link, ...]:
        return tuple(replace(link, card="card" in link.name) for link in await list_links())

    monkeypatch.setattr(lockstate, "list_links", list_cards)
    return read_lock(kernel.host).layers.get("frame_guard")


def guarded(kernel: Kernel) -> set[str] | None:
    found = kernel.with_netlink(read_guarded_cards)
    return None if found is None else set(found)


def test_what_is_a_card_to_the_kernel_is_one_to_the_holder() -> None:
    """Only reads this machine's own links, whatever they are."""
    import asyncio

    there = {path.parent.name for path in Path("/sys/class/net").glob("*/device")}
    assert {link.name for link in asyncio.run(list_links()) if link.card} == there


def test_a_machine_without_a_card_has_no_such_layer(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.ip("link", "add", "inner0", "type", "bridge")
    assert read_layer(kernel, monkeypatch) is None


def test_it_is_missing_where_nobody_loaded_it(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    add_card(kernel, "card0", "far0")
    reported = read_layer(kernel, monkeypatch)
    assert reported is not None
    assert reported["state"] == "missing"
    assert "card0" in reported["detail"]
    assert STEP in reported["detail"]


def test_it_is_on_all_cards_and_then_not_on_one_that_was_plugged_in_until_the_holder_loads_it_again(
    kernel: Kernel, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_card(kernel, "card0", "far0")
    put_cards(holder, "card0")
    holder.hold()
    assert holder.call("ready").returncode == 0
    # Network managers wait for no more than that, so it may not come later.
    assert guarded(kernel) == {"card0"}
    assert read_layer(kernel, monkeypatch) == {"state": "ok", "detail": "on card0"}

    add_card(kernel, "card1", "far1")
    put_cards(holder, "card1")
    reported = read_layer(kernel, monkeypatch)
    assert reported is not None
    assert reported["state"] == "incomplete"
    assert "leave by card1 before" in reported["detail"]
    assert STEP in reported["detail"]
    # What the next step makes the unit do (ExecReload=).
    assert holder.call("reload", str(holder.rules)).returncode == 0
    wait_until(lambda: guarded(kernel) == {"card0", "card1"}, "the frame guard on both")
    assert read_layer(kernel, monkeypatch) == {"state": "ok", "detail": "on card0, card1"}

    holder.end()
    reported = read_layer(kernel, monkeypatch)
    assert reported is not None
    assert reported["state"] == "missing"


def test_a_card_with_an_odd_name_is_no_secret(kernel: Kernel, holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, far in (("card0", "far0"), ("card*", "far1")):
        add_card(kernel, name, far)
        put_cards(holder, name)
    holder.hold()
    assert holder.call("ready").returncode == 0
    wait_until(lambda: guarded(kernel) == {"card0"}, "the frame guard")
    reported = read_layer(kernel, monkeypatch)
    assert reported is not None
    assert reported["state"] == "incomplete"
    assert "Give card* a name" in reported["detail"]


@pytest.mark.requirement("R1")
@pytest.mark.parametrize(
    ("flags", "hook"),
    [("", HOOK.format("egress", "drop")), ("flags owner;", HOOK.format("egress", "accept")),
     ("flags owner;", HOOK.format("ingress", "drop"))],
)  # fmt: skip
def test_a_table_of_its_name_that_holds_nothing_is_not_taken_for_it(
    kernel: Kernel, holder: Holder, flags: str, hook: str
) -> None:
    add_card(kernel, "card0", "far0")
    holder.rules.write_text(f"table netdev psiphon_frames {{\n{flags}\nchain on_card0 {{\n{hook}\n}}\n}}\n")
    if flags:
        holder.hold()
    else:
        kernel.nft(holder.rules.read_text())
    wait_until(lambda: "psiphon_frames" in "".join(kernel.tables()), "the table")
    assert not guarded(kernel)


@pytest.mark.requirement("R1")
def test_the_devices_of_a_chain_are_read_however_many_there_are(kernel: Kernel, holder: Holder) -> None:
    """The kernel lists one device in one attribute, and several in another one as well."""
    for name, far in (("card0", "far0"), ("card1", "far1")):
        add_card(kernel, name, far)
    table = build_frame_guard(IDENTITY, parse_names("card0")).render_replacement()
    holder.rules.write_text(table.replace('devices = { "card0" }', 'devices = { "card0", "card1" }'))
    holder.hold()
    wait_until(lambda: guarded(kernel) == {"card0", "card1"}, "both")


# -- the daemon's own status ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with open_testbed(start=False) as made:
        made.machine.program = [str(CARDED)]
        made.machine.start_daemon()
        made.machine.wait_state("OPEN")
        yield made


def layers(testbed: Testbed) -> dict[str, Any]:
    status = testbed.machine.read_status()
    assert status is not None
    found: dict[str, Any] = status["layers"]
    return found


def test_the_daemon_says_which_cards_it_is_on_and_which_was_plugged_in_since(testbed: Testbed) -> None:
    both = f"on {', '.join(sorted((LAN_A.interface, LAN_B.interface)))}"
    assert layers(testbed)["frame_guard"] == {"state": "ok", "detail": both}
    client = testbed.world.client
    client.run(["ip", "link", "add", "usb0", "type", "veth", "peer", "name", "far1"])
    try:
        testbed.machine.wait_for(lambda: layers(testbed)["frame_guard"]["state"] == "incomplete", "the card without")
        assert "leave by usb0 before" in layers(testbed)["frame_guard"]["detail"]
    finally:
        client.run(["ip", "link", "del", "usb0"])
    testbed.machine.wait_for(lambda: layers(testbed)["frame_guard"]["state"] == "ok", "the cards that are left")


@pytest.mark.requirement("R1", "B3")
def test_that_the_holder_ended_is_seen_at_once_of_both_its_guards(testbed: Testbed) -> None:
    """The kernel removes the holder's tables without a commit: what was read before no longer holds."""
    assert layers(testbed)["wire_guard"]["state"] == layers(testbed)["frame_guard"]["state"] == "ok"
    testbed.machine.release_guard()
    try:
        assert layers(testbed)["wire_guard"]["state"] == layers(testbed)["frame_guard"]["state"] == "missing"
    finally:
        testbed.machine.hold_guard()
    assert layers(testbed)["wire_guard"]["state"] == layers(testbed)["frame_guard"]["state"] == "ok"
