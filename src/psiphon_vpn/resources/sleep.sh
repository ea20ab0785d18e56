#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Closes the tunnel before this machine sleeps, and notifies the service when it has woken up.
# Only psiphon-sleep.service calls this. "begin", "end".
set -u
export LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "psiphon-sleep: $1" >&2; }

# The service answers "begin" when the kernel no longer holds a lease. The limits matter only if something hangs: two
# seconds were too few for a slow computer, whose tunnel then was closed without the service, which opened it again.
notify() { timeout -s KILL 15 /usr/bin/psiphon-vpn system-sleep "$1"; }

# Without the service: empties the sets of the lease, all at once. Needs only nft.
empty() { # sets
    why=$(printf 'flush set @BASE_TABLE@ %s\n' "$@" | timeout -s KILL 10 nft -f - 2>&1)
}

case "$1" in
    begin)
        ! notify begin || exit 0
        say "the service did not close the tunnel; closing it without the service"
        ! empty @LEASE_SET@ @LEASE_SET_IPV6@ || exit 0
        # nft refuses both if one is missing: try them one by one. A missing set holds no lease.
        status=0
        for set in @LEASE_SET@ @LEASE_SET_IPV6@; do
            empty "$set" && continue
            case "$why" in *"No such file or directory"*) continue ;; esac
            say "the tunnel could not be closed: $why"
            status=1
        done
        exit "$status"
        ;;
    end)
        # Without this notification the service notices from the clock.
        notify end || say "the service was not notified that the machine has woken up"
        ;;
    *)
        say "unknown word: $1"
        exit 1
        ;;
esac
