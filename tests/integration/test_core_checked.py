# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The core is checked before every start, on the real service; and updated without the lock ever being touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Figure
from tests.cores import make_elf, sha256
from tests.https_site import make_certificate
from tests.integration.testbed import Testbed, open_testbed

from psiphon_lab import addresses as plan
from psiphon_lab.machine import LAB_UID
from psiphon_vpn.core import naming
from psiphon_vpn.system.layout import Layout

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root and namespaces")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def _testbed() -> Iterator[Testbed]:
    with open_testbed(installed=True) as made:
        yield made


@pytest.fixture
def testbed(_testbed: Testbed) -> Testbed:
    return _testbed


def layout_of(testbed: Testbed) -> Layout:
    return Layout(root=testbed.world.directory / "root")


def kill_core(testbed: Testbed) -> None:
    status = testbed.machine.wait_state("OPEN")
    os.kill(status["core_pid"], signal.SIGKILL)


def wait_refused(testbed: Testbed, reason: str) -> dict[str, object]:
    """Wait until the service gives the reason; from then on it must neither open nor run anything."""
    found: dict[str, object] = {}

    def says_so() -> bool:
        found.update(testbed.machine.read_status() or {})
        return found.get("reason_code") == reason and found.get("state") == "LOCKED"

    testbed.machine.wait_for(says_so, reason)
    for _ in range(20):
        status = testbed.machine.read_status()
        assert status is not None
        assert status["state"] != "OPEN"
        assert status["locked"] is True
        assert status["core_pid"] is None
        assert not testbed.machine.lease_remains()
    return found


@contextlib.contextmanager
def core_of_one_program(testbed: Testbed) -> Iterator[None]:
    """A stand-in that, unlike the usual one, does not execute another program after its start: so it keeps its name."""
    layout = layout_of(testbed)
    before = (layout.core_binary.read_bytes(), layout.core_record.read_bytes())
    script = f"""#!{Path(sys.executable).resolve()} -Ss
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
from psiphon_lab.standin_core import main
sys.exit(main(["--standin-faults", {str(testbed.faults)!r}, *sys.argv[1:]]))
""".encode()
    record = {**json.loads(before[1]), "sha256": sha256(script), "size": len(script)}
    try:
        layout.core_binary.write_bytes(script)
        layout.core_record.write_text(json.dumps(record))
        yield
    finally:
        layout.core_binary.write_bytes(before[0])
        layout.core_record.write_bytes(before[1])


def list_cores(testbed: Testbed) -> dict[int, tuple[int, str, str]]:
    """Every process of this world with the core's name: its user, its name and its arguments, as ps(1) shows them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = process.joinpath("comm").read_text(errors="replace").rstrip("\n")
            arguments = process.joinpath("cmdline").read_text(errors="replace").replace("\0", " ")
            if "psiphon-tunnel-" in name and str(testbed.world.directory) in arguments:
                found[int(process.name)] = (process.stat().st_uid, name, arguments)
    return found


def replace_core(testbed: Testbed) -> int:
    """End the core; returns the next one's process id once the service is open again."""
    before = testbed.machine.wait_state("OPEN")["core_pid"]
    kill_core(testbed)
    testbed.machine.wait_for(
        lambda: (testbed.machine.read_status() or {}).get("core_pid") not in {before, None}, "another core"
    )
    return int(testbed.machine.wait_state("OPEN")["core_pid"])


def test_the_core_and_nothing_else_has_its_name_in_a_list_of_processes(testbed: Testbed) -> None:
    link = layout_of(testbed).core_name
    with core_of_one_program(testbed):
        for _turn in range(2):  # the second time with a daemon that has already had a core
            core = replace_core(testbed)
            found = list_cores(testbed)
            assert set(found) == {core}
            assert found[core][:2] == (LAB_UID, "psiphon-tunnel-")
            assert f" {link} -config " in found[core][2]
        link.unlink()
        replace_core(testbed)
        assert not list_cores(testbed), "without the link it opens, without a name"
        link.symlink_to(naming.TARGET)
    replace_core(testbed)


