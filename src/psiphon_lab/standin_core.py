# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""THE STAND-IN CORE: a test instrument in the place of psiphon-tunnel-core. Not a VPN, never installed.

It accepts the real core's flags, writes the real notice stream and carries real packets between the TUN interface and
the stand-in server, in TLS, over a socket bound to the given interface. Like the real core it needs no capability. It
can simulate faults (`standin_faults.py`): then `--standin-faults FILE` comes first, from the wrapper script that
`write_core_wrapper` makes, and the real command line follows.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

from psiphon_lab.launch import SOURCE_ROOT
from psiphon_lab.standin_config import ConfigError, FlagError, find_unfit, load_config, parse_flags
from psiphon_lab.standin_faults import FaultPlan, act_on_process_faults
from psiphon_lab.standin_notices import Notices
from psiphon_lab.standin_store import StoreEndError, open_store
from psiphon_lab.standin_tunnel import Core
from psiphon_lab.tun_device import attach_tun

PROGRAM = "psiphon_lab.standin_core"
VERSION_TEXT = """STAND-IN CORE, a test instrument: not psiphon-tunnel-core
  Build Date: 2026-01-01T00:00:00Z
  Built With: Python (standard library)
  Repository: none, part of the laboratory
  Revision: standin
"""


def run(flags: dict[str, str], plan: FaultPlan, *, make: type[Core] = Core) -> int:
    """Run with parsed flags; the exit code. make: what runs."""
    notices = Notices()
    act_on_process_faults(plan, notices)
    try:
        config = load_config(flags)
    except ConfigError as error:
        notices.emit("Error", forced=True, message=str(error))
        return 1
    notices.diagnostic = config.diagnostic
    tun = None
    if flags["tunDevice"]:
        try:
            tun = attach_tun(flags["tunDevice"])
        except OSError as error:
            notices.emit("Error", forced=True, message=f"error opening tun device: {os.strerror(error.errno or 0)}")
            return 1
    notices.emit("BuildInfo", buildInfo={"buildRev": "standin", "buildRepo": "laboratory", "goVersion": "none"})
    try:
        open_store(config.data_directory, plan, notices)
    except StoreEndError as end:
        return end.code
    if (unfit := find_unfit(config)) is not None:
        notices.emit("Error", message=f"failed to iterate over candidates: {unfit}")
        notices.emit("Exiting")
        return 0
    bind_interface = flags["tunBindInterface"] if flags["tunDevice"] else None

    async def live() -> int:
        core = make(config=config, tun=tun, bind_interface=bind_interface, plan=plan, notices=notices)
        return await core.run()

    return asyncio.run(live())


def main(argv: list[str] | None = None, *, make: type[Core] = Core) -> int:
    """Command line entry."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    faults = os.environ.get("PSIPHON_STANDIN_FAULTS")
    if arguments[:1] == ["--standin-faults"] and len(arguments) > 1:
        faults, arguments = arguments[1], arguments[2:]
    try:
        flags = parse_flags(arguments)
    except FlagError as error:
        sys.stderr.write(f"{error}\nUsage of psiphon-tunnel-core (stand-in, a test instrument)\n")
        return 2
    if flags.get("v") == "true" or flags.get("version") == "true":
        sys.stdout.write(VERSION_TEXT)
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    return run(flags, FaultPlan(Path(faults) if faults else None), make=make)


def write_core_wrapper(directory: Path, faults: Path | None = None, *, program: str = PROGRAM) -> Path:
    """Write an executable that any uid can run like the real core.

    faults: see standin_faults.py. program: another module, with its first argument.
    """
    options = "" if faults is None else f" --standin-faults {shlex.quote(str(faults))}"
    python = shlex.quote(os.path.realpath(sys.executable))
    path = directory / "psiphon-tunnel-core"
    # -S -s: it needs only the standard library, and looking for more packages costs start-up time.
    path.write_text(
        "#!/bin/sh\n# The laboratory's stand-in for psiphon-tunnel-core: a test instrument.\n"
        f'PYTHONPATH={shlex.quote(str(SOURCE_ROOT))} exec {python} -S -s -m {program}{options} "$@"\n',
        encoding="ascii",
    )
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    sys.exit(main())
