# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`psiphon-vpn bridge`: the list, the holder's rules, and what stands when one of them cannot be written or loaded."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from tests import scratch_machine
from tests.scratch_machine import ACTING, PAYLOAD, ScratchMachine

from psiphon_vpn.cli.main import cli
from psiphon_vpn.errors import NotRootError, UserError
from psiphon_vpn.network.bridges import load_bridges
from psiphon_vpn.policy.values import InterfaceName
from psiphon_vpn.run import CommandError
from psiphon_vpn.system import bridging
from psiphon_vpn.system.install import install_clone, uninstall
from psiphon_vpn.system.layout import GUARD_UNIT

NAME = InterfaceName("virbr0")


@pytest.fixture
def machine(tmp_path: Path) -> ScratchMachine:
    made = scratch_machine.make_machine(tmp_path)
    install_clone(made.platform, PAYLOAD, ACTING, say=lambda _line: None)
    return made


class Told:
    """The service, and what it found when it was told to read the list."""

    def __init__(self, machine: ScratchMachine) -> None:
        self.layout, self.found = machine.platform.layout, list[tuple[bool, bool]]()

    def __call__(self) -> None:
        self.found.append((NAME in load_bridges(self.layout.bridges), self.guards_know))

    @property
    def guards_know(self) -> bool:
        return f'oifname "{NAME}"' in self.layout.bridge_rules.read_text()


def test_nothing_is_allowed_until_root_says_so(machine: ScratchMachine) -> None:
    layout = machine.platform.layout
    assert load_bridges(layout.bridges) == ()
    assert "table" not in layout.bridge_rules.read_text()


def test_the_guards_know_a_bridge_before_the_service_does_and_forget_it_after(machine: ScratchMachine) -> None:
    reported = Told(machine)
    assert bridging.allow(machine.platform, NAME, reread=reported)
    assert not bridging.allow(machine.platform, NAME, reread=reported)
    assert reported.found == [(True, True)]
    assert GUARD_UNIT in machine.store.read()["restarted"]
    assert bridging.deny(machine.platform, NAME, reread=reported)
    assert reported.found[1:] == [(False, True)]
    assert not reported.guards_know
    assert not bridging.deny(machine.platform, NAME, reread=reported)


def test_a_kernel_that_cannot_guard_bridges_gets_none(machine: ScratchMachine) -> None:
    reported, before = Told(machine), scratch_machine.list_tree(machine.root)
    with (
        mock.patch.object(machine.platform.kernel, "check_rules", return_value="Operation not supported"),
        pytest.raises(UserError) as caught,
    ):
        bridging.allow(machine.platform, NAME, reread=reported)
    assert "Operation not supported" in caught.value.why
    assert scratch_machine.list_tree(machine.root) == before
    assert not reported.found


def test_a_guard_that_does_not_take_it_leaves_all_as_it_was(machine: ScratchMachine) -> None:
    reported, before = Told(machine), scratch_machine.list_tree(machine.root)
    error = CommandError(["systemctl", "reload", GUARD_UNIT], "it fails", returncode=1)
    with mock.patch.object(machine.platform.manager, "reload", side_effect=error), pytest.raises(UserError):
        bridging.allow(machine.platform, NAME, reread=reported)
    assert scratch_machine.list_tree(machine.root) == before
    assert not reported.found


def test_taking_back_tells_the_service_although_the_guard_does_not_take_it(machine: ScratchMachine) -> None:
    reported = Told(machine)
    bridging.allow(machine.platform, NAME, reread=reported)
    error = CommandError(["systemctl", "reload", GUARD_UNIT], "it fails", returncode=1)
    with mock.patch.object(machine.platform.manager, "reload", side_effect=error), pytest.raises(UserError) as caught:
        bridging.deny(machine.platform, NAME, reread=reported)
    assert "still has it" in caught.value.what
    assert load_bridges(machine.platform.layout.bridges) == ()
    assert reported.found[-1][0] is False


def test_an_update_keeps_what_root_allowed_and_a_removal_does_not(machine: ScratchMachine) -> None:
    reported = Told(machine)
    bridging.allow(machine.platform, NAME, reread=reported)
    install_clone(machine.platform, PAYLOAD, ACTING, say=lambda _line: None)
    assert load_bridges(machine.platform.layout.bridges) == (NAME,)
    assert reported.guards_know
    uninstall(machine.platform, say=lambda _line: None)
    assert not machine.platform.layout.bridges.exists()
    assert not machine.platform.layout.bridge_rules.exists()


@pytest.mark.parametrize("name", ["lo", "PsiphonTUN", 'c*"}accept#', "", "a b", "x" * 16, "*"])
def test_what_no_bridge_of_guests_is_called_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        bridging.check_name(name)


def test_only_root_decides_and_is_asked_first(tmp_path: Path) -> None:
    with mock.patch("os.geteuid", return_value=1000):
        for words in (["allow", "virbr0"], ["deny", "virbr0"]):
            result = CliRunner().invoke(cli, ["bridge", *words], obj=tmp_path)
            assert isinstance(result.exception, NotRootError)
    with mock.patch("os.geteuid", return_value=0), mock.patch.object(bridging, "allow") as allow:
        assert CliRunner().invoke(cli, ["bridge", "allow", "virbr0"], input="n\n").exit_code != 0
    assert not allow.called
