# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core as a process: without any privilege, read to the end, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from psiphon_lab.namespace import open_host
from psiphon_lab.service_adapter.daemon import CAPABILITIES
from psiphon_lab.waiting import wait_until
from psiphon_vpn.core import process as product
from psiphon_vpn.core import sealing as sealing_module
from psiphon_vpn.core.events import CoreEvent, Tunnels
from psiphon_vpn.core.flaws import CoreFlaw
from psiphon_vpn.core.image import CoreSource, GivenCore, seal_core
from psiphon_vpn.core.process import CoreError, CorePlan, CoreProcess, build_argv
from psiphon_vpn.core.sealing import Sealing
from psiphon_vpn.run import CLEAN_ENV

SOURCE = Path(product.__file__).resolve().parents[2]
USER = 65534
PATIENCE = 60.0
TUNNEL = '{"data":{"count":1},"noticeType":"Tunnels","timestamp":"2026-01-01T00:00:00.000Z"}'

REPORT = """
import json, os, sys
status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
mask = os.umask(0)
links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
descriptors = [os.readlink(link) for link in links if os.path.exists(link)]
report = {"argv": sys.argv, "environ": dict(os.environ), "umask": mask, "cwd": os.getcwd(), "status": status,
          "stdin": os.readlink("/proc/self/fd/0"), "stdout": os.readlink("/proc/self/fd/1"),
          "session": os.getsid(0) == os.getpid(), "descriptors": descriptors}
open(os.path.join(os.path.dirname(sys.argv[2]), "report.json"), "w").write(json.dumps(report))
"""


@dataclass
class Heard:
    """What a core said, and how it ended."""

    events: list[CoreEvent] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def core(self) -> CoreProcess:
        return CoreProcess(on_event=self.events.append, on_exit=self.codes.append)


