# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs with rules of their own start beside the service, on Debian's kernels with all modules that they ask for.

Docker, podman and LXC run real containers, whose way to the internet is the tunnel or none. libvirt makes its network;
in place of a virtual machine a namespace is at its bridge, since a machine in an emulated one would take hours.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.guest.plain_line import UPLINK, Line, open_line
from tests.guest.seeker import BEGIN, HUSH, SAYS, SEEK, SEEKER

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A
from psiphon_lab.attacks.a09b_firewalld import ASK_STATE
from psiphon_lab.guest.image import BUSYBOX
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.probe import ProbeSpec, probe_specs
from psiphon_lab.probe_runner import unseen_probes

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(3600)]
MEMORY: Final = 1024
MODULES: Final = ("overlay", "br_netfilter")
PLUMBING: Final = {"arp", "nd", "mld"}
FLOW, CALL = "tunnel flow", "tunnel call"
OPEN: Final = "status['state'] == 'OPEN'"

ASK: Final = """
import http.client, json, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/docker.sock")
def ask(path, body=b"", *, method="POST", kind="application/json"):
    connection = Connection("docker", timeout=170)
    connection.request(method, path, body=body, headers={"Content-Type": kind})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status >= 400:
        raise SystemExit(f"{path}: {answer.status} {said.decode()}")
    return json.loads(said) if said.startswith(b"{") else {}
network = {"Name": "lab", "EnableIPv6": True, "IPAM": {"Config": [
    {"Subnet": "10.89.0.0/24", "Gateway": "10.89.0.1"}, {"Subnet": "fd00:89::/64", "Gateway": "fd00:89::1"}]}}
container = {"Image": "box", "Cmd": ["/bin/busybox", "sleep", "3600"], "HostConfig": {"NetworkMode": "lab"}}
ask("/images/create?fromSrc=-&repo=box", open("/exchange/box.tar", "rb").read(), kind="application/x-tar")
ask("/networks/create", json.dumps(network))
made = ask("/containers/create", json.dumps(container))["Id"]
ask(f"/containers/{made}/start")
print(ask(f"/containers/{made}/json", method="GET")["State"]["Pid"])
"""
# The root directory is in memory, where runc cannot change the root by pivot_root(2).
DOCKER: Final = """
    mkdir -p /etc/docker /run/data
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mountpoint -q /run/data || mount -t tmpfs data /run/data
    # dockerd gives a containerd of its own 15 seconds to start, which an emulated processor may not make.
    containerd --address=/run/containerd.sock --root=/run/data/containerd --state=/run/docker-containerd \
        >>/exchange/containerd.log 2>&1 &
    echo $! >/run/containerd.pid
    for turn in $(seq 600); do [ -S /run/containerd.sock ] && break; sleep 0.2; done
    DOCKER_RAMDISK=yes dockerd --host=unix:///run/docker.sock --data-root=/run/data --exec-root=/run/docker \
        --containerd=/run/containerd.sock \
        --pidfile=/run/docker.pid --storage-driver=vfs --ip6tables --experimental >>/exchange/dockerd.log 2>&1 &
    for turn in $(seq 600); do [ -S /run/docker.sock ] && break; sleep 0.2; done
    python3 /exchange/ask.py || { tail -n5 /exchange/dockerd.log; exit 1; }
"""
NO_DOCKER: Final = """
    kill $(cat /run/docker.pid)
    for turn in $(seq 600); do [ -e /run/docker.pid ] || break; sleep 0.2; done
    kill -KILL $(cat /run/containerd.pid)
    umount -l /run/data  # with what it knows of networks and containers
    rm -rf /run/docker.sock /run/docker /run/containerd.sock /run/docker-containerd
    for name in $(ls /sys/class/net); do case $name in docker0|br-*) ip link del $name ;; esac; done
    for table in filter nat raw; do nft delete table ip $table; nft delete table ip6 $table; done 2>/dev/null
    true
"""
# The root file system of containers, in memory.
BOX: Final = """
    set -e
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /run/box/bin /run/box/proc /run/box/dev /run/box/sys /run/box/etc /run/box/run
    [ -e /run/box/bin/busybox ] || cp /exchange/busybox /run/box/bin/busybox
"""
PODMAN_CONF: Final = """[engine]
no_pivot_root = true
"""
PODMAN_COMMAND: Final = (
    "env CONTAINERS_CONF=/exchange/podman.conf podman --root /run/podman-root --runroot /run/podman-run"
    " --storage-driver vfs --cgroup-manager cgroupfs --events-backend file --network-config-dir /run/podman-nets"
)
PODMAN: Final = f"""
    {BOX}
    {PODMAN_COMMAND} network create --ipv6 --subnet 10.90.0.0/24 --subnet fd00:90::/64 --disable-dns lab
    {PODMAN_COMMAND} run -d --name box --network lab --rootfs /run/box /bin/busybox sleep 3600
    {PODMAN_COMMAND} inspect --format '{{{{.State.Pid}}}}' box
"""
NO_PODMAN: Final = f"""
    set -e
    {PODMAN_COMMAND} rm --force --time 0 box
    {PODMAN_COMMAND} network rm lab
"""
LXC_NET: Final = Path("/usr/libexec/lxc/lxc-net")
LXC_NET_CONF: Final = """LXC_IPV6_ADDR=fd00:3::1
LXC_IPV6_MASK=64
LXC_IPV6_NETWORK=fd00:3::/64
LXC_IPV6_NAT=true
"""
LXC_CONF: Final = """lxc.rootfs.path = dir:/run/box
lxc.uts.name = box
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = 10.0.3.20/24
lxc.net.0.ipv4.gateway = 10.0.3.1
lxc.net.0.ipv6.address = fd00:3::20/64
lxc.net.0.ipv6.gateway = fd00:3::1
lxc.apparmor.profile = unchanged
lxc.init.cmd = /bin/busybox sleep 3600
"""
LXC: Final = f"""
    {BOX}
    mkdir -p /etc/default /var/lib/misc /run/lxc-path
    cp /exchange/lxc-net.conf /etc/default/lxc
    {LXC_NET} start
    lxc-start -P /run/lxc-path -n box -f /exchange/lxc.conf -l INFO -o /exchange/lxc.log
    lxc-wait -P /run/lxc-path -n box -s RUNNING
    lxc-info -P /run/lxc-path -n box -p -H
"""
NO_LXC: Final = f"""
    set -e
    lxc-stop -P /run/lxc-path -n box -k
    {LXC_NET} stop
"""
LIBVIRT_CONF: Final = """auth_unix_rw = "none"
unix_sock_dir = "/run/libvirt"
log_outputs = "3:file:/exchange/libvirtd.log"
"""
LIBVIRT_NETWORK: Final = """<network>
<name>default</name><forward mode="nat"><nat ipv6="yes"/></forward><bridge name="virbr0" stp="off" delay="0"/>
<ip address="192.168.122.1" netmask="255.255.255.0">
<dhcp><range start="192.168.122.2" end="192.168.122.254"/></dhcp></ip>
<ip family="ipv6" address="fd00:122::1" prefix="64"/>
</network>
"""
VIRSH: Final = "virsh -c network:///system"
LIBVIRT: Final = f"""
    set -e
    mkdir -p /run/libvirt /var/lib/libvirt/dnsmasq /var/log/libvirt /var/cache/libvirt /etc/libvirt
    # Its driver for virtual machines does not start without them.
    grep -q ^libvirt-qemu: /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >>/etc/passwd
    grep -q ^libvirt-qemu: /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
    libvirtd --daemon --config /exchange/libvirtd.conf --pid-file /run/libvirtd.pid
    for turn in $(seq 600); do [ -S /run/libvirt/libvirt-sock ] && break; sleep 0.2; done
    {VIRSH} net-create /exchange/libvirt-network.xml
    unshare --net sleep 3600 & guest=$!
    echo $guest >/run/libvirt-guest.pid
    for turn in $(seq 600); do
        [ "$(readlink /proc/$guest/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break
        sleep 0.1
    done
    ip link add vnet0 type veth peer name eth0 netns $guest
    ip link set vnet0 master virbr0 up
    nsenter --net=/proc/$guest/ns/net sh -ec '
        ip link set lo up
        ip link set eth0 up
        ip address add 192.168.122.20/24 dev eth0
        ip address add fd00:122::20/64 dev eth0 nodad
        ip route add default via 192.168.122.1
        ip -6 route add default via fd00:122::1'
    echo $guest
"""
NO_LIBVIRT: Final = f"""
    set -e
    kill $(cat /run/libvirt-guest.pid)
    {VIRSH} net-destroy default
    kill $(cat /run/libvirtd.pid)
    for turn in $(seq 600); do [ -e /run/libvirtd.pid ] || exit 0; sleep 0.2; done
    exit 1
"""
BUS: Final = """<busconfig>
<type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
"""
FIREWALLD: Final = f"""
    set -e
    mkdir -p /run/dbus /run/firewalld-etc
    dbus-daemon --nopidfile --config-file=/exchange/bus.conf --fork
    firewalld --nofork --nopid --system-config /run/firewalld-etc >/exchange/firewalld.log 2>&1 &
    echo $! >/run/firewalld.pid
    for turn in $(seq 600); do {" ".join(ASK_STATE)} >/dev/null 2>&1 && break; sleep 0.5; done
    firewall-cmd --complete-reload
    kill $(cat /run/firewalld.pid)
    for turn in $(seq 200); do kill -0 $(cat /run/firewalld.pid) 2>/dev/null || exit 0; sleep 0.2; done
    exit 1
"""
UFW: Final = """
    set -e
    ufw --force enable
    ufw reload
    ufw disable
"""


