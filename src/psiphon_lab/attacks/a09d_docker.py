# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A09d: Docker starts and creates a network, and a container on it sends."""

from __future__ import annotations

import subprocess
from pathlib import Path

from psiphon_lab.leaktest.attack import Attack
from psiphon_lab.leaktest.model import Actor, Mode
from psiphon_lab.leaktest.trial import Trial
from psiphon_lab.namespace import LabError
from psiphon_lab.probe import TARGETS, TCP, UDP
from psiphon_lab.sending import ECHO, WEB, probe, volley
from psiphon_lab.waiting import wait_until

BRIDGE = "br-leak"
# Not the addresses of the laboratory's own container.
GATEWAY: dict[int, str] = {4: "10.89.0.1", 6: "fd00:89::1"}
CONTAINER = {4: "10.89.0.2", 6: "fd00:89::2"}
PREFIX = {4: 24, 6: 64}
NETWORK = {
    "Name": "leak",
    "EnableIPv6": True,
    "IPAM": {"Config": [{"Subnet": "10.89.0.0/24", "Gateway": GATEWAY[4]},
                        {"Subnet": "fd00:89::/64", "Gateway": GATEWAY[6]}]},
    "Options": {"com.docker.network.bridge.name": BRIDGE},
}  # fmt: skip
# A lab host has no control groups, and dockerd needs some. It sees a part of the machine's, read-only.
# Its data is in memory and disappears with the mount namespace.
START = (
    "mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -o remount,bind,ro /sys/fs/cgroup && "
    "exec dockerd --host=unix://{socket} --data-root=/run/data --exec-root=/run/docker --storage-driver=vfs "
    "--experimental --ip6tables --userland-proxy=false >{log} 2>&1"
)
TABLES = [(family, table) for family in ("ip", "ip6") for table in ("nat", "filter", "raw")]


def run(trial: Trial) -> None:
    """The real dockerd with its own rules for both families; a namespace is bridged as Docker bridges a container."""
    socket = trial.scratch_path("own/docker.sock")
    log = trial.scratch("own/dockerd.log")
    socket.unlink(missing_ok=True)
    for table in TABLES:
        trial.undo("nft", "delete", "table", *table)
    for device in ("docker0", BRIDGE):
        trial.undo("ip", "link", "del", device)
    files = trial.open_files()
    volley(trial, "meanwhile", seconds=1.0, raw=True)
    script = START.format(socket=socket, log=log)
    daemon = trial.spawn(["unshare", "--cgroup", "sh", "-c", script], files=files)
    _wait_answer(daemon, socket, log)
    trial.say(f"POST /networks/create: {_ask(socket, '/networks/create', NETWORK)}")
    _plug_in(trial)
    for family in (4, 6):
        for kind, port in ((UDP, ECHO), (TCP, WEB)):
            trial.fire(probe, by=Actor.CONTAINER, family=family, name=f"container {kind} ipv{family}", seconds=0.3,
                       kind=kind, target=TARGETS["internet"][family], port=port, interface="dk1")  # fmt: skip
    trial.settle()


def _ask(socket: Path, path: str, body: object = None) -> int:
    """Call Docker's API; returns the status code."""
    import httpx

    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://docker", timeout=30) as client:
        answer = client.get(path) if body is None else client.post(path, json=body)
    if answer.is_error:
        raise LabError(f"dockerd: {path}: {answer.text.strip()}")
    return answer.status_code


def _wait_answer(daemon: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    def is_there() -> bool:
        if daemon.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise LabError(f"dockerd ended with code {daemon.returncode}: {' '.join(last)}")
        return socket.exists()

    wait_until(is_there, "dockerd", pause=0.03)
    _ask(socket, "/_ping")


def _plug_in(trial: Trial) -> None:
    """What Docker does for a container: a veth pair from its bridge into the container's namespace."""
    container = trial.testbed.world.container
    # The two ends must not have the same index: see `topology.add_cable`.
    trial.run("ip", "link", "add", "dk0", "index", "9089", "type", "veth", "peer", "name", "dk1", "netns",
              str(container.pid), check=True)  # fmt: skip
    trial.undo("ip", "link", "del", "dk0")
    trial.run("ip", "link", "set", "dk0", "master", BRIDGE, "up", check=True)
    trial.run("ip", "link", "set", "dk1", "up", host=container, check=True)
    for family in (4, 6):
        word = f"-{family}"
        nodad = ["nodad"] if family == 6 else []
        trial.run("ip", word, "addr", "add", f"{CONTAINER[family]}/{PREFIX[family]}", "dev", "dk1", *nodad,
                  host=container, check=True)  # fmt: skip
        trial.run("ip", word, "route", "add", "default", "via", GATEWAY[family], "dev", "dk1", "metric", "1",
                  host=container, check=True)  # fmt: skip
    # Until then the kernel drops what the bridge sends.
    wait_until(lambda: _is_up(trial), f"{BRIDGE} operational", pause=0.03)


def _is_up(trial: Trial) -> bool:
    return trial.client.run(["cat", f"/sys/class/net/{BRIDGE}/operstate"]).stdout.strip() == "up"


ATTACK = Attack(
    id="A09d",
    name="Docker starts",
    reference="Docker inserts rules of its own, turns forwarding on and translates addresses, whatever a VPN says",
    summary="Docker is started while the lock stands, and creates a network. Its rules let containers out and give "
    "their packets the computer's own address. A container on that network, and programs beside it, try to send.",
    actors=(Actor.ROOT, Actor.CONTAINER),
    recognised="by source port (kept by translation) or a token in the payload",
    control="the same packets with Docker alone",
    run=run,
    disturbs=True,
    not_applicable={Mode.FLUSHED: "dockerd ends when its chains are flushed while it makes them; A09 covers this"},
    tools=("dockerd", "iptables-nft", "ip6tables-nft", "unshare", "nsenter"),
)
