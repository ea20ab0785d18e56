# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The laboratory: network namespaces, stand-ins, captures and verdicts. Touches only namespaces it made."""
