# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From nothing to the first page on a booted system, as a newcomer does it: at a terminal, with default settings.

Its provider leads to an internet like the real one: servers in several regions, and a host with the core and the signed
list. Every frame is judged outside the computer. With `--core PATH --server PATH`, core and servers are real.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.booted.conftest import note, scenario
from tests.booted.newcomer import REAL, fetch_page, start
from tests.booted.test_package import build_package

from psiphon_lab.booted.clone import copy_clone
from psiphon_lab.booted.installation import SETUP
from psiphon_lab.booted.open_frames import HOST, NAME, explain_frames
from psiphon_lab.booted.session import RealLike
from psiphon_lab.booted.terminal import COLUMNS, Terminal
from psiphon_lab.judge import judge_frames
from psiphon_lab.tunnel_ends import RealPrograms
from psiphon_vpn.system.layout import KILLSWITCH_UNIT, Layout

BUNDLE = "/root/friend.bundle"
GO_ON = {"Go on? [y/N]: ": "y"}
QUESTIONS = {**GO_ON, "Download it now? [Y/n]: ": ""}


def go_the_whole_way(real_like: RealLike, what: str, argv: list[str], answers: Mapping[str, str]) -> Counter[str]:
    """Run a command at a terminal, answer its questions, load a page; returns the frames in the open, by reason."""
    session, computer = real_like.session, real_like.session.computer
    mark, begin = session.world.mark(), time.monotonic()
    with Terminal(computer.inside, argv) as terminal:
        code = terminal.answer(answers)
    assert code == 0, terminal.shown
    assert re.search(r"^(Connected: you appear on the internet in|Not connected yet:) ", terminal.shown, re.MULTILINE)
    assert not [line for line in terminal.find_lines() if len(line) > COLUMNS], terminal.shown
    ended = time.monotonic()
    region = fetch_page(real_like)
    seconds = time.monotonic() - begin
    assert region in real_like.internet.servers

    shown = computer.show(KILLSWITCH_UNIT, "ActiveEnterTimestampMonotonic")
    locked = int(shown["ActiveEnterTimestampMonotonic"]) / 1e6 + time.time() - time.monotonic()
    frames = session.world.frames_since(mark)
    evidence = session.judge_by()
    reasons, unexplained = explain_frames(
        [frame for frame in frames if frame.time < locked], evidence, real_like.internet.list_host.read_flows()
    )
    verdicts = judge_frames((frame for frame in frames if frame.time >= locked), evidence)
    leaks = [verdict.text for verdict in verdicts if verdict.is_leak]
    note(
        what,
        system=session.name,
        seconds_to_the_first_page=round(seconds, 1),
        of_them_until_each_question=[round(moment - begin, 1) for moment in terminal.moments],
        of_them_until_the_command_ended=round(ended - begin, 1),
        frames_in_the_open=dict(reasons),
        frames_of_the_locked_machine=dict(Counter(str(verdict.innocent) for verdict in verdicts)),
    )
    assert not unexplained, unexplained[:10]
    assert not leaks, leaks[:10]
    with scenario(session, f"{what}: open, stopped, open again"):
        status = session.service.wait_state("OPEN")
        assert status["region"] in real_like.internet.servers
        session.service.command("stop")
        assert not session.find_answers()
        session.service.command("start", "--wait")
        assert fetch_page(real_like) in real_like.internet.servers
    return reasons


@pytest.mark.requirement("R2", "R3", "R21")
@pytest.mark.parametrize(("tree", "real"), [("debian12", "stand-ins"), ("debian13", "stand-ins"), *REAL], indirect=True)
def test_from_a_clone_to_the_first_page_by_a_download_and_by_a_friends_bundle(
    tree: Path, wheels: Path, real: RealPrograms | None
) -> None:
    with start(tree, wheels, real) as real_like:
        service, computer = real_like.session.service, real_like.session.computer
        reasons = go_the_whole_way(real_like, "install from a clone", [SETUP, "install"], QUESTIONS)
        assert reasons[NAME]
        assert reasons[HOST]
        service.command("bundle", BUNDLE)

        def start_over() -> None:
            service.run_setup("uninstall", "--yes")
            computer.wait_address()

        start_over()
        # The list's host cannot be reached here: the bundle is enough.
        real_like.internet.list_host.stop()
        argv = [SETUP, "install", "--bundle", BUNDLE]
        reasons = go_the_whole_way(real_like, "install from a bundle", argv, GO_ON)
        assert not {NAME, HOST} & set(reasons)

        start_over()
        with Terminal(computer.inside, [SETUP, "install"]) as terminal:
            code = terminal.answer({**GO_ON, "Download it now? [Y/n]: ": "n", "Lock it all the same? [y/N]: ": "y"})
        assert code == 0, terminal.shown
        assert service.command("status", check=False).stdout.startswith("PROTECTED and offline.")
        argv = [str(Layout().command), "setup", "--bundle", BUNDLE]
        reasons = go_the_whole_way(real_like, "a locked machine, by a bundle", argv, GO_ON)
        assert not {NAME, HOST} & set(reasons)


@pytest.mark.requirement("R2", "R3", "R21")
@pytest.mark.parametrize(("tree", "real"), [("debian12", "stand-ins"), *REAL], indirect=True)
def test_from_a_package_and_two_answers_to_the_first_page(
    tree: Path, wheels: Path, real: RealPrograms | None, tmp_path: Path
) -> None:
    with start(tree, wheels, real) as real_like:
        copy_clone(tmp_path)
        for name, text in real_like.values.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        computer = real_like.session.computer
        (computer.files / "root/psiphon-vpn.deb").write_bytes(build_package(tmp_path).read_bytes())
        computer.run(["dpkg", "-i", "/root/psiphon-vpn.deb"], timeout=240)
        reasons = go_the_whole_way(real_like, "setup after a .deb", [str(Layout().command), "setup"], QUESTIONS)
        assert reasons[HOST]
