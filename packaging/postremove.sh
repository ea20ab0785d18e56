#!/bin/sh
# After the files have gone: those who read drop-ins of ours forget them. Our own program is not there any more.
# On an upgrade the new version's files are there, and nothing has to be forgotten.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ ! -e /usr/lib/systemd/system/psiphon-killswitch.service ]; then
        # Nothing requires it any more; it holds nothing.
        systemctl stop psiphon-killswitch.service 2>/dev/null || true
        systemctl try-restart systemd-resolved.service || true
        # Not restarted: it would take Wi-Fi down with it.
        if systemctl --quiet is-active NetworkManager.service; then systemctl reload NetworkManager.service || true; fi
    fi
fi
