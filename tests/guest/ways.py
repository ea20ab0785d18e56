# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways out of a machine that need a kernel with many modules: what makes each, what ends it, and what it sends.

Each is a piece of shell for a guest of `plain_line.py`. What it sends has its name in it, in brackets, or bytes that
nothing else has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psiphon_lab import addresses as plan
from psiphon_lab.addresses import LAN_A

OUT4, OUT6 = plan.INTERNET4, plan.INTERNET6
SHOOT: Final = "shoot host 0"
"""Shell for a shot of root's: then what it is, and its words."""
IN_CONTAINER: Final = "shoot ct 0"
BY_USER: Final = "shoot host 1000"


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way.

    Attributes:
        name: what is in the frames.
        title: for the page.
        make: what prepares it, and may fail only if the kernel lacks it.
        send: what sends.
        end: what undoes it.
        sign: bytes that its frames have, instead of the name.
        beyond: why no rule stops it, or "". Then it is shown that it leaks.
    """

    name: str
    title: str
    make: str = "true"
    send: str
    end: str = "true"
    sign: bytes = b""
    beyond: str = ""

    @property
    def signs(self) -> bytes:
        """What is looked for in frames."""
        return self.sign or f"[{self.name}]".encode()


SHOOTER: Final = r'''
import contextlib, ctypes, os, pathlib, socket, struct, time, traceback

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what + ": " + os.strerror(ctypes.get_errno()))
    return result


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, target, data):
    body = struct.pack("!HHHH", 4242, 9, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0, socket.inet_aton(source),
                       socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def udp(target, name):
    """A datagram, three times: the first may wait for a neighbour."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(3):
            with contextlib.suppress(OSError):
                sock.sendto(name, (target, 9))
            time.sleep(0.05)


def frame(interface, mac, source, target, name):
    """A raw frame to everybody on the link."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        data = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x08\0" + packet(source, target, name)
        sock.sendto(data, (interface, 0x0800))


def pppox(interface, protocol, source, target, name):
    """A packet by a session's socket, which any user may make (pppoe.c asks for no capability)."""
    sock = check(libc.socket(24, socket.SOCK_STREAM, 0), "socket")
    address = struct.pack("=HI", 24, 0) + struct.pack("!H", 7) + b"\xff" * 6 + interface.encode().ljust(16, b"\0")
    check(libc.connect(sock, address, len(address)), "connect")
    data = bytes.fromhex(protocol) + packet(source, target, name)
    check(libc.send(sock, data, len(data), 0), "send")


def l2tp_ip(target, name):
    """Protocol 115 by a socket that any user may make."""
    sock = check(libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 115), "socket")
    address = struct.pack("=HH4sI4x", socket.AF_INET, 0, socket.inet_aton(target), 7)
    data = struct.pack("!I", 7) + name
    check(libc.sendto(sock, data, len(data), 0, address, len(address)), "sendto")


