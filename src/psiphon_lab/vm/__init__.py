# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual computers: whole Debian systems with their own kernel and disk, under QEMU, that really sleep and reboot."""
