"""`psiphon-vpnd`: the daemon's command line."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from psiphon_vpn.config import DEFAULT_PATH
from psiphon_vpn.errors import UserError
from psiphon_vpn.service.daemon import Daemon, read_paths
from psiphon_vpn.service.logging_limit import LogLimit

DEFAULT_CORE = Path("/usr/lib/psiphon-vpn/psiphon-tunnel-core")


def _wait_for_children_without_threads() -> None:
    """Python 3.11 starts a thread for each program that it runs, and waits for ever where there is no memory for one.

    Later versions use pidfd_open(2) by themselves, as we have it here (Linux 5.3).
    """
    if sys.version_info < (3, 12):
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


def main() -> int:
    """Run the daemon; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="psiphon-vpnd")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--core", type=Path, default=DEFAULT_CORE)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogLimit())
    # pyroute2 tells every message at debug level, addresses included.
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    _wait_for_children_without_threads()
    try:
        asyncio.run(Daemon(read_paths(config=options.config, core_binary=options.core)).run())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
