#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# After the files have gone: systemd forgets the units. Our own program is not there any more. On an upgrade the new
# version's files are there, and nothing has to be forgotten. Only dpkg says "purge": then the configuration goes too.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ ! -e /usr/lib/systemd/system/psiphon-killswitch.service ]; then
        # Nothing requires it any more; it holds nothing.
        systemctl stop psiphon-killswitch.service 2>/dev/null || true
    fi
fi
case "${1-}" in
    purge) rm -rf -- /etc/psiphon-vpn ;;
esac
