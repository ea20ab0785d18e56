# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that writes every generated page knows all of them."""

from pathlib import Path

from tests.pages import PROGRAMS

TESTS = Path(__file__).parents[1]


def test_every_program_of_the_tests_that_writes_a_page_is_run() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.glob("*.py") if path.name != "pages.py"}
    writers = {f"tests.{path.stem}" for path, text in texts.items() if ".write_text(" in text and "__main__" in text}
    assert len(writers) > 5
    assert writers == {program for program in PROGRAMS if program.startswith("tests.")}