class Desk:
    """A directory with a script for a core."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"

    def plan(self, script: str, *, dns_servers: tuple[str, ...] = ()) -> CorePlan:
        binary = self.directory / "core"
        binary.write_text(f"#!{sys.executable} -IS\n{script}")
        binary.chmod(0o755)
        self.source = GivenCore(binary=binary, sha256=hashlib.sha256(binary.read_bytes()).hexdigest())
        return CorePlan(data_dir=self.data, config={"SponsorId": "F"}, uplink="eth0", dns_servers=dns_servers)

    async def start(self, core: CoreProcess, plan: CorePlan) -> None:
        with Sealing(self.source) as sealing:
            await core.start(plan, sealing)

    def run(self, script: str) -> Heard:
        """Run a script as the core until it ends by itself."""
        heard = Heard()

        async def work() -> None:
            await self.start(heard.core(), self.plan(script))
            await until(lambda: bool(heard.codes))

        asyncio.run(work())
        return heard


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_is_not_started_under_another_parent_than_the_daemon_that_asked(desk: Desk) -> None:
    """The daemon may end before the core has asked to be killed with it; then the core must not start."""
    plan = desk.plan(f"open({str(desk.directory / 'began')!r}, 'w')")
    for parent, begins in ((1, False), (os.getpid(), True)):
        subprocess.run(
            build_argv(plan, desk.directory / "c.json", program=str(desk.directory / "core"), parent=parent),
            check=False,
            timeout=60,
        )
        assert (desk.directory / "began").exists() is begins


@pytest.mark.defect(9, 17)
def test_the_command_names_the_tun_the_uplink_and_no_public_resolver(desk: Desk) -> None:
    argv = build_argv(desk.plan(""), Path("/c.json"), program="/proc/self/fd/7", parent=1)
    core = argv[argv.index("/proc/self/fd/7") :]
    assert core == [
        "/proc/self/fd/7", "-config", "/c.json", "-dataRootDirectory", str(desk.data),
        "-tunDevice", "PsiphonTUN", "-tunBindInterface", "eth0", "-tunDNSServers", "10.200.3.2",
    ]  # fmt: skip
    allowed = build_argv(
        desk.plan("", dns_servers=("192.0.2.53", "2001:db8::53")), Path("/c.json"), program="/core", parent=1
    )
    assert allowed[-1] == "192.0.2.53,2001:db8::53"


@pytest.mark.requirement("R12", "R24")
def test_it_starts_in_its_own_directory_with_a_clean_environment_and_nothing_open(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_SECRET", "not for the core")
    heard = desk.run(REPORT)
    assert heard.codes == [0]
    report = json.loads((desk.data / "report.json").read_text())
    assert report["cwd"] == str(desk.data)
    environment = {name: value for name, value in report["environ"].items() if name != "LC_CTYPE"}
    assert environment == dict(CLEAN_ENV)
    assert report["umask"] == 0o077
    assert (report["stdin"], report["stdout"]) == ("/dev/null", "/dev/null")
    assert report["session"]
    descriptors = [name for name in report["descriptors"] if not name.startswith("/proc/")]
    assert [name.split(":")[0] for name in sorted(descriptors)] == ["/dev/null", "/dev/null", "/memfd", "pipe"]
    assert report["argv"][1:3] == ["-config", str(desk.data / "config.json")]


@pytest.mark.defect(13)
@pytest.mark.requirement("R12")
def test_its_configuration_is_for_its_owners_eyes_only(desk: Desk) -> None:
    desk.run("")
    config = desk.data / "config.json"
    assert json.loads(config.read_text()) == {"SponsorId": "F"}
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(desk.data.stat().st_mode) == 0o700
    assert [path.name for path in desk.data.iterdir()] == ["config.json"]


RUNNER = """
import asyncio, hashlib, sys
from pathlib import Path
from psiphon_vpn.core.image import GivenCore
from psiphon_vpn.core.image import GivenCore
from psiphon_vpn.core.process import CorePlan, CoreProcess
from psiphon_vpn.core.sealing import Sealing
async def main():
    ended = asyncio.Event()
    core = CoreProcess(on_event=print, on_exit=lambda code: ended.set())
    binary = Path(sys.argv[1])
    program = GivenCore(binary=binary, sha256=hashlib.sha256(binary.read_bytes()).hexdigest())
    plan = CorePlan(data_dir=Path(sys.argv[2]), config={}, uplink="eth0")
    with Sealing(program) as sealing:
        await core.start(plan, sealing)
    print(core.pid, flush=True)
    await ended.wait()
