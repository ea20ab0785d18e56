#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Before the files of a package come. Version 0.1.0 had the drop-ins by which systemd starts the lock at boot among its
# own files, which now go. On a machine that it locked, they stay under their new name, so that no power cut during the
# upgrade boots it open; the configuration afterwards records them.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ -e /var/lib/psiphon-vpn/journal.json ] || [ -e /usr/lib/psiphon-vpn/rules ]; then
    for file in /usr/lib/systemd/system/*.d/psiphon-vpn.conf; do
        [ -f "$file" ] || continue
        new="${file%/*}/50-psiphon-vpn.conf"
        [ ! -e "$new" ] || continue
        cp -p -- "$file" "$new.psiphon-new"
        mv -f -- "$new.psiphon-new" "$new"
    done
    sync
fi
