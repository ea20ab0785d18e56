# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides by its first bytes (elf(5)) whether a file is a Linux program for this machine's processor."""

import struct
from collections.abc import Mapping
from typing import Final

from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.i18n import _

HEADER_SIZE: Final = 20
"""Bytes of the header that are checked: e_ident, e_type, e_machine."""

# uname(2)'s name: EI_CLASS (1: 32 bit, 2: 64 bit), EI_DATA (1: little endian), e_machine.
MACHINES: Final[Mapping[str, tuple[int, int, int]]] = {
    "x86_64": (2, 1, 62),
    "aarch64": (2, 1, 183),
    "armv7l": (1, 1, 40),
    "i686": (1, 1, 3),
    "riscv64": (2, 1, 243),
    "ppc64le": (2, 1, 21),
    "s390x": (2, 2, 22),
}
_PROGRAM_TYPES: Final = (2, 3)  # ET_EXEC, and ET_DYN for position-independent ones


def check_elf(header: bytes, *, machine: str) -> None:
    """Accept the beginning of a program for this processor.

    Args:
        header: the file's first HEADER_SIZE bytes.
        machine: the processor, as uname(2) names it.

    Raises:
        CoreFlawError: it is not a program, or is for another processor.
    """
    what = _("The tunnel program is not installed")
    if len(header) < HEADER_SIZE or header[:4] != b"\x7fELF":
        raise CoreFlawError(
            CoreFlaw.NOT_ELF,
            what,
            _("the file is no Linux program"),
            _("Get the file again; a page with an error message is often saved in its place."),
        )
    order = {1: "<", 2: ">"}.get(header[5], "<")
    kind, number = struct.unpack_from(f"{order}HH", header, 16)
    if kind not in _PROGRAM_TYPES:
        raise CoreFlawError(
            CoreFlaw.NOT_ELF, what, _("the file is no program that can be started"), _("Get the file again.")
        )
    found = (header[4], header[5], number)
    if found != MACHINES.get(machine):
        name = next((name for name, form in MACHINES.items() if form == found), f"0x{number:x}")
        raise CoreFlawError(
            CoreFlaw.WRONG_ARCHITECTURE,
            what,
            _("the program is for {found}, and this machine is {machine}").format(found=name, machine=machine),
            explain_other_architecture(),
        )


def explain_other_architecture() -> str:
    """What to do if the official distribution has no core for the processor, for example ARM64."""
    return _(
        "The official programs are for x86_64 only. Build psiphon-tunnel-core for this machine, or get it from somebody"
        " you trust, and install it with: sudo psiphon-vpn update --core-file PATH --sha256 HEX"
    )
