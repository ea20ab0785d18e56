"""The service's control group: read from what the kernel says, and named in the rules of the output hook alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies import IDENTITY, make_policy

from psiphon_vpn.linux.controlgroup import parse_control_group
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import State
from psiphon_vpn.policy.values import ControlGroup
from psiphon_vpn.policy.wire import may_connect

GROUP = ControlGroup("system.slice/psiphon-vpn.service")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/system.slice/psiphon-vpn.service\n", GROUP),
        ("9:name=systemd:/x\n1:cpu:/\n0::/system.slice/psiphon-vpn.service\n", GROUP),
        ("1:name=systemd:/system.slice/psiphon-vpn.service\n", None),
        ("0::/\n", None),
        ("0::/user.slice/session-1.scope\n", None),
        ("0::/system.slice/not-psiphon-vpn.service\n", None),
        ('0::/a" accept comment "/psiphon-vpn.service\n', None),
        ("0::/../psiphon-vpn.service\n", None),
        ("0::/system.slice/psiphon-vpn.service (deleted)\n", None),
        ("", None),
    ],
)
def test_only_the_group_of_our_unit_counts_and_only_in_the_usual_form(text: str, group: ControlGroup | None) -> None:
    assert parse_control_group(text) == group


@given(st.text())
def test_no_text_of_the_kernels_is_read_as_more_than_a_path(text: str) -> None:
    found = parse_control_group(f"0::/{text}/psiphon-vpn.service")
    assert found is None or not set(found) - set(ControlGroup.ALPHABET)


@pytest.mark.requirement("R5")
@pytest.mark.parametrize("state", State)
def test_the_group_is_asked_for_in_output_only_while_psiphon_user_may_connect(state: State) -> None:
    policy = make_policy(state, control_group=GROUP)
    table = build_base_table(policy)
    named = [(chain.name, rule.text) for chain in table.chains for rule in chain.rules if "cgroupv2" in rule.text]
    if not may_connect(policy):
        assert not named
        return
    assert named == [("output", f"{IDENTITY.owner} {GROUP.match} jump to_wire")]
    texts = [rule.text for chain in table.chains if chain.name == "output" for rule in chain.rules]
    at = texts.index(named[0][1])
    assert texts[at + 1 : at + 3] == [f"{IDENTITY.owner} counter goto refused", "jump to_wire"]
