"""Psiphon Linux VPN Service: a fail-closed, whole-machine tunnel through Psiphon."""

__version__ = "0.1.0"
PROGRAM = "psiphon-vpn"
"""What the program is called."""
