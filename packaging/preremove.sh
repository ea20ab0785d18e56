#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Before the files of a package go. dpkg says "remove" for a removal, rpm says how many versions remain: 0.
# Whatever else they say (upgrade, 1, deconfigure, failed-upgrade), the machine stays locked.
# The command says that this opens the network. If it fails, dpkg and rpm leave the package in place, and the machine
# as it is.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
case "${1-}" in
    remove | 0) psiphon-vpn system-deconfigure ;;
esac
# Byte code was made on this machine, by the script after the installation, and no package knows it. rpm calls this after
# that script of a new version, which made its own.
case "${1-}" in
    remove | 0 | upgrade | deconfigure)
        find /usr/lib/psiphon-vpn -name __pycache__ -type d -prune -exec rm -rf -- {} + || true
        rm -f -- /usr/lib/psiphon-vpn/byte_code.json
        ;;
esac
