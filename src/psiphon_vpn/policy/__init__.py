# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The security policy as values: what may pass in each state. Nothing in this package touches the system."""
