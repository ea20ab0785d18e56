# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The files by which an installation acts on the system: accounts, directories, kernel settings, drop-ins.

A package does not contain them: systemd, its resolver and the network managers read such files at the next boot, or
when something makes them read, and nobody has agreed to anything yet. `setup` and `install` put them in place and
record each, and the removal undoes them. What a package contains instead does nothing by itself: the program, its
documents, and units that nothing wants and whose conditions fail.
"""

from __future__ import annotations

from psiphon_vpn.system import files, units
from psiphon_vpn.system.layout import Layout
from psiphon_vpn.system.payload_file import PayloadFile, make_file


def collect_acting_files() -> tuple[PayloadFile, ...]:
    """Every such file, in the order in which they are written.

    Drop-ins come last, those by which network managers require the lock at the very end: so they are undone first.
    """
    layout = Layout()
    return (
        *(make_file(path, text) for path, text in sorted(files.render_system_files(layout).items())),
        make_file(layout.generator, units.render_generator(), 0o755),
        make_file(layout.session_dropin, units.render_session_dropin()),
        *(make_file(layout.dropin(name), text) for name, text in sorted(units.render_dropins().items())),
    )
