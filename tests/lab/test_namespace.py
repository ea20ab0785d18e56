# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lab hosts: isolated, complete, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from psiphon_lab.namespace import Host, LabError, begin_host, finish_host, open_host
from psiphon_lab.waiting import wait_until

pytestmark = pytest.mark.lab


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host")


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    with open_host("alpha", directory=directory, expose=[directory]) as made:
        yield made


def members(netns: str) -> list[int]:
    """The processes in a network namespace, named as /proc names it."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{entry}/ns/net") == netns:
                found.append(int(entry))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_host_has_only_its_own_loopback_and_a_name(host: Host) -> None:
    assert host.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]
    assert host.run(["cat", "/proc/sys/kernel/hostname"]).stdout == "alpha\n"


def test_an_ordinary_user_can_run_this_python_with_its_libraries(host: Host) -> None:
    script = "import os, ssl, psiphon_lab, click; print(os.getresuid(), os.getgroups(), ssl.__file__)"
    done = host.run([sys.executable, "-c", script], uid=65534)
    assert done.stdout.startswith("(65534, 65534, 65534) []")
    assert sys.base_prefix in done.stdout


def test_an_ordinary_user_can_open_the_tun_device(host: Host) -> None:
    host.run([sys.executable, "-c", "open('/dev/net/tun', 'r+b', buffering=0)"], uid=65534)


def test_the_tun_device_is_the_hosts_own_and_not_the_machines(host: Host) -> None:
    """A test removes it to see what the service does without: the machine's own must stay for everybody else."""
    assert int(host.run(["stat", "--format=%d", "/dev/net/tun"]).stdout) != Path("/dev/net/tun").stat().st_dev


def test_capabilities_are_exactly_the_requested_ones(host: Host) -> None:
    done = host.run(["cat", "/proc/self/status"], uid=65534, ambient=["net_admin"], bounding=["net_admin", "net_raw"])
    fields = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapAmb"], 16) == 1 << 12
    assert int(fields["CapBnd"], 16) == (1 << 12) | (1 << 13)
    nothing = host.run(["cat", "/proc/self/status"], uid=65534, bounding=(), no_new_privs=True).stdout
    assert "CapBnd:\t0000000000000000" in nothing
    assert "NoNewPrivs:\t1" in nothing


def test_resolv_conf_is_the_hosts_own(host: Host) -> None:
    before = Path("/etc/resolv.conf").read_bytes() if Path("/etc/resolv.conf").exists() else None
    host.set_resolv_conf("nameserver 192.0.2.1\n")
    assert host.run(["cat", "/etc/resolv.conf"]).stdout == "nameserver 192.0.2.1\n"
    after = Path("/etc/resolv.conf").read_bytes() if Path("/etc/resolv.conf").exists() else None
    assert before == after


def test_sysctls_are_the_hosts_own(host: Host) -> None:
    path = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
    before = path.read_text()
    wanted = "2" if before.strip() != "2" else "1"
    host.set_sysctls({"ipv4/conf/all/rp_filter": wanted})
    assert host.get_sysctl("ipv4/conf/all/rp_filter") == wanted
    assert path.read_text() == before


def test_a_path_below_a_private_directory_is_reached_when_exposed(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shown, hidden = private / "shown", private / "hidden"
    shown.write_text("yes")
    hidden.write_text("no")
    with open_host("beta", directory=tmp_path / "host", expose=[shown]) as made:
        assert made.run(["cat", shown], uid=65534).stdout == "yes"
        assert made.run(["cat", hidden], uid=65534, check=False).returncode != 0
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_failing_command_is_an_error_that_can_be_pasted(host: Host) -> None:
    with pytest.raises(LabError, match=r"rc 3: nsenter .* sh -c 'exit 3'"):
        host.run(["sh", "-c", "exit 3"])


def test_everything_started_on_a_host_ends_with_it(directory: Path) -> None:
    with open_host("gamma", directory=directory) as made:
        netns = os.readlink(made.netns_path)
        # A daemon that has left its parent and its session.
        made.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"])
        made.spawn(["sleep", "1000"])
        wait_until(lambda: len(members(netns)) == 3, "both programs run")
    assert members(netns) == []


def test_a_program_still_on_its_way_in_ends_with_the_host(directory: Path) -> None:
    for attempt in range(3):  # some of these are swept, some come too late for the sweep
        with open_host("zeta", directory=directory / str(attempt)) as made:
            child = made.spawn(["sleep", "1000"])
        assert child.poll() is not None


def test_a_kept_host_outlives_its_block_and_ends_by_sigterm(directory: Path) -> None:
    made = finish_host(begin_host("delta", directory=directory))
    netns = os.readlink(made.netns_path)
    child = made.spawn(["sleep", "1000"])
    # nsenter is a process of this machine until it has entered; before that, the end of the host would not catch it.
    wait_until(lambda: child.pid in members(netns), "the program is on the host")
    made.keep()
    made.close()
    assert is_alive(made.pid)
    assert child.poll() is None
    os.kill(made.pid, signal.SIGTERM)
    wait_until(lambda: members(netns) == [], "the kept host ends")
    child.wait(timeout=60)
    made.wait_for_end()


REMEMBERED = """
import os, signal
from psiphon_lab.host_process import wait_for_end, watch_sigterm
sigterm = watch_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
wait_for_end(0, sigterm)
print("ended")
"""


def test_a_sigterm_before_the_host_process_waits_is_not_lost() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    reading, writing = os.pipe()  # its other end stays open: only the signal can end the wait
    try:
        done = subprocess.run(
            [sys.executable, "-c", REMEMBERED],
            stdin=reading,
            capture_output=True,
            timeout=60,
            env=environment,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    assert done.stdout == b"ended\n"


KEEPER = """
import os
from psiphon_lab.world import World
with World() as world:
    print(world.directory, *[host.pid for host in world.hosts.values()], flush=True)
    world.keep()
os._exit(0)
"""


def test_a_kept_world_leaves_no_files_when_it_is_ended() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, env=environment)
    assert keeper.stdout is not None
    directory, *pids = keeper.stdout.readline().decode().split()
    keeper.stdout.close()
    assert keeper.wait(timeout=60) == 0
    namespaces = [os.readlink(f"/proc/{pid}/ns/net") for pid in pids]
    assert Path(directory).exists()
    for pid in pids:
        os.kill(int(pid), signal.SIGTERM)
    wait_until(lambda: not any(members(netns) for netns in namespaces), "every process of the world ends")
    wait_until(lambda: not Path(directory).exists(), "the world's files are gone")


OWNER = """
import sys, time
from pathlib import Path
from psiphon_lab.world import World
with World() as world:
    world.client.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"])
    print(world.directory, *[host.pid for host in world.hosts.values()], flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_of_a_world_is_left_when_its_owner_is_killed(number: int) -> None:
    links = sorted(os.listdir("/sys/class/net"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, env=environment)
    assert owner.stdout is not None
    directory, *pids = owner.stdout.readline().decode().split()
    namespaces = [os.readlink(f"/proc/{pid}/ns/net") for pid in pids]
    assert all(members(netns) for netns in namespaces)
    owner.send_signal(number)
    owner.wait(timeout=60)
    owner.stdout.close()
    wait_until(lambda: not any(members(netns) for netns in namespaces), "every process of the world ends")
    wait_until(lambda: not Path(directory).exists(), "the world's files are gone")
    assert sorted(os.listdir("/sys/class/net")) == links
