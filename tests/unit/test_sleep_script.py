# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The script of psiphon-sleep.service, with stand-ins for the program and nft: it ends whatever they do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from psiphon_vpn.system.units import render_sleep_script

PROGRAM = "/usr/bin/psiphon-vpn"
BOTH = ["flush set inet psiphon_filter tunnel_open", "flush set inet psiphon_filter tunnel_open_ipv6"]


class Bench:
    """The script in a directory, with a record of each transaction that its nft got."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._given = directory / "given"
        self._given.touch()
        text = render_sleep_script().replace(PROGRAM, str(directory / "program"))
        assert PROGRAM not in text
        assert len(re.findall(r"timeout -s KILL \d+", text)) == 2, "the program and nft have a limit"
        self._text = text.replace("PATH=", f"PATH={directory}:")

    def _write(self, name: str, text: str) -> Path:
        path = self._directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, word: str, *, program: str, nft: str = "exit 0", limit: float = 0.5
    ) -> subprocess.CompletedProcess[str]:
        """Runs the script, in which each program has ``limit`` seconds instead of its own."""
        script = self._write("sleep-script", re.sub(r"-s KILL \d+", f"-s KILL {limit}", self._text))
        self._write("program", f'#!/bin/sh\necho "$*" >>{self._directory}/told\n{program}\n')
        self._write("nft", f"#!/bin/sh\ntext=$(cat)\nprintf '%s\\n\\n' \"$text\" >>{self._given}\n{nft}\n")
        return subprocess.run(["/bin/sh", str(script), word], capture_output=True, text=True, check=False, timeout=60)

    def after_nft(self, then: str) -> str:
        """A program that does ``then`` as soon as nft has run."""
        return f"until [ -s {self._given} ]; do sleep 0.05; done; {then}"

    @property
    def given(self) -> list[list[str]]:
        return [block.splitlines() for block in self._given.read_text().split("\n\n") if block]

    @property
    def reported(self) -> str:
        return (self._directory / "told").read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_service_that_answers_has_closed_and_nothing_else_is_done(bench: Bench) -> None:
    done = bench.run("begin", program="exit 0")
    assert (done.returncode, done.stderr, bench.given) == (0, "", [])
    assert bench.reported == "system-sleep begin\n"


@pytest.mark.requirement("R1", "R6")
@pytest.mark.parametrize("program", ["exit 1", "exit 69", "sleep 3600", "trap '' TERM; sleep 3600", "kill -SEGV $$"])
def test_a_service_that_does_not_close_is_closed_without_it_in_one_transaction(bench: Bench, program: str) -> None:
    done = bench.run("begin", program=program)
    assert done.returncode == 0
    assert bench.given == [BOTH]
    assert "without the service" in done.stderr


@pytest.mark.requirement("R1", "R6")
def test_the_tunnel_of_a_slow_service_is_closed_before_it_answers_and_the_service_is_still_waited_for(
    bench: Bench,
) -> None:
    done = bench.run("begin", program=bench.after_nft("exit 0"), limit=60)
    assert (done.returncode, done.stderr, bench.given) == (0, "", [BOTH])


@pytest.mark.requirement("R1", "R6")
def test_a_tunnel_that_a_slow_service_may_have_opened_again_is_closed_once_more(bench: Bench) -> None:
    done = bench.run("begin", program=bench.after_nft("exit 1"), limit=60)
    assert (done.returncode, bench.given) == (0, [BOTH, BOTH])


@pytest.mark.requirement("R1", "R6")
def test_where_one_set_is_missing_the_other_is_emptied(bench: Bench) -> None:
    said = "Error: No such file or directory; did you mean another set?"
    nft = f"case \"$text\" in *tunnel_open_ipv6*) echo '{said}' >&2; exit 1 ;; esac"
    done = bench.run("begin", program="exit 1", nft=nft)
    assert done.returncode == 0
    assert bench.given == [BOTH, [BOTH[0]], [BOTH[1]]]


@pytest.mark.requirement("R1")
def test_a_machine_that_was_released_has_nothing_to_close(bench: Bench) -> None:
    done = bench.run("begin", program="exit 69", nft="echo 'Error: No such file or directory' >&2; exit 1")
    assert done.returncode == 0
    assert "could not be closed" not in done.stderr


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("nft", ["echo 'Error: Operation not permitted' >&2; exit 1", "sleep 3600"])
def test_where_nothing_closes_the_unit_fails_and_says_so_and_the_sleep_does_not_wait(bench: Bench, nft: str) -> None:
    done = bench.run("begin", program="exit 1", nft=nft)
    assert done.returncode == 1
    assert "could not be closed" in done.stderr


@pytest.mark.parametrize(("program", "said"), [("exit 0", False), ("exit 69", True), ("sleep 3600", True)])
def test_the_end_of_sleep_is_reported_and_never_fails_nor_touches_a_rule(
    bench: Bench, program: str, said: bool
) -> None:
    done = bench.run("end", program=program)
    assert (done.returncode, bench.given) == (0, [])
    assert ("was not notified" in done.stderr) is said
    assert bench.reported == "system-sleep end\n"
