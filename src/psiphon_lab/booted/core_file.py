# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-in core as one file that an installation accepts: a program for this processor, not a script.

It is a very small ELF program that executes the interpreter of the laboratory's stand-in core, with its own arguments
and environment. A test instrument, never installed on a user's machine.
"""

from __future__ import annotations

import struct
from typing import Final

from psiphon_lab.booted.booted_host import PYTHON, SOURCE

ADDRESS: Final = 0x400000
HEADERS: Final = 64 + 56

# System V ABI for x86-64, 3.4.1: at the start the stack holds argc, argv[], 0, envp[], 0.
_BEGIN: Final = bytes.fromhex(
    "488b0424"  # mov rax, [rsp]            argc
    "488d742408"  # lea rsi, [rsp+8]          argv
    "488d54c608"  # lea rdx, [rsi+rax*8+8]    envp
    "488d3d"  # lea rdi, [rip+...]        the path, which follows the code
)
_END: Final = bytes.fromhex(
    "b83b0000000f05"  # mov eax, 59; syscall   execve
    "bf7f000000"  # mov edi, 127
    "b83c0000000f05"  # mov eax, 60; syscall   exit
)


def build_trampoline(path: str) -> bytes:
    """An executable for x86-64 Linux that executes the program at `path` (execve(2)), or ends with 127."""
    code = _BEGIN + struct.pack("<i", len(_END)) + _END + path.encode() + b"\0"
    size = HEADERS + len(code)
    # elf(5): class 64, little endian, version 1; ET_EXEC, EM_X86_64.
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ADDRESS + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    # One PT_LOAD, readable and executable.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, ADDRESS, ADDRESS, size, size, 0x1000)
    return header + segment + code


def render_launcher() -> str:
    """The script that the program executes: the stand-in core with the system's own Python."""
    return (
        "#!/bin/sh\n# The laboratory's stand-in for psiphon-tunnel-core: a test instrument.\n"
        f'PYTHONPATH={SOURCE} exec {PYTHON} -S -s -B -m psiphon_lab.standin_core "$@"\n'
    )