def pack(files: Mapping[str, Path]) -> bytes:
    """An archive of files and directories, as far as there are any. files: by their names in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, path in files.items():
            if path.exists():
                archive.add(path, name)
    return stream.getvalue()


@dataclass(frozen=True)
class Seen:
    """What came out while a neighbour was there.

    Attributes:
        sent: what frames of programs of the machine say that they are.
        leaks: frames outside that are not innocent, in words.
        kinds: why the others are.
        out: how many of the container's probes came out.
        tried: how many there were.
        answers: what they were answered.
        status: the service's at the end.
    """

    sent: frozenset[str]
    leaks: tuple[str, ...]
    kinds: frozenset[str]
    out: int
    tried: int
    answers: dict[str, str]
    status: dict[str, Any]


class Bench:
    """A guest in which neighbours start while programs send."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._salt = 0
        files = {
            "seeker.py": SEEKER,
            "ask.py": ASK,
            "bus.conf": BUS,
            "podman.conf": PODMAN_CONF,
            "lxc-net.conf": LXC_NET_CONF,
            "lxc.conf": LXC_CONF,
            "libvirtd.conf": LIBVIRT_CONF,
            "libvirt-network.xml": LIBVIRT_NETWORK,
        }
        for name, text in files.items():
            (line.guest.exchange / name).write_text(text)
        (line.guest.exchange / "box.tar").write_bytes(pack({"bin/busybox": BUSYBOX}))
        shutil.copy(BUSYBOX, line.guest.exchange / "busybox")

    def play(self, script: str, *, container: bool = False, service: bool = True) -> Seen:
        """Run a neighbour's script, and its container's probes if there is one: then the script ends with its pid."""
        guest = self.line.guest
        mark = self.line.mark()
        guest.run(BEGIN)
        seekers = [guest.start(f"{SEEK} {who}") for who in ("root", "user")]
        done = guest.run(script, seconds=600)
        specs: tuple[ProbeSpec, ...] = ()
        answers: dict[str, str] = {}
        if container:
            inside = f"nsenter --net=/proc/{int(done.output.split()[-1])}/ns/net"
            if service:
                self.line.service.wait_status(OPEN)
            self._salt += 1
            specs = probe_specs(salt=self._salt, label="container")
            answers = self.line.service.run_probes(specs, uid=0, within=inside)
        status = self.line.service.wait_status(OPEN) if service else {}
        guest.run(f"touch {HUSH}")
        for seeker in seekers:
            assert int(guest.finish(seeker).output), "it has sent"
        frames = self.line.frames_since(mark)
        verdicts = self.line.judge(frames)
        return Seen(
            frozenset(found[1].decode() for frame in frames if (found := SAYS.search(frame.data))),
            tuple(each.text for each in verdicts if each.is_leak),
            frozenset(each.innocent for each in verdicts if each.innocent is not None),
            len(specs) - len(unseen_probes(specs, frames)),
            len(specs),
            answers,
            status,
        )