@pytest.mark.requirement("R13", "R1", "R3")
def test_a_core_that_psiphon_user_changed_is_not_started_and_the_machine_stays_locked(testbed: Testbed) -> None:
    binary = layout_of(testbed).core_binary
    good = binary.read_bytes()
    mark = testbed.world.mark()
    testbed.machine.wait_state("OPEN")
    # What an attacker in the core could do: psiphon-user owns the file.
    testbed.machine.client.run(["sh", "-c", f"echo 'touch {binary}.ran' >> {binary}"], uid=LAB_UID)
    assert binary.read_bytes() != good
    kill_core(testbed)
    status = wait_refused(testbed, "core_mismatch")
    assert "not the one that was installed" in str(status["reason"])
    assert sha256(good) in str(status["reason"])
    assert "sudo psiphon-vpn setup --bundle FILE" in str(status["next_step"])
    testbed.probe()
    binary.write_bytes(good)
    # It recovers by itself: the pauses between attempts are short at first.
    testbed.machine.wait_state("OPEN")
    assert testbed.page() == plan.SERVER4
    testbed.assert_no_leak(mark)


def spoil_link(layout: Layout) -> Callable[[], object]:
    layout.core_current.rename(f"{layout.core_current}.away")
    return lambda: Path(f"{layout.core_current}.away").rename(layout.core_current)


def spoil_record(layout: Layout) -> Callable[[], object]:
    content = layout.core_record.read_bytes()
    layout.core_record.write_bytes(b"{}")
    return lambda: layout.core_record.write_bytes(content)


def spoil_owner(layout: Layout) -> Callable[[], object]:
    os.chown(layout.core_record, LAB_UID, LAB_UID)
    return lambda: os.chown(layout.core_record, 0, 0)


def spoil_mode(layout: Layout) -> Callable[[], object]:
    layout.core_dir.chmod(0o777)
    return lambda: layout.core_dir.chmod(0o755)


def spoil_binary(layout: Layout) -> Callable[[], object]:
    layout.core_binary.chmod(0o644)
    return lambda: layout.core_binary.chmod(0o755)


@pytest.mark.requirement("R12", "R13", "R1")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_link, "core_not_installed"),
        (spoil_record, "core_record"),
        (spoil_owner, "core_record"),
        (spoil_mode, "core_record"),
        (spoil_binary, "core_missing"),
    ],
    ids=["no core", "a broken record", "a record of psiphon-user's", "a directory open to all", "no program"],
)
def test_without_something_to_check_against_nothing_is_started(
    spoil: Callable[[Layout], Callable[[], object]], reason: str, testbed: Testbed
) -> None:
    mark = testbed.world.mark()
    testbed.machine.wait_state("OPEN")
    repair = spoil(layout_of(testbed))
    try:
        testbed.machine.command("restart")
        assert wait_refused(testbed, reason)["next_step"]
        if reason != "core_missing":
            # The service keeps trying, but nobody should wait for an attempt that cannot help.
            seen = [testbed.machine.read_status() or {} for _ in range(20)]
            assert {status["next_try"] for status in seen if status["reason_code"] == reason} <= {None}
    finally:
        repair()
    # The user's next step, and what an update does.
    testbed.machine.command("restart")
    testbed.machine.wait_state("OPEN")
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R12", "R13")
def test_psiphon_user_can_change_the_core_but_not_what_it_is_checked_against(testbed: Testbed) -> None:
    layout = layout_of(testbed)
    script = """
for target in "$1/current/record.json" "$1/current/new" "$1/new"; do
    (echo x > "$target") 2>/dev/null && exit 1
done
for target in "$1/current" "$1/current/record.json" "$1/current/psiphon-tunnel-core"; do
    (mv "$target" "$target.x" || rm -f "$target" || ln -sfn /tmp "$target") 2>/dev/null && exit 2
done
exit 0
"""
    testbed.machine.client.run(["sh", "-c", script, "sh", layout.core_dir], uid=LAB_UID)


def test_a_daemon_that_is_given_a_core_without_its_sha256_does_not_start(testbed: Testbed) -> None:
    for options in (
        ["--core", "/bin/true"],
        ["--core-sha256", "0" * 64],
        ["--core", "/bin/true", "--core-sha256", "0"],
    ):
        done = testbed.machine.client.run(
            [sys.executable, "-m", "psiphon_vpn.service", *options], check=False, uid=LAB_UID
        )
        assert done.returncode == 2
        assert "go together" in done.stderr


@pytest.mark.requirement("R13")
def test_a_given_core_is_checked_as_well(tmp_path: Path) -> None:
    with open_testbed(start=False) as testbed:
        testbed.machine.core_sha256 = "0" * 64
        testbed.machine.start_daemon()
        wait_refused(testbed, "core_mismatch")


