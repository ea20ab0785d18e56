# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs that decide about a frame before all filters of traffic control (tcx, Linux 6.6).

For `diagnose`, which runs as root. The service's unit may not call bpf(2), since it does not need it.
"""

import ctypes
import errno
import os
import platform
import struct
from typing import Final

_CALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "i686": 357, "armv7l": 386}
"""The number of bpf(2), by machine (uname(2))."""
_PROG_QUERY, _TCX_EGRESS = 16, 47
"""BPF_PROG_QUERY of enum bpf_cmd and BPF_TCX_EGRESS of enum bpf_attach_type, linux/bpf.h."""
_QUERY = struct.Struct("=IIIIQI")
"""The beginning of the query in union bpf_attr: index, type, two flags, where to put numbers, how many there is room
for and, afterwards, how many there are."""
_SIZE: Final = 64


def count_programs(index: int) -> int:
    """How many programs are attached to an interface's way out; 0 on a kernel without tcx.

    Raises:
        OSError: the kernel does not say: it takes CAP_NET_ADMIN, and the system call.
    """
    number = _CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    attributes = ctypes.create_string_buffer(_QUERY.pack(index, _TCX_EGRESS, 0, 0, 0, 0), _SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _PROG_QUERY, attributes, _SIZE) < 0:
        error = ctypes.get_errno()
        if error in {errno.EINVAL, errno.ENOENT}:
            return 0  # no such type of attachment, or nothing attached
        raise OSError(error, os.strerror(error))
    return int(_QUERY.unpack_from(attributes)[5])