def require(*programs: str) -> None:
    """Skip the test if this machine lacks one."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def bench(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The service is open, by a plain card."""
    directory = tmp_path_factory.mktemp("guest")
    with open_line(kernel, directory, modules=MODULES, memory=MEMORY) as line:
        made = Bench(line)
        line.guest.run(UPLINK)
        check_control(made)
        line.service.lock()
        line.service.start()
        line.service.wait_open()
        yield made


@dataclass(frozen=True)
class Neighbour:
    """A program that gives containers or virtual machines a network of their own.

    Attributes:
        needs: the programs without which it is not tried.
        start: starts it and a container, whose pid is the last line.
        stop: ends both, and takes away what they leave.
    """

    needs: tuple[str, ...]
    start: str
    stop: str

    @property
    def missing(self) -> list[str]:
        """What this machine lacks of it."""
        return [name for name in self.needs if shutil.which(name) is None]


NEIGHBOURS: Final = {
    "docker": Neighbour(("dockerd", "containerd"), DOCKER, NO_DOCKER),
    "podman": Neighbour(("podman", "conmon", "/usr/lib/podman/netavark"), PODMAN, NO_PODMAN),
    "lxc": Neighbour(("lxc-start", str(LXC_NET), "dnsmasq"), LXC, NO_LXC),
    "libvirt": Neighbour(("libvirtd", "virsh", "dnsmasq"), LIBVIRT, NO_LIBVIRT),
}