asyncio.run(main())
"""


@contextlib.contextmanager
def run_as_daemon(desk: Desk, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process like the daemon, with an ordinary uid and the three capabilities, that has started a core."""
    desk.plan(script)
    desk.directory.chmod(0o777)
    with open_host("daemon", directory=desk.directory / "host", expose=[desk.directory]) as host:
        yield host.spawn(
            [sys.executable, "-c", RUNNER, desk.directory / "core", desk.data],
            uid=USER,
            gid=USER,
            ambient=CAPABILITIES,
            bounding=CAPABILITIES,
            no_new_privs=True,
            env={**CLEAN_ENV, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            cwd="/",
        )


@pytest.mark.defect(12)
@pytest.mark.lab
@pytest.mark.requirement("R8", "B1")
def test_it_has_no_capability_and_can_get_none(desk: Desk) -> None:
    with run_as_daemon(desk, REPORT) as daemon:
        assert daemon.wait(timeout=PATIENCE) == 0
    status = json.loads((desk.data / "report.json").read_text())["status"]
    assert status["Uid"].split() == [str(USER)] * 4
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.defect(15, 20)
@pytest.mark.lab
@pytest.mark.requirement("B1", "R24")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_the_daemon_however_that_ends(desk: Desk, number: signal.Signals) -> None:
    script = "import time\nopen('ready', 'w').close()\ntime.sleep(1000)"
    with run_as_daemon(desk, script) as daemon:
        assert daemon.stdout is not None
        core = int(daemon.stdout.readline())
        # Not before setpriv has executed the core: only then does the core die with the daemon.
        wait_until((desk.data / "ready").exists, "the start of the core", timeout=PATIENCE)
        assert is_running(core)
        daemon.send_signal(number)
        daemon.wait(timeout=PATIENCE)
        wait_until(lambda: not is_running(core), "the end of the core")


def test_a_flood_is_drained_without_a_stall_and_the_next_notice_is_heard(desk: Desk) -> None:
    """A full pipe would stall the real core as a whole (psiphon-core, answer 9)."""
    heard = desk.run(
        f"""
import os
line = b'{{"data":{{"message":"' + b"x" * 1000 + b'"}},"noticeType":"Info","timestamp":"2026-01-01T00:00:00.000Z"}}\\n'
block = line * 1000
for _ in range(50):
    view = memoryview(block)
    while view:
        view = view[os.write(2, view):]
os.write(2, b'{TUNNEL}\\n')
"""
    )
    assert heard.codes == [0]
    assert heard.events[-1] == Tunnels(1)


def test_a_line_without_end_is_thrown_away_and_costs_no_memory(desk: Desk) -> None:
    heard = desk.run(
        f"""
import os
for _ in range(500):
    os.write(2, b"y" * 65536)
os.write(2, b'{TUNNEL}\\n')
os.write(2, b'{TUNNEL}\\n')
"""
    )
    assert heard.codes == [0]
    assert heard.events == [Tunnels(1)], "the end of the long line belongs to it"


def test_junk_between_notices_changes_nothing(desk: Desk) -> None:
    heard = desk.run(
        f"""
import os
for junk in (b"", b"panic: error", b"[" * 5000, b"\\xff\\x00\\xfe", b"[]", b"{{", b'{{"noticeType":7}}', b"9" * 5000):
    os.write(2, junk + b"\\n")
    os.write(2, b'{TUNNEL}\\n')
"""
    )
    assert [event for event in heard.events if isinstance(event, Tunnels)] == [Tunnels(1)] * 8


def test_a_notice_in_pieces_is_put_together(desk: Desk) -> None:
    heard = desk.run(f"import os, time\nfor byte in b'{TUNNEL}\\n':\n    os.write(2, bytes([byte]))")
    assert heard.events == [Tunnels(1)]


@pytest.mark.parametrize(
    ("script", "code"), [("", 0), ("raise SystemExit(2)", 2), ("import os\nos.kill(os.getpid(), 9)", -9)]
)
def test_its_end_is_reported_once_with_its_code(desk: Desk, script: str, code: int) -> None:
    assert desk.run(script).codes == [code]


def test_its_end_is_reported_though_something_that_it_started_goes_on_and_keeps_its_pipe(desk: Desk) -> None:
    heard = desk.run(WITH_CHILD.replace("time.sleep(1000)", "time.sleep(0 if child else 1000)"))
    assert heard.codes == [0]
    child = int((desk.data / "child").read_text())
    wait_until(lambda: not is_running(child), "the end of the core's child")


def test_what_it_said_last_is_heard_before_its_end(desk: Desk) -> None:
    heard = Heard()
    order: list[object] = []

    async def work() -> None:
        core = CoreProcess(on_event=order.append, on_exit=order.append)
        await desk.start(core, desk.plan(f"import os\nos.write(2, b'{TUNNEL}\\n')\nos._exit(3)"))
        await until(lambda: 3 in order)

    asyncio.run(work())
    assert order == [Tunnels(1), 3]
    assert heard.codes == []


def stopped_after(desk: Desk, script: str, *, graceful: bool) -> tuple[float, Heard, int]:
    heard = Heard()

    async def work() -> tuple[float, int]:
        core = heard.core()
        await desk.start(core, desk.plan(script))
        pid = core.pid
        assert pid is not None
        await until((desk.data / "ready").exists)
        begin = time.monotonic()
        await core.stop(graceful=graceful)
        assert core.pid is None
        return time.monotonic() - begin, pid

    seconds, pid = asyncio.run(work())
    return seconds, heard, pid


ORDERLY = """
import os, signal, sys, time
def end(*_):
    open("stopped", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open("ready", "w").close()
while True:
    time.sleep(1000)
"""
DEAF = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('ready', 'w').close()\ntime.sleep(1000)"
)
WITH_CHILD = """
import os, time
child = os.fork()
if child:
    open("child", "w").write(str(child))
    open("ready", "w").close()
time.sleep(1000)
"""


