# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core's name in lists of processes; whatever is wrong with the link that gives it, the checked core starts."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cores import install_script

from psiphon_vpn.core import naming
from psiphon_vpn.core.image import RecordedCore
from psiphon_vpn.core.naming import name_image
from psiphon_vpn.core.process import CorePlan, CoreProcess
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.system.layout import Layout

COMM = "psiphon-tunnel-"
"""The first 15 bytes of the name (proc(5), /proc/PID/comm)."""
REPORT = """
import json
read = lambda name: open(f"/proc/self/{name}", "rb").read().decode()
open("report.json", "w").write(json.dumps({
    "comm": read("comm").strip(), "argv": read("cmdline").split("\\0"), "state": read("status").split("\\n")[0]}))
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An installed core that prints its own name."""
    layout = Layout(root=tmp_path / "root")
    install_script(layout.root, f"#!{sys.executable} -IS\n{REPORT}".encode(), owner=os.geteuid())
    return layout


def run_core(layout: Layout, directory: Path) -> dict[str, str]:
    """Start the installed core as the daemon does and wait for its end; returns what it printed."""
    codes: list[int] = []

    async def work() -> None:
        ended = asyncio.Event()

        def end(code: int) -> None:
            codes.append(code)
            ended.set()

        core = CoreProcess(on_event=lambda _event: None, on_exit=end)
        with Sealing(RecordedCore(record=layout.core_record, owner=os.geteuid())) as sealing:
            await core.start(CorePlan(data_dir=directory, config={}, uplink="eth0"), sealing)
        async with asyncio.timeout(60):
            await ended.wait()

    before = sorted(os.listdir("/proc/self/fd"))
    asyncio.run(work())
    assert codes == [0]
    assert sorted(os.listdir("/proc/self/fd")) == before, "every descriptor is closed"
    return dict(json.loads((directory / "report.json").read_text()))


def test_a_list_of_processes_shows_its_name(layout: Layout, tmp_path: Path) -> None:
    reported = run_core(layout, tmp_path / "data")
    assert reported["comm"] == COMM
    assert reported["state"] == f"Name:\t{COMM}"
    assert str(layout.core_name) in reported["argv"]


def test_so_it_is_for_a_program_that_is_no_script(tmp_path: Path) -> None:
    link = tmp_path / "psiphon-tunnel-core"
    link.symlink_to(naming.TARGET)
    image = os.open("/bin/sleep", os.O_RDONLY | os.O_CLOEXEC)
    descriptor, program = name_image(image, link, owner=os.geteuid())
    try:
        assert (descriptor, program) == (naming.DESCRIPTOR, str(link))
        with subprocess.Popen(["sh", "-c", 'exec "$@"', "-", program, "60"], pass_fds=[descriptor]) as sleeping:
            comm = Path(f"/proc/{sleeping.pid}/comm")
            while comm.read_text() != f"{COMM}\n":
                assert sleeping.poll() is None
            assert os.readlink(f"/proc/{sleeping.pid}/exe") == os.path.realpath("/bin/sleep")
            sleeping.kill()
    finally:
        os.close(descriptor)


def _replace(make: Callable[[Path], object]) -> Callable[[Layout], None]:
    def change(layout: Layout) -> None:
        layout.core_name.unlink()
        make(layout.core_name)

    return change


def _write_program(path: Path) -> None:
    path.write_text("#!/bin/sh\ntouch ran\n")
    path.chmod(0o755)


def _link_program(path: Path) -> None:
    _write_program(path.with_name("evil"))
    path.symlink_to("evil")


ODD: dict[str, Callable[[Layout], object]] = {
    "missing": _replace(lambda path: None),
    "a program": _replace(_write_program),
    "a link to a program": _replace(_link_program),
    "a directory": _replace(Path.mkdir),
    "a fifo": _replace(os.mkfifo),
    "to another descriptor": _replace(lambda path: path.symlink_to("/proc/self/fd/2")),
    "to it by another way": _replace(lambda path: path.symlink_to(f"/proc/self/fd/../fd/{naming.DESCRIPTOR}")),
    "to itself": _replace(lambda path: path.symlink_to(path.name)),
    "in a directory that others write to": lambda layout: layout.core_dir.chmod(0o777),
}


@pytest.mark.requirement("R12", "R13")
@pytest.mark.parametrize("odd", [name for name in ODD if "others write" not in name])
def test_with_anything_else_in_its_place_the_checked_core_starts(layout: Layout, tmp_path: Path, odd: str) -> None:
    ODD[odd](layout)
    reported = run_core(layout, tmp_path / "data")
    assert reported["comm"].isdigit()
    assert not (tmp_path / "data/ran").exists()


def name_it(layout: Layout, *, owner: int | None = None) -> str:
    """The path that is executed for an image; closes both descriptors again."""
    image = os.open("/bin/sleep", os.O_RDONLY | os.O_CLOEXEC)
    descriptor, program = name_image(image, layout.core_name, owner=os.geteuid() if owner is None else owner)
    os.close(descriptor)
    if descriptor != image:
        with pytest.raises(OSError, match="Bad file"):
            os.close(image)
    return "named" if program == str(layout.core_name) else program.replace(str(descriptor), "N")


@pytest.mark.requirement("R12")
@pytest.mark.parametrize("odd", ODD)
def test_a_link_is_used_only_if_it_is_exactly_what_root_made(layout: Layout, odd: str) -> None:
    assert name_it(layout) == "named"
    ODD[odd](layout)
    assert name_it(layout) == "/proc/self/fd/N"


@pytest.mark.requirement("R12")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_link_or_a_directory_of_anybody_else_is_not_used(layout: Layout) -> None:
    os.lchown(layout.core_name, 65534, 65534)
    assert name_it(layout) == "/proc/self/fd/N"
    os.lchown(layout.core_name, 0, 0)
    assert name_it(layout) == "named"
    os.chown(layout.core_dir, 65534, 65534)
    assert name_it(layout) == "/proc/self/fd/N"


@pytest.fixture
def taken() -> Iterator[int]:
    """Occupy the descriptor number."""
    os.dup2(1, naming.DESCRIPTOR)
    yield naming.DESCRIPTOR
    os.close(naming.DESCRIPTOR)


@pytest.mark.requirement("R13")
def test_a_descriptor_that_has_the_number_already_is_left_alone(layout: Layout, tmp_path: Path, taken: int) -> None:
    before = os.fstat(taken)
    assert run_core(layout, tmp_path / "data")["comm"].isdigit()
    assert os.path.samestat(os.fstat(taken), before)


def test_where_so_high_a_number_is_not_allowed_it_starts_without(layout: Layout, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (naming.DESCRIPTOR, limits[1]))
    try:
        assert run_core(layout, tmp_path / "data")["comm"].isdigit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_update_leaves_the_link_alone(layout: Layout) -> None:
    from psiphon_vpn.core.store import CoreStore

    with CoreStore(layout, root_uid=os.geteuid()).exclusive():
        pass  # it removes cores to which no link leads
    assert stat.S_ISLNK(layout.core_name.lstat().st_mode)
