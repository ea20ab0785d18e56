"""Machines booted with `ipv6.disable=1`: the rules load, the service opens IPv4, and nothing else leaves.

The kernel has the module and refuses everything about the family (Documentation/networking/ipv6.rst). What the tests on
network namespaces pretend is real here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.battery import NOBODY, unseen_probes
from psiphon_lab.guest.guest import Card, Guest, quote
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.judge import find_leaks, world_evidence
from psiphon_lab.launch import python_paths, setpriv_argv
from psiphon_lab.machine import CAPABILITIES, LAB_UID
from psiphon_lab.probe import LIMIT, ProbeSpec, probe_specs
from psiphon_lab.server_process import ServerProcess, run_server
from psiphon_lab.standin_core import write_core_wrapper
from psiphon_lab.world import World
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.guards import build_frame_guard, build_wire_guard
from psiphon_vpn.policy.model import Identity, Policy, State
from psiphon_vpn.policy.values import parse_names

pytestmark = [pytest.mark.requirement("R7")]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
IDENTITY = Identity(uid=LAB_UID, gid=LAB_UID)
SOURCE = python_paths()[-1]
OPEN_SECONDS = 420
"""An emulated processor on a busy machine needs minutes to load Python's modules."""

# Run by root in the guest: the status, once it is open or when the time is over.
WAIT = f"""
import json, time
from pathlib import Path
from psiphon_vpn.client import request_status
from psiphon_vpn.errors import UserError
status = None
end = time.monotonic() + {OPEN_SECONDS}
while time.monotonic() < end:
    try:
        status = dict(request_status(Path("/run/psiphon")))
    except UserError as error:
        status = {{"state": str(error)}}
    if status["state"] == "OPEN":
        break
    time.sleep(2)
print(json.dumps(status))
"""


