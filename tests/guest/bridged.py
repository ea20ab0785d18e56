"""A bridge of a guest's own with somebody behind it, and the second card, which may join it."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable

from tests.guest.access import Bench

from psiphon_lab.frames import Frame
from psiphon_lab.guest.guest import quote

BRIDGE = "virbr0"
HOST4, GUEST4, NOBODY4 = "192.168.122.1", "192.168.122.77", "192.168.122.200"
HOST6, GUEST6 = "fd00:122::1", "fd00:122::77"
GUESTS = (ipaddress.ip_network("192.168.122.0/24"), ipaddress.ip_network("fd00:122::/64"))
SHOUTS = {"host", "host raw", "guest", "guest raw"}

# A bridge as libvirt makes one (with an address of its own, which stays when a port joins), and a guest behind it.
INSIDE = f"""
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
    python3 -S /exchange/answer.py 53 8000 >/run/answers 2>&1 &
    ip netns exec inside python3 -S /exchange/answer.py 8000 >/run/page 2>&1 &
    until grep -q ready /run/answers && grep -q ready /run/page; do sleep 0.2; done
"""
# The second card, as one that is plugged in: no guard has known it.
JOIN = f"ip netns exec far ip link set eth3 netns 1; ip link set eth3 master {BRIDGE} up"
LEAVE = "ip link set eth3 down nomaster; ip link set eth3 netns far"
ANSWER = """
import select, socket, sys
socks = [socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) for port in sys.argv[1:]]
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", int(sys.argv[1])))
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
            sock.settimeout(2)
            sock.connect((address, int(port)))
            sock.send(b"?")
            return kind == socket.SOCK_STREAM or bool(sock.recv(512))
    except OSError:
        return False
with ThreadPoolExecutor() as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(ask, sys.argv[1:])))))
"""
# Until it has sent so often, or is to be silent. No faster than a capture can hear.
SHOUT = f"""
import contextlib, os, socket, sys, time
name, who, times = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
head = bytes.fromhex("ffffffffffff" "025053000c02" "88b5")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind((name, 0))
    for number in range(times):
        with contextlib.suppress(OSError): sock.sendto(b"[" + who + b"]", ("{NOBODY4}", 4000 + number % 20))
        with contextlib.suppress(OSError): raw.send(head + b"[" + who + b" raw]")
        if os.path.exists("/run/hush"): break
        time.sleep(0.02)
print(number)
"""
FROM_HOST = (f"tcp {GUEST4} 8000", f"tcp {GUEST6} 8000")
FROM_GUEST = (f"udp {HOST4} 53", f"tcp {HOST4} 53")
REFUSED = f"tcp {HOST4} 8000"
ALLOWED = {**dict.fromkeys((*FROM_HOST, *FROM_GUEST), True), REFUSED: False}


def make_bridge(bench: Bench) -> None:
    """The bridge, and who answers on both sides of it."""
    for name, text in {"answer": ANSWER, "ask": ASK, "shout": SHOUT}.items():
        (bench.guest.exchange / f"{name}.py").write_text(text)
    bench.guest.run(INSIDE)


def look(bench: Bench) -> dict[str, bool]:
    """What passes between this machine and its guest."""
    ask = "python3 -S /exchange/ask.py"
    lines = bench.guest.run(
        f"{ask} {quote(*FROM_HOST)}; ip netns exec inside {ask} {quote(*FROM_GUEST, REFUSED)}"
    ).output.splitlines()
    return {**json.loads(lines[0]), **json.loads(lines[1])}


def shout(*, times: int) -> str:
    """A script in which both sides send."""
    shouts = "python3 -S /exchange/shout.py"
    return f"{shouts} {BRIDGE} host {times} & ip netns exec inside {shouts} eth0 guest {times} && wait $!"


def read_shouts(frames: Iterable[Frame]) -> set[str]:
    """Which of what was sent came out."""
    data = b"".join(frame.data for frame in frames if frame.from_client)
    return {found[1].decode() for found in re.finditer(rb"\[((?:host|guest)(?: raw)?)\]", data)}
