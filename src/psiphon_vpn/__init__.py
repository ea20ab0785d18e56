# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Psiphon Linux VPN Service: a fail-closed, whole-machine tunnel through Psiphon."""

__version__ = "0.1.0"
PROGRAM = "psiphon-vpn"
"""What the program is called."""
