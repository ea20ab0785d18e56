# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bridge like libvirt's with a guest behind it, on a machine under test: who answers, and who reaches whom."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

BRIDGE = "virbr0"
HOST4, GUEST4, NOBODY4 = "192.168.122.1", "192.168.122.77", "192.168.122.200"
NETWORK4, NETWORK6 = "192.168.122.0/24", "fd00:122::/64"
HOST6, GUEST6 = "fd00:122::1", "fd00:122::77"
FROM_HOST = (f"tcp {GUEST4} 8000", f"tcp {GUEST6} 8000")
FROM_GUEST = (f"udp {HOST4} 53", f"tcp {HOST4} 53")
REFUSED = f"tcp {HOST4} 8000"
ALLOWED = {**dict.fromkeys((*FROM_HOST, *FROM_GUEST), True), REFUSED: False}
ANSWER = """
import select, socket, sys
address, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
both = family == socket.AF_INET6
socks = [socket.create_server((address, int(port)), family=family, dualstack_ipv6=both) for port in ports]
datagrams = socket.socket(family, socket.SOCK_DGRAM)
datagrams.bind((address, int(ports[0])))
print("ready", flush=True)
while True:
    for sock in select.select([*socks, datagrams], [], [])[0]:
        if sock is datagrams:
            data, caller = sock.recvfrom(512)
            sock.sendto(data, caller)
        else:
            sock.accept()[0].close()
"""
ASK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(words):
    kind, address, port = words.split()
    kind = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
            sock.settimeout(5)
            sock.connect((address, int(port)))
            sock.send(b"?")
            return kind == socket.SOCK_STREAM or bool(sock.recv(512))
    except OSError:
        return False
with ThreadPoolExecutor() as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(ask, sys.argv[1:])))))
"""
PROGRAMS = {"answer.py": ANSWER, "ask.py": ASK}


def render_inside(directory: str) -> str:
    """A script that makes the bridge and starts servers on both sides; `directory` has the two programs below."""
    return f"""
    set -e
    ip netns add inside
    ip link add {BRIDGE} type bridge forward_delay 0
    ip link set {BRIDGE} address 02:50:53:00:0c:01
    ip link add g0 type veth peer name eth0 netns inside
    ip link set g0 master {BRIDGE} up
    ip link set {BRIDGE} up
    ip address add {HOST4}/24 dev {BRIDGE}
    ip address add {HOST6}/64 dev {BRIDGE} nodad
    ip neigh add {NOBODY4} lladdr 02:50:53:00:0c:99 dev {BRIDGE} nud permanent
    ip netns exec inside sh -ec '
        ip link set lo up
        ip link set eth0 up
        ip address add {GUEST4}/24 dev eth0
        ip address add {GUEST6}/64 dev eth0 nodad
        ip neigh add {NOBODY4} lladdr 02:50:53:00:0c:99 dev eth0 nud permanent'
    python3 -S {directory}/answer.py {HOST4} 53 8000 >/run/answers 2>&1 &
    ip netns exec inside python3 -S {directory}/answer.py :: 8000 >/run/page 2>&1 &
    until grep -q ready /run/answers && grep -q ready /run/page; do sleep 0.2; done
"""


def look(run: Callable[[str], str], directory: str) -> dict[str, bool]:
    """What passes between this machine and its guest. run: runs a shell script on the machine."""
    ask = f"python3 -S {directory}/ask.py"
    reported = run(f"{ask} {shlex.join(FROM_HOST)}; ip netns exec inside {ask} {shlex.join((*FROM_GUEST, REFUSED))}")
    here, there = reported.splitlines()
    return {**json.loads(here), **json.loads(there)}
