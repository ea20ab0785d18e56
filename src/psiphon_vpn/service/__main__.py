# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`psiphon-vpnd`: the daemon's command line."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from psiphon_vpn.config_file import DEFAULT_PATH
from psiphon_vpn.core.image import CoreSource, GivenCore, RecordedCore
from psiphon_vpn.core.manifest import SHA256
from psiphon_vpn.errors import UserError
from psiphon_vpn.i18n import _
from psiphon_vpn.service.logging_limit import LogLimit
from psiphon_vpn.system.layout import Layout


def _find_core(options: argparse.Namespace, parser: argparse.ArgumentParser) -> CoreSource:
    if options.core is None and options.core_sha256 is None:
        return RecordedCore(record=options.core_record)
    if options.core is None or not SHA256.fullmatch(options.core_sha256 or ""):
        parser.error("--core and --core-sha256, 64 hexadecimal digits in small letters, go together")
    return GivenCore(binary=options.core, sha256=options.core_sha256)


def _wait_for_children_without_threads() -> None:
    """Python 3.11 starts a thread for each program that it runs, and waits for ever if there is no memory for one.

    Later versions use pidfd_open(2) by themselves, as this does (Linux 5.3).
    """
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


def main() -> int:
    """Run the daemon; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="psiphon-vpnd")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    parser.add_argument(
        "--core-record",
        type=Path,
        default=Layout().core_record,
        help=_("The record of the tunnel program in the same directory."),
    )
    parser.add_argument("--core", type=Path, help=_("For the laboratory: a tunnel program without a record."))
    parser.add_argument("--core-sha256", help=_("The SHA-256 that this tunnel program must have."))
    parser.add_argument("--servers", type=Path, help=_("The directory of root's server lists."))
    options = parser.parse_args()
    # The laboratory's core gets no list of the machine that it runs on.
    servers = options.servers or (Layout().servers_dir if options.core is None else None)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    from psiphon_vpn.service.daemon import Daemon, read_paths

    _wait_for_children_without_threads()
    try:
        asyncio.run(Daemon(read_paths(config=options.config, core=_find_core(options, parser), servers=servers)).run())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
