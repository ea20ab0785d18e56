# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a check gives no answer: raised by facts, which know nothing of checks."""


class Skip(Exception):
    """The check does not apply here; the text says why."""


class Unknowable(Exception):
    """What the check needs to know cannot be read; the text says why."""
