# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A program for a guest that sends by whatever network interface there is, as soon as it is there."""

from __future__ import annotations

import re
from typing import Final

from psiphon_lab import addresses as plan

HUSH: Final = "/run/hush"
"""It ends once this file is there."""
BEGIN: Final = f"rm -f {HUSH} /run/rounds-*"
"""Before it is started again."""
SEEK: Final = "nice -n 15 python3 -S /exchange/seeker.py"
"""Starts it from the exchange directory; then "root" or "user". The processor has to run the service as well."""
ROUNDS: Final = """
    for who in root user; do
        until [ -s /run/rounds-$who ]; do sleep 0.05; done
        before=$(cat /run/rounds-$who)
        while [ "$(cat /run/rounds-$who)" -lt $((before + 3)) ]; do sleep 0.05; done
    done
"""
"""Waits until both have sent by every interface once more, from beginning to end."""

# Sends by each interface from the moment that the kernel lists it, until it is told to stop. What a datagram or frame
# says is who sent it; a raw frame takes CAP_NET_RAW.
SEEKER: Final = f"""
import contextlib, os, socket, sys, time
who = sys.argv[1]
rounds = os.open("/run/rounds-" + who, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
if who == "user":
    os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
def send(family, target, name, data):
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        if name:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        sock.sendto(data, (target, 9))
def send_raw(name, data):
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.sendto(bytes.fromhex("ffffffffffff" "025053000a77" "0800") + data, (name, 0x0800))
times = 0
while not os.path.exists("{HUSH}"):
    names = [name for _index, name in socket.if_nameindex() if name not in ("lo", "PsiphonTUN", "ctr0")]
    for name in ("", *names):
        send(socket.AF_INET, "{plan.INTERNET4}", name, f"[{{who}} ip {{name}}]".encode())
        send(socket.AF_INET6, "{plan.INTERNET6}", name, f"[{{who}} ip {{name}}]".encode())
        if who == "root" and name:
            send_raw(name, f"[{{who}} raw {{name}}]".encode().ljust(60))
    times += 1
    os.pwrite(rounds, str(times).encode(), 0)
    time.sleep(0.05)
print(times)
"""
SAYS: Final = re.compile(rb"\[((?:root|user) (?:ip|raw)) [^\]]*\]")
"""Who sent a frame, and how."""
