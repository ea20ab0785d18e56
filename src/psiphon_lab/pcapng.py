# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Captured frames as a file for Wireshark and tcpdump, with names of wires, directions, and the number of lost frames.

The format is pcapng (draft-ietf-opsawg-pcapng): a section, an interface for each wire, a packet with its direction for
each frame, and at the end the capture's own count of lost frames. So the file alone shows whether it proves anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from psiphon_lab.frames import Frame

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
BYTE_ORDER = 0x1A2B3C4D
LINKTYPE_ETHERNET = 1
IF_NAME, IF_TSRESOL, EPB_FLAGS, ISB_IFDROP = 2, 9, 2, 5
INBOUND, OUTBOUND = 1, 2
NANOSECONDS = 9
UNKNOWN = (1 << 64) - 1
"""The number of lost frames if the capture broke off: unknown (written as -1)."""


class BadCapture(ValueError):
    """This is not a capture file of the laboratory, or it is truncated."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The content of a file. dropped: lost frames by wire; the capture of a wire without a count broke off."""

    frames: tuple[Frame, ...]
    wires: tuple[str, ...]
    dropped: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether every wire was captured to the end without a lost frame. Otherwise a missing frame proves nothing."""
        return bool(self.wires) and all(self.dropped.get(wire) == 0 for wire in self.wires)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def render(frames: Iterable[Frame], dropped: Mapping[str, int]) -> bytes:
    """The file's bytes. dropped: every wire that was captured, with the number of frames lost on it."""
    wires = list(dropped)
    data = _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1))
    for wire in wires:
        options = _option(IF_NAME, wire.encode()) + _option(IF_TSRESOL, bytes([NANOSECONDS])) + _option(0, b"")
        data += _block(INTERFACE, struct.pack("<HHI", LINKTYPE_ETHERNET, 0, 0) + options)
    parts = [data]
    for frame in frames:
        stamp = int(frame.time * 1e9)
        head = struct.pack(
            "<IIIII", wires.index(frame.wire), stamp >> 32, stamp & 0xFFFFFFFF, len(frame.data), len(frame.data)
        )
        # As seen from the wire's far end, where the capture runs.
        direction = struct.pack("<I", INBOUND if frame.from_client else OUTBOUND)
        padding = bytes(-len(frame.data) % 4)
        parts.append(_block(PACKET, head + frame.data + padding + _option(EPB_FLAGS, direction) + _option(0, b"")))
    for number, wire in enumerate(wires):
        options = _option(ISB_IFDROP, struct.pack("<Q", dropped[wire] & UNKNOWN)) + _option(0, b"")
        parts.append(_block(STATISTICS, struct.pack("<III", number, 0, 0) + options))
    return b"".join(parts)


def _read_options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            break
        options[code] = data[at + 4 : at + 4 + length]
        at += 4 + length + (-length % 4)
    return options


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise BadCapture("the file breaks off")
        kind, length = struct.unpack_from("<II", data, at)
        if length < 12 or length % 4 or at + length > len(data):
            raise BadCapture("the file breaks off")
        yield kind, data[at + 8 : at + length - 4]
        at += length


def parse(data: bytes) -> Recording:
    """Read a file's bytes. Raises BadCapture."""
    wires: list[str] = []
    frames: list[Frame] = []
    dropped: dict[str, int] = {}
    try:
        for number, (kind, body) in enumerate(_blocks(data)):
            if number == 0 and (kind != SECTION or struct.unpack_from("<I", body)[0] != BYTE_ORDER):
                raise BadCapture("not a capture file")
            if kind == INTERFACE:
                wires.append(_read_options(body[8:])[IF_NAME].decode())
            elif kind == PACKET:
                wire, high, low, length, _original = struct.unpack_from("<IIIII", body)
                flags = _read_options(body[20 + length + (-length % 4) :]).get(EPB_FLAGS, b"")
                if len(flags) != 4 or len(body) < 20 + length:
                    raise BadCapture("a packet without a direction")
                inbound = struct.unpack("<I", flags)[0] & 3 == INBOUND
                stamp = ((high << 32) | low) / 1e9
                frames.append(Frame(time=stamp, wire=wires[wire], data=body[20 : 20 + length], from_client=inbound))
            elif kind == STATISTICS:
                wire = struct.unpack_from("<I", body)[0]
                dropped[wires[wire]] = struct.unpack("<Q", _read_options(body[12:])[ISB_IFDROP])[0]
    except (struct.error, KeyError, IndexError, UnicodeDecodeError) as error:
        raise BadCapture(str(error)) from error
    return Recording(frames=tuple(frames), wires=tuple(wires), dropped=dropped)


def write_recording(path: Path, frames: Iterable[Frame], dropped: Mapping[str, int]) -> None:
    """Write a capture file."""
    path.write_bytes(render(frames, dropped))


def read_recording(path: Path) -> Recording:
    """Read a capture file. Raises BadCapture."""
    return parse(path.read_bytes())
