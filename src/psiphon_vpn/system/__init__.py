# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Installing, updating, releasing, uninstalling: every change to a system is journaled before it is made."""