@dataclass(frozen=True)
class Bench:
    """A guest in the client's place: its card's cable ends in the client's host, which is but a bridge."""

    guest: Guest
    world: World
    server: ServerProcess


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("guest")
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        server = stack.enter_context(run_server(world))
        client = world.client
        client.set_sysctls({"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        client.run(["ip", "address", "flush", "dev", LAN_A.interface])
        client.run(["ip", "link", "set", LAN_A.interface, "address", "02:50:53:00:0f:01"])
        client.run(["ip", "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"])
        client.run(["ip", "link", "set", LAN_A.interface, "master", "switch"])
        client.run(["ip", "link", "set", "switch", "up"])
        guest = stack.enter_context(
            Guest(
                client,
                kernel,
                cards=[Card(tap="wire", mac=LAN_A.mac)],
                modules=(*NFT_MODULES, "nft_socket"),
                directory=directory,
                parameters=["ipv6.disable=1"],
            )
        )
        client.run(["ip", "link", "set", "wire", "master", "switch", "up"])
        guest.run(
            f"""
            set -e
            ip link set eth0 up
            ip address add {LAN_A.client4}/{LAN_A.prefix4} dev eth0
            ip route add default via {LAN_A.router4} dev eth0 proto dhcp metric 100
            echo "nameserver {LAN_A.router4}" >/etc/resolv.conf
            """
        )
        yield Bench(guest, world, server)


def test_it_has_no_ipv6(bench: Bench) -> None:
    assert "ipv6" not in bench.guest.run("ls /proc/sys/net").output.split()
    assert bench.guest.run("ip -6 rule", check=False).code != 0


def test_every_reviewed_ruleset_loads(bench: Bench) -> None:
    paths = sorted(GOLDEN.glob("*.nft"))
    assert len(paths) >= 11
    for path in paths:
        shutil.copy(path, bench.guest.exchange / path.name)
        bench.guest.run(f"nft -f /exchange/{path.name}")
    bench.guest.run("nft flush ruleset")


def run_probes(bench: Bench, specs: tuple[ProbeSpec, ...], *, uid: int) -> dict[str, str]:
    """What each probe was answered, "" for those that were not."""
    asked = json.dumps({"limit": LIMIT, "specs": [asdict(spec) for spec in specs]})
    (bench.guest.exchange / "probes.json").write_text(asked)
    who = quote(*setpriv_argv(uid=uid, gid=uid, groups=(), ambient=(), bounding=None, no_new_privs=False))
    told = bench.guest.run(f"{who} {python('-m', 'psiphon_lab.probe')} </exchange/probes.json").output
    return {result["id"]: result["answer"] for result in map(json.loads, told.splitlines())}


def python(*words: str) -> str:
    """A command that runs this Python with the project."""
    return quote("env", f"PYTHONPATH={SOURCE}", sys.executable, *words)


def start_service(bench: Bench) -> None:
    """Boot lock, guards and daemon, as on an installed machine."""
    exchange = bench.guest.exchange
    boot = build_base_table(Policy(state=State.LOCKED, identity=IDENTITY))
    (exchange / "boot.nft").write_text(boot.render_replacement())
    guards = (build_wire_guard(IDENTITY), build_frame_guard(IDENTITY, parse_names("eth0")))
    for guard in guards:
        (exchange / f"{guard.name}.nft").write_text(guard.render())
    core = write_core_wrapper(exchange)
    settings = {"TargetServerEntry": bench.server.entry, "DisableRemoteServerListFetcher": True}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (exchange / "config.toml").write_text("\n".join(["[core.advanced]", *lines]) + "\n")
    who = setpriv_argv(
        uid=LAB_UID, gid=LAB_UID, groups=(), ambient=CAPABILITIES, bounding=CAPABILITIES, no_new_privs=True
    )
    options = ["--config", "/run/config.toml", "--core", f"/exchange/{core.name}"]
    options += ["--core-sha256", hashlib.sha256(core.read_bytes()).hexdigest()]
    holder = "; ".join(f"echo 'include \"/exchange/{guard.name}.nft\"'" for guard in guards)
    bench.guest.run(
        f"""
        set -e
        chmod 666 /dev/net/tun # as udev does
        nft -f /exchange/boot.nft
        {{ {holder}; exec sleep 3600; }} | nft -i >/dev/null 2>&1 &
        mkdir -p /run/psiphon /var/lib/psiphon
        cp /exchange/config.toml /run/config.toml
        chmod 600 /run/config.toml
        chown {LAB_UID}:{LAB_UID} /run/psiphon /var/lib/psiphon /run/config.toml
        export STATE_DIRECTORY=/var/lib/psiphon RUNTIME_DIRECTORY=/run/psiphon
        {quote(*who)} {python("-m", "psiphon_vpn.service", *options)} >/exchange/daemon.log 2>&1 &
        """
    )


@pytest.mark.timeout(900)
def test_the_service_opens_ipv4_and_nothing_else_leaves(bench: Bench) -> None:
    specs = probe_specs(salt=1, label="root")
    mark = bench.world.mark()
    page = next(spec.id for spec in specs if spec.id == "root-tcp-ipv4-internet-plain")
    assert run_probes(bench, specs, uid=0)[page] == LAN_A.client4, "the control: without the service it goes out"
    unseen = {spec.id for spec in unseen_probes(specs, bench.world.frames_since(mark)) if spec.family == 4}
    assert not unseen
    start_service(bench)
    (bench.guest.exchange / "wait.py").write_text(WAIT)
    status = json.loads(bench.guest.run("nice -n 19 " + python("/exchange/wait.py"), seconds=OPEN_SECONDS + 30).output)
    log = (bench.guest.exchange / "daemon.log").read_text(errors="replace")[-4000:]
    assert status["state"] == "OPEN", (status, log)
    assert status["ipv6_off"] == "absent"
    mark = bench.world.mark()
    specs = probe_specs(salt=2, label="root")
    assert run_probes(bench, specs, uid=0)[page] == plan.SERVER4
    others = probe_specs(salt=3, label="user")
    run_probes(bench, others, uid=NOBODY)
    frames = bench.world.frames_since(mark)
    assert len(unseen_probes([*specs, *others], frames)) == len(specs) + len(others)
    leaks = find_leaks(frames, world_evidence(bench.server.read_flows()))
    assert not leaks, [leak.text for leak in leaks[:10]]
