# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the laboratory knows about the service. Only this package imports it (`tests/unit/test_imports.py`)."""