def xdp_redirect(came, out):
    """Send what comes by one interface to another, until this process ends.

    The program: r1 = index, r2 = 0, call bpf_redirect (helper 23), exit.
    """
    def bpf(command, *fields):
        attributes = b"".join(fields)
        room = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
        return check(libc.syscall(321, command, room, 128), f"bpf {command}")

    def step(code, registers, value):
        return struct.pack("=BBhi", code, registers, 0, value)

    index = socket.if_nametoindex(out)
    program = step(0xB7, 1, index) + step(0xB7, 2, 0) + step(0x85, 0, 23) + step(0x95, 0, 0)
    kept = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    places = [ctypes.addressof(each) for each in kept]
    loaded = bpf(5, struct.pack("=IIQQ", 6, len(program) // 8, *places))  # BPF_PROG_LOAD, BPF_PROG_TYPE_XDP
    bpf(28, struct.pack("=IIII", loaded, socket.if_nametoindex(came), 37, 2))  # BPF_LINK_CREATE, BPF_XDP, generic
    if os.fork():
        return
    pathlib.Path("/run/xdp.pid").write_text(str(os.getpid()))
    time.sleep(3600)


def mptcp(announced):
    """A connection to this machine itself; its far end announces an address outside, and the kernel calls it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as ear:
        ear.bind(("127.0.0.1", 8262))
        ear.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as here:
            here.connect(("127.0.0.1", 8262))
            there, _ = ear.accept()
            for _ in range(10):
                here.send(b"x" * 10)
                there.recv(10)
                there.send(b"x" * 10)
                here.recv(10)
                time.sleep(0.05)
            there.close()


def shoot(where, uid, kind, *words):
    """In a process of its own."""
    if where != "host":
        with open(f"/run/netns/{where}") as place:
            check(libc.setns(place.fileno(), 0), "setns")
    if uid:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if words and words[-1].startswith("["):
        words = (*words[:-1], words[-1].encode())
    globals()[kind](*words)


# An emulated processor needs seconds to start an interpreter: so there is one for all shots.
for name in ("/run/shoot.in", "/run/shoot.out"):
    os.mkfifo(name)
orders = open(os.open("/run/shoot.in", os.O_RDWR), buffering=1)
answers = os.open("/run/shoot.out", os.O_RDWR)
print("there", flush=True)
for line in orders:
    where, uid, *words = line.split()
    child = os.fork()
    if child == 0:
        try:
            shoot(where, int(uid), *words)
        except BaseException:
            print(line, traceback.format_exc(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    os.write(answers, b"done\n")
'''
"""Sends, inside of the guest, by what no other program there can make: a server for `LIBRARY`."""
SERVE: Final = """
    python3 -S /exchange/shoot.py >/exchange/shoot.log 2>&1 &
    until grep -q there /exchange/shoot.log; do sleep 0.1; done
"""
LIBRARY: Final = """
shoot() {
    echo "$*" >/run/shoot.in
    read -r done </run/shoot.out
}
"""
"""What a script begins with that has shots in it."""


def _tunnel(name: str, title: str, make: str, *, sign: bytes = b"", six: bool = False, end: str = "") -> Way:
    """A tunnel device of the kernel's, made by root; a program, and a container, send to a host at its far end.

    make: makes t0. six: whether IPv6 is carried too.
    """
    carried = ("10.99.0.2", "fd99::2") if six else ("10.99.0.2",)
    sends = [f"{SHOOT} udp {target} [{name}]" for target in carried]
    sends += [f"{IN_CONTAINER} udp {target} [{name}]" for target in carried]
    return Way(
        name=name,
        title=title,
        make=f"""
            {make}
            ip address add 10.99.0.1/24 dev t0
            ip -6 address add fd99::1/64 dev t0 nodad 2>/dev/null || true
            ip link set t0 up
            ip neigh replace 10.99.0.2 lladdr 02:50:53:00:0e:01 dev t0 2>/dev/null || true
            ip neigh replace fd99::2 lladdr 02:50:53:00:0e:01 dev t0 2>/dev/null || true
        """,
        send="\n".join(sends),
        end=f"ip link del t0; {end or 'true'}",
        sign=sign,
    )


_ENDS4 = f"local {LAN_A.client4} remote {OUT4}"
_ENDS6 = f"local {LAN_A.client6} remote {OUT6}"
_SPI: Final = 0x7073696F
_XFRM = f"""
    ip xfrm state add src {LAN_A.client4} dst {OUT4} proto esp spi {_SPI:#x} reqid 7 mode tunnel \
        enc 'ecb(cipher_null)' '' auth 'digest_null' '' {{}}
    ip xfrm policy add src {{}} dst {{}} dir out {{}} \
        tmpl src {LAN_A.client4} dst {OUT4} proto esp reqid 7 mode tunnel
"""
_NO_XFRM = "ip xfrm policy flush; ip xfrm state flush"
_WG_KEY = "/run/wg.key"

TUNNELS: Final = (
    _tunnel("gre", "GRE", f"ip link add t0 type gre {_ENDS4} ttl 64", six=True),
    _tunnel("gretap", "GRE with frames inside", f"ip link add t0 type gretap {_ENDS4}", six=True),
    _tunnel("ip6gre", "GRE over IPv6", f"ip link add t0 type ip6gre {_ENDS6}", six=True),
    _tunnel("ipip", "IPIP", f"ip link add t0 type ipip {_ENDS4} ttl 64"),
    _tunnel("ip6tnl", "IPv4 and IPv6 in IPv6", f"ip link add t0 type ip6tnl mode any {_ENDS6}", six=True),
    _tunnel("sit", "SIT (IPv6 in IPv4)", f"ip link add t0 type sit mode any {_ENDS4} ttl 64", six=True),
    _tunnel("vxlan", "VXLAN", f"ip link add t0 type vxlan id 7 {_ENDS4} dstport 4789", six=True),
    _tunnel("vxlan6", "VXLAN over IPv6", f"ip link add t0 type vxlan id 7 {_ENDS6} dstport 4789", six=True),
    _tunnel("geneve", "GENEVE", f"ip link add t0 type geneve id 7 remote {OUT4}", six=True),
    _tunnel(
        "fou",
        "IPIP in UDP (FOU)",
        f"/modprobe fou; ip link add t0 type ipip {_ENDS4} ttl 64 encap fou encap-sport 5555 encap-dport 5555",
    ),
    _tunnel(
        "wireguard",
        "WireGuard: its handshake",
        f"""
            wg genkey >{_WG_KEY}
            ip link add t0 type wireguard
            wg set t0 private-key {_WG_KEY} listen-port 51999 peer "$(wg genkey | wg pubkey)" \
                endpoint {OUT4}:51999 allowed-ips 0.0.0.0/0,::/0 persistent-keepalive 1
        """,
        sign=(51999).to_bytes(2, "big") * 2,
        six=True,
    ),
    _tunnel(
        "l2tp-udp",
        "L2TP in UDP",
        f"""
            ip l2tp add tunnel tunnel_id 7 peer_tunnel_id 7 encap udp {_ENDS4} udp_sport 5001 udp_dport 5001
            ip l2tp add session name t0 tunnel_id 7 session_id 7 peer_session_id 7
        """,
        six=True,
        end="ip l2tp del tunnel tunnel_id 7",
    ),
    _tunnel(
        "l2tp-ip",
        "L2TP in IP",
        f"""
            ip l2tp add tunnel tunnel_id 8 peer_tunnel_id 8 encap ip {_ENDS4}
            ip l2tp add session name t0 tunnel_id 8 session_id 8 peer_session_id 8
        """,
        six=True,
        end="ip l2tp del tunnel tunnel_id 8",
    ),
    _tunnel(
        "xfrm-interface",
        "IPsec by an XFRM interface",
        "ip link add t0 type xfrm dev eth0 if_id 7" + _XFRM.format("if_id 7", "0.0.0.0/0", "0.0.0.0/0", "if_id 7"),
        end=_NO_XFRM,
    ),
    Way(
        name="xfrm-tunnel",
        title="IPsec in tunnel mode",
        make=_XFRM.format("", "0.0.0.0/0", "10.99.0.0/24", "") + "ip route add 10.99.0.0/24 dev eth0",
        send=f"{SHOOT} udp 10.99.0.2 [xfrm-tunnel]; {IN_CONTAINER} udp 10.99.0.2 [xfrm-tunnel]",
        end=f"{_NO_XFRM}; ip route del 10.99.0.0/24 dev eth0",
    ),
)
"""A packet that the kernel itself encapsulates has no owner, or the inner one's."""


def _ipvlan(mode: str) -> Way:
    name = f"ipvlan-{mode}"
    return Way(
        name=name,
        title=f"a container's ipvlan child of the card, mode {mode.upper()}",
        make=f"""
            ip netns add child
            ip link add link eth0 name c0 type ipvlan mode {mode}
            ip link set c0 netns child
            ip netns exec child sh -ec '
                ip link set lo up
                ip link set c0 up
                ip address add 192.0.2.77/25 dev c0
                ip address add 2001:db8:a::77/64 dev c0 nodad
                ip route add default {"dev c0" if mode != "l2" else f"via {LAN_A.router4}"}
                ip -6 route add default {"dev c0" if mode != "l2" else f"via {LAN_A.router6}"} metric 1'
        """,
        send="\n".join(f"shoot child 0 udp {target} [{name}]" for target in (OUT4, OUT6)),
        end="ip netns exec child ip link del c0; ip netns del child",
    )


_NETCONSOLE = "/sys/kernel/config/netconsole/t"
_PKTGEN = f"""
    /modprobe pktgen
    echo rem_device_all >/proc/net/pktgen/kpktgend_0
    echo add_device eth0 >/proc/net/pktgen/kpktgend_0
    for word in 'count 3' 'pkt_size 80' 'dst {OUT4}' 'dst_mac ff:ff:ff:ff:ff:ff' 'xmit_mode {{}}'; do
        echo "$word" >/proc/net/pktgen/eth0
    done
"""
# A frame that is refused does not count for it, so it would go on for ever.
_START_PKTGEN = """
    timeout 12 sh -c 'echo start >/proc/net/pktgen/pgctrl'
    echo stop >/proc/net/pktgen/pgctrl
"""
_NO_PKTGEN = "echo rem_device_all >/proc/net/pktgen/kpktgend_0"
_PKTGEN_SIGN: Final = bytes.fromhex("be9be955")  # net/core/pktgen.c, PKTGEN_MAGIC

WAYS: Final = (
    Way(
        name="pppox-ip",
        title="a PPPoE session's socket of an ordinary user, IP inside",
        send=f"{BY_USER} pppox eth0 0021 {LAN_A.client4} {OUT4} [pppox-ip]",
    ),
    Way(
        name="pppox-lcp",
        title="the same, with the line's own protocol",
        send=f"{BY_USER} pppox eth0 c021 {LAN_A.client4} {OUT4} [pppox-lcp]",
    ),
    Way(
        name="l2tp-socket",
        title="an L2TP socket of an ordinary user (protocol 115)",
        make="/modprobe l2tp_ip",
        send=f"{BY_USER} l2tp_ip {OUT4} [l2tp-socket]",
    ),
    *(_ipvlan(mode) for mode in ("l2", "l3", "l3s")),
    Way(
        name="mptcp",
        title="MPTCP: the kernel calls an address that the far end announces",
        make=f"""
            sysctl -qw net.mptcp.enabled=1
            ip mptcp limits set subflow 4 add_addr_accepted 4
            ip mptcp endpoint add {OUT4} port 8262 signal 2>/dev/null || ip mptcp endpoint add {OUT4} signal
            ip mptcp endpoint add {LAN_A.client4} dev eth0 subflow
        """,
        send=f"{BY_USER} mptcp {OUT4}",
        end="ip mptcp endpoint flush",
        sign=bytes([203, 0, 113, 80]),
    ),
    Way(
        name="pktgen-queue",
        title="pktgen by way of the queue (`xmit_mode queue_xmit`)",
        make=_PKTGEN.format("queue_xmit"),
        send=_START_PKTGEN,
        end=_NO_PKTGEN,
        sign=_PKTGEN_SIGN,
    ),
    Way(
        name="pktgen",
        title="pktgen",
        make=_PKTGEN.format("start_xmit"),
        send=_START_PKTGEN,
        end=_NO_PKTGEN,
        sign=_PKTGEN_SIGN,
        beyond="it hands frames to the driver itself",
    ),
    Way(
        name="netconsole",
        title="netconsole",
        make=f"""
            mountpoint -q /sys/kernel/config || {{ /modprobe configfs; mount -t configfs none /sys/kernel/config; }}
            /modprobe netconsole
            mkdir {_NETCONSOLE}
            echo eth0 >{_NETCONSOLE}/dev_name
            echo {LAN_A.client4} >{_NETCONSOLE}/local_ip
            echo {OUT4} >{_NETCONSOLE}/remote_ip
            echo ff:ff:ff:ff:ff:ff >{_NETCONSOLE}/remote_mac
            echo 1 >{_NETCONSOLE}/enabled
        """,
        send="echo '<0>[netconsole]' >/dev/kmsg",
        end=f"echo 0 >{_NETCONSOLE}/enabled; rmdir {_NETCONSOLE}",
        beyond="netpoll hands frames to the driver itself",
    ),
    Way(
        name="xdp-redirect",
        title="an XDP program that redirects a container's frames to the card",
        make=f"{SHOOT} xdp_redirect ctr0 eth0; sleep 0.3; test -e /run/xdp.pid",
        send=f"{IN_CONTAINER} frame eth0 02:50:53:00:0c:02 {plan.CONTAINER4} {OUT4} [xdp-redirect]",
        end="kill $(cat /run/xdp.pid); rm /run/xdp.pid",
        beyond="XDP hands frames to the driver itself",
    ),
    *TUNNELS,
)
"""All of them."""
