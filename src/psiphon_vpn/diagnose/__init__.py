# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Diagnosis (R15): many small checks that only read, and a next step for each that fails."""
