#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Closes the tunnel before this machine sleeps, and notifies the service when it has woken up.
# Only psiphon-sleep.service calls this. "begin", "end".
set -u
export LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "psiphon-sleep: $1" >&2; }

# The service answers "begin" when the kernel no longer holds a lease. The limit matters only if something hangs.
notify() { timeout -s KILL 15 /usr/bin/psiphon-vpn system-sleep "$1"; }

# True if the process $1 has ended within two seconds. The "wait" of sh has no time limit.
ends_soon() {
    tries=20
    while kill -0 "$1" 2>/dev/null; do
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.1
    done
}

# Without the service: empties the sets of the lease, all at once. Needs only nft.
empty() { # sets
    why=$(printf 'flush set @BASE_TABLE@ %s\n' "$@" | timeout -s KILL 10 nft -f - 2>&1)
}

case "$1" in
    begin)
        notify begin &
        service=$!
        # The tunnel waits two seconds for the service, no longer. The service is still waited for: it might open the
        # tunnel again if it did not learn of the sleep.
        ends_soon "$service" || empty @LEASE_SET@ @LEASE_SET_IPV6@ || true
        ! wait "$service" || exit 0
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
