# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's network, and the choice of an uplink: pure decisions on what netlink lists."""
