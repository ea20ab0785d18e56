# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Psiphon's servers: the profiles of networks, and their signed lists, from the file to the core."""
