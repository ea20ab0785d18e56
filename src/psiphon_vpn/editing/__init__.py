# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Edits the configuration file: for root, which does not parse it itself, since psiphon-user can write it."""
