# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures on the wires, outside the machine under test.

A packet socket in the provider's namespace, on the far end of the client's cable, sees every frame from the client
before a rule of the provider can change it. The kernel counts lost frames, and they are reported: a capture that lost a
frame cannot show that nothing leaked.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path

import dpkt

from psiphon_lab.frames import Frame
from psiphon_lab.namespace import PATIENCE, Host, LabError

# <linux/if_packet.h>, <asm-generic/socket.h>
ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_AUXDATA = 8
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6

BUFFER_BYTES = 64 << 20
LARGEST_FRAME = 1 << 17
SETTLE = 0.02


class Capture:
    """A running capture of one wire. A context manager; `frames_since` may be called at any time.

    host, interface: the far end of the cable (never the client's). wire: the wire's name in frames. pcap: a file that
    gets each frame at once, or None. buffer_bytes: size of the kernel's queue for frames.
    """

    def __init__(
        self, host: Host, interface: str, *, wire: str, pcap: Path | None = None, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        self.wire = wire
        self._frames: list[Frame] = []
        self._dropped = 0
        self._taken = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._socket = host.call(lambda: _open_socket(interface, buffer_bytes))
        self._file = pcap.open("wb") if pcap is not None else None
        self._writer = None if self._file is None else dpkt.pcap.Writer(self._file, nano=True)
        self._thread = threading.Thread(target=self._read, name=f"capture-{wire}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def mark(self) -> int:
        """A point in the capture, for `frames_since`."""
        return len(self._frames)

    def frames_since(self, mark: int = 0, *, settle: float = SETTLE) -> list[Frame]:
        """The frames captured after `mark`: all that the kernel has queued `settle` seconds from now.

        The settling time is for frames that are still in the cable. The kernel's own count says for how many frames to
        wait. Raises LabError if the reader does not keep up.
        """
        time.sleep(settle)
        deadline = time.monotonic() + PATIENCE
        while len(self._frames) < self._count_taken() and self.alive:
            if time.monotonic() > deadline:
                raise LabError(f"the capture on {self.wire} does not keep up")
            time.sleep(0.002)
        return self._frames[mark:]

    def _count_taken(self) -> int:
        """Frames that the kernel has put into the socket's queue since the start."""
        with self._lock:
            if self._socket.fileno() >= 0:
                # struct tpacket_stats; reading clears the kernel's counters, and the first includes the second.
                packets, drops = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
                self._dropped += drops
                self._taken += packets - drops
            return self._taken

    @property
    def dropped(self) -> int:
        """Frames that the kernel had to drop since the start. If this is not 0, the capture proves nothing."""
        self._count_taken()
        return self._dropped

    @property
    def alive(self) -> bool:
        """False once the reader has ended: from then on the capture proves nothing."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the capture and close its file. The frames remain available."""
        if self._stopping.is_set():
            return
        _ = self.dropped
        self._stopping.set()
        self._thread.join()
        self._socket.close()
        if self._file is not None:
            self._file.close()

    def _read(self) -> None:
        while not self._stopping.is_set():
            try:
                # With a time-out, to notice `stop`. recv on a packet socket fails with ENETDOWN when the link goes
                # down.
                data, ancillary, _, address = self._socket.recvmsg(LARGEST_FRAME, 256)
            except (TimeoutError, BlockingIOError):
                continue
            except OSError:
                if self._stopping.wait(0.001):
                    return
                continue
            stamp, data = _read_ancillary(data, ancillary)
            self._frames.append(Frame(time=stamp, wire=self.wire, data=data, from_client=address[2] != PACKET_OUTGOING))
            if self._writer is not None:
                self._writer.writepkt(data, stamp)


def _open_socket(interface: str, buffer_bytes: int) -> socket.socket:
    # Protocol 0 first: an unbound socket would otherwise receive frames of other interfaces until bind().
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.bind((interface, ETH_P_ALL))
    sock.settimeout(0.2)
    return sock


def _read_ancillary(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> tuple[float, bytes]:
    """The kernel's time stamp, and the frame with its VLAN tag (the kernel passes the tag separately)."""
    stamp = time.time()
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(value) >= 16:
            seconds, nanoseconds = struct.unpack("qq", value[:16])
            stamp = seconds + nanoseconds / 1e9
        elif level == SOL_PACKET and kind == PACKET_AUXDATA and len(value) >= 20:
            status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", value[:20])
            if status & TP_STATUS_VLAN_VALID:
                ethertype = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                data = data[:12] + struct.pack("!HH", ethertype, tci) + data[12:]
    return stamp, data