# -- update ------------------------------------------------------------------------------------------------------------

SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.https_site import run_site
with run_site(Path(sys.argv[2]).read_bytes(), (Path(sys.argv[3]), Path(sys.argv[4])), host="0.0.0.0") as site:
    print(site.port, flush=True)
    sys.stdin.read()
"""
UPDATE = """
import json, ssl, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
told = json.loads(sys.argv[2])
from tests.cores import make_store
from psiphon_vpn.cli.update import Conversation, bring_core
from psiphon_vpn.core.obtain import CoreRequest
from psiphon_vpn.errors import UserError
store = make_store(Path(told["root"]))
talk = Conversation(runtime_dir=Path(told["runtime"]), assume_yes=True)
request = CoreRequest(url=told["url"], sha256=told["sha256"], proxy=told["proxy"])
try:
    bring_core(store, request, talk, via_tunnel=bool(told["proxy"]),
               tls=ssl.create_default_context(cafile=told["authority"]))
except UserError as error:
    print("FAILED:", error)
"""


class Mirror:
    """A web server with a core on the internet, and `update` on the client as root."""

    def __init__(self, testbed: Testbed, directory: Path) -> None:
        self.testbed = testbed
        self.content = make_elf(os.urandom(400_000))
        (directory / "core").write_bytes(self.content)
        self.certificate = make_certificate(directory, name=f"IP:{plan.INTERNET4}")
        self.root = directory / "updated"
        self.server = testbed.world.internet.spawn(
            [sys.executable, "-c", SERVE, ROOT, directory / "core", *self.certificate],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.server.stdout is not None
        self.port = int(self.server.stdout.readline())

    def update(self, *, proxy: str | None) -> str:
        reported = {
            "root": str(self.root),
            "runtime": str(self.testbed.machine.runtime_dir),
            "url": f"https://{plan.INTERNET4}:{self.port}/core",
            "sha256": sha256(self.content),
            "authority": str(self.certificate[0]),
            "proxy": proxy,
        }
        done = self.testbed.world.client.run([sys.executable, "-c", UPDATE, ROOT, json.dumps(reported)], check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        for pipe in (self.server.stdin, self.server.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def mirror(testbed: Testbed, tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(testbed, tmp_path)
    yield made
    made.close()


@pytest.mark.requirement("R14", "R3")
@pytest.mark.parametrize("proxy", [None, "socks5://127.0.0.1:1081"], ids=["through the TUN", "through SOCKS"])
def test_an_update_over_the_open_tunnel_leaks_nothing_and_restarts_the_core(
    proxy: str | None, testbed: Testbed, mirror: Mirror
) -> None:
    mark = testbed.world.mark()
    before = testbed.machine.wait_state("OPEN")["core_pid"]
    shown = mirror.update(proxy=proxy)
    assert "The service is starting it now" in shown, shown
    assert Layout(root=mirror.root).core_binary.read_bytes() == mirror.content
    assert testbed.machine.wait_state("OPEN")["core_pid"] != before
    testbed.assert_no_leak(mark)


@pytest.mark.requirement("R14", "R3")
@pytest.mark.parametrize("proxy", [None, "socks5://127.0.0.1:1081"], ids=["directly", "through SOCKS"])
@pytest.mark.parametrize("daemon", [True, False], ids=["with the service", "with the boot lock alone"])
def test_an_update_on_a_locked_machine_fails_with_the_way_and_the_lock_stands(
    proxy: str | None, daemon: bool, testbed: Testbed, mirror: Mirror, figure: Figure
) -> None:
    mark = testbed.world.mark()
    rules = ["nft", "list", "chain", "inet", "psiphon_filter", "output"]
    if daemon:
        testbed.machine.command("stop")
    else:
        testbed.machine.stop_daemon()
    try:
        locked = testbed.world.client.run(rules).stdout
        begin = time.monotonic()
        shown = mirror.update(proxy=proxy)
        figure("an update on a locked machine to its failure, s", time.monotonic() - begin)
        assert shown.startswith("FAILED: The tunnel program was not downloaded:")
        assert "--core-file PATH --sha256 HEX" in shown
        assert testbed.world.client.run(rules).stdout.split() == locked.split()
        assert not Layout(root=mirror.root).core_current.exists()
        testbed.assert_no_leak(mark)
    finally:
        if not daemon:
            testbed.machine.start_daemon()
        testbed.machine.command("start")
        testbed.machine.wait_state("OPEN")
