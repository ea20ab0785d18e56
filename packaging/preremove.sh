#!/bin/sh
# Before the files of a package go. dpkg says "remove" for a removal, rpm says how many versions remain: 0.
# Whatever else they say (upgrade, 1, deconfigure, failed-upgrade), the machine stays locked.
# If this fails, dpkg and rpm leave the package in place, and the machine as it is.
set -e
case "${1-}" in
    remove | 0) /usr/bin/psiphon-vpn system-deconfigure ;;
esac
