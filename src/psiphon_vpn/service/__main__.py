"""`psiphon-vpnd`: the daemon's command line."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from psiphon_vpn.config import DEFAULT_PATH
from psiphon_vpn.errors import UserError
from psiphon_vpn.service.daemon import Daemon, read_paths

DEFAULT_CORE = Path("/usr/lib/psiphon-vpn/psiphon-tunnel-core")


def main() -> int:
    """Run the daemon; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="psiphon-vpnd")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH)
    parser.add_argument("--core", type=Path, default=DEFAULT_CORE)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # pyroute2 tells every message at debug level, addresses included.
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    try:
        asyncio.run(Daemon(read_paths(config=options.config, core_binary=options.core)).run())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
