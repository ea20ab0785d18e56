"""Starts the command line: `python -m psiphon_vpn`."""

import sys


def main() -> None:
    """Run the command line and end with its exit code."""
    from psiphon_vpn.cli.main import run_cli

    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
