# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An addition to Debian's initrd: brings the network up if the kernel's command line has `ip=` (initramfs-tools(7)).

Debian's own initrd does that for a root directory by NFS, or to be unlocked by ssh. The kernel unpacks one archive
after another (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

from typing import Final

from psiphon_lab.archive import Archive

_SCRIPT: Final = """\
#!/bin/sh
[ "$1" != prereqs ] || exit 0
case "$(cat /proc/cmdline)" in *" ip="*) ;; *) exit 0 ;; esac
. /scripts/functions
modprobe virtio_net
configure_networking
"""
_PLACE: Final = "scripts/init-premount"


def render_addition() -> bytes:
    """The archive, for the end of an initrd."""
    archive = Archive()
    archive.add_directory(_PLACE)
    archive.add_file(f"{_PLACE}/lab", _SCRIPT.encode(), mode=0o755)
    # The order in which the scripts of a directory run; the second line is in every file of this kind.
    archive.add_file(f"{_PLACE}/ORDER", f'/{_PLACE}/lab "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n'.encode())
    return archive.finish()