def test_a_graceful_stop_lets_it_end_in_order_and_is_not_reported_as_its_own_end(desk: Desk) -> None:
    seconds, heard, pid = stopped_after(desk, ORDERLY, graceful=True)
    assert (desk.data / "stopped").exists()
    assert heard.codes == []
    assert seconds < product.STOP_SECONDS, "the core was not killed"
    assert not is_running(pid)


def test_a_core_that_ignores_sigterm_is_killed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "STOP_SECONDS", 0.3)
    seconds, heard, pid = stopped_after(desk, DEAF, graceful=True)
    assert seconds >= 0.3
    assert heard.codes == []
    assert not is_running(pid)


@pytest.mark.parametrize("graceful", [False, True])
def test_what_it_started_goes_with_it(desk: Desk, graceful: bool) -> None:
    stopped_after(desk, WITH_CHILD, graceful=graceful)
    child = int((desk.data / "child").read_text())
    wait_until(lambda: not is_running(child), "the end of the core's child")


def test_a_missing_or_unusable_program_is_an_error_that_says_so(desk: Desk) -> None:
    plan = desk.plan("")

    async def start(words: str) -> None:
        with Sealing(desk.source) as sealing, pytest.raises(CoreError, match=words) as caught:
            await Heard().core().start(plan, sealing)
        assert caught.value.flaw is CoreFlaw.UNREADABLE

    (desk.directory / "core").chmod(0o644)
    asyncio.run(start("its file is no program"))
    (desk.directory / "core").unlink()
    asyncio.run(start("its file cannot be read: No such file"))


@pytest.mark.requirement("R13")
def test_a_program_that_is_not_what_it_has_to_be_is_not_started(desk: Desk) -> None:
    plan = desk.plan("open('began', 'w')")
    with (desk.directory / "core").open("a") as program:
        program.write("#")

    async def start() -> None:
        with Sealing(desk.source) as sealing, pytest.raises(CoreError, match="its file was changed") as caught:
            await Heard().core().start(plan, sealing)
        assert caught.value.flaw is CoreFlaw.MISMATCH

    asyncio.run(start())
    assert not (desk.data / "began").exists()


def test_a_check_whose_start_did_not_come_leaves_nothing_open(desk: Desk) -> None:
    desk.plan("")

    async def work() -> None:
        before = os.listdir("/proc/self/fd")
        for _time in range(3):
            with Sealing(desk.source):
                pass
        await until(lambda: os.listdir("/proc/self/fd") == before)
        (desk.directory / "core").unlink()
        with Sealing(desk.source):
            pass
        await asyncio.sleep(0.05)
        assert os.listdir("/proc/self/fd") == before

    asyncio.run(work())


@pytest.mark.requirement("R13")
def test_what_is_changed_after_the_check_is_not_what_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's owner is the user who must not be trusted: it writes to the open file between check and start."""
    heard = Heard()

    async def work() -> None:
        plan = desk.plan("open('good', 'w')")

        def seal_then_change(source: CoreSource) -> int:
            image = seal_core(source)
            (desk.directory / "core").write_text(f"#!{sys.executable} -IS\nopen('bad', 'w')")
            return image

        monkeypatch.setattr(sealing_module, "seal_core", seal_then_change)
        await desk.start(heard.core(), plan)
        await until(lambda: bool(heard.codes))

    asyncio.run(work())
    assert (desk.data / "good").exists()
    assert not (desk.data / "bad").exists()


def test_stopping_what_never_started_is_no_error() -> None:
    asyncio.run(as_coroutine(Heard().core().stop(graceful=True)))


async def as_coroutine(work: Awaitable[None]) -> None:
    await work