def check_control(bench: Bench) -> None:
    """Without the lock each container's probes come out, with the machine's addresses, and the machine's own do."""
    for neighbour in NEIGHBOURS.values():
        if neighbour.missing:
            continue
        seen = bench.play(neighbour.start, container=True, service=False)
        assert seen.sent == {"root ip", "user ip", "root raw"}
        assert seen.out == seen.tried
        assert {LAN_A.client4, LAN_A.client6} <= set(seen.answers.values())
        bench.line.guest.run(neighbour.stop)


def check_open(seen: Seen) -> None:
    """Nothing but the tunnel came out, and it is open again."""
    assert not seen.leaks
    assert not seen.sent
    assert FLOW in seen.kinds
    assert seen.kinds <= {FLOW, CALL, *PLUMBING}
    assert {name: layer["state"] for name, layer in seen.status["layers"].items() if layer["state"] != "ok"} == {}


@pytest.mark.requirement("R3", "R19", "B3")
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_it_starts_beside_the_service_and_its_container_has_the_tunnel_alone(bench: Bench, name: str) -> None:
    neighbour = NEIGHBOURS[name]
    require(*neighbour.needs)
    try:
        seen = bench.play(neighbour.start, container=True)
    finally:
        stopped = bench.play(neighbour.stop)
    check_open(seen)
    assert not seen.out
    assert seen.answers["container-tcp-ipv4-internet-plain"] == plan.SERVER4
    assert LAN_A.client4 not in seen.answers.values()
    assert LAN_A.client6 not in seen.answers.values()
    check_open(stopped)


@pytest.mark.requirement("R3", "B3")
def test_firewalld_starts_reloads_and_stops_beside_the_service(bench: Bench) -> None:
    require("firewalld", "firewall-cmd", "dbus-daemon")
    check_open(bench.play(FIREWALLD))


@pytest.mark.requirement("R3", "B3")
def test_ufw_is_enabled_reloaded_and_disabled_beside_the_service(bench: Bench) -> None:
    require("ufw")
    check_open(bench.play(UFW))
