# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/requirements.md and the generator behind it."""

import pytest
from tests.requirements_table import CLAIMS, NOT_YET, TARGET, TESTS, collect_holders, read_module, render_table


def test_the_table_of_requirements_is_what_the_tests_say() -> None:
    wanted = render_table(collect_holders(TESTS))
    assert TARGET.read_text(encoding="utf-8") == wanted, "stale: run `python -m tests.requirements_table`"


def test_every_number_of_the_policy_has_its_claim() -> None:
    assert list(CLAIMS) == [*(f"R{number}" for number in range(1, 26)), *(f"B{number}" for number in range(1, 8))]
    assert set(NOT_YET) <= set(CLAIMS)


def test_markers_are_found_on_functions_classes_modules_and_by_name() -> None:
    source = """
import pytest
pytestmark = [pytest.mark.lab, pytest.mark.requirement("R1")]
both = pytest.mark.requirement("R4", "R5")

@both
def test_one(): ...

@pytest.mark.requirement("B2")
class TestMany:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.requirement("R7"))])
    async def test_two(self, x): ...

def helper(): ...
"""
    assert read_module(source) == {"test_one": {"R1", "R4", "R5"}, "test_two": {"R1", "B2", "R7"}}


@pytest.mark.parametrize("mark", ['"R26"', '"r1"', "1", "NUMBER"])
def test_a_marker_that_names_no_requirement_is_an_error(mark: str) -> None:
    with pytest.raises(ValueError, match="requirement"):
        read_module(f"import pytest\n\n@pytest.mark.requirement({mark})\ndef test_one(): ...\n")


def test_a_requirement_that_no_test_names_is_listed_as_not_reached() -> None:
    text = render_table({number: [] for number in CLAIMS})
    assert text.count("not reached yet") == len(CLAIMS)
    assert "0 of 32" in text
