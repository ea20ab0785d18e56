#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# After the files of a package are in place, also after an upgrade and after a removal that was called off. On a machine
# that was never set up this changes nothing, and says how to. On one that was, the rules are rendered again, the lock is
# closed and the service started. Nothing here can open a machine.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
psiphon-vpn system-configure
