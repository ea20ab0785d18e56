# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts the command line: `python -m psiphon_vpn`."""

import sys


def main() -> None:
    """Run the command line and end with its exit code."""
    from psiphon_vpn.local_accounts import use_local_accounts

    try:
        from psiphon_vpn.cli.quick import run_quick

        code = run_quick(sys.argv[1:], prepare=use_local_accounts)
        if code is not None:
            sys.exit(code)
        from psiphon_vpn.cli.main import is_for_this_machine, load_commands, run_cli

        load_commands(sys.argv[1:])
    except ImportError as error:
        from psiphon_vpn.system.last_resort import run

        use_local_accounts()
        sys.exit(run(sys.argv[1:], cause=str(error)))
    if is_for_this_machine(sys.argv[1:]):
        use_local_accounts()
    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
