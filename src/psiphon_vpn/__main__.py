"""Starts the command line: `python -m psiphon_vpn`."""

import sys


def main() -> None:
    """Run the command line and end with its exit code."""
    try:
        from psiphon_vpn.cli.main import run_cli
    except ImportError as error:
        from psiphon_vpn.system.last_resort import run

        sys.exit(run(sys.argv[1:], cause=str(error)))
    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
