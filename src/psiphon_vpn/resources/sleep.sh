#!/bin/sh
# Closes the tunnel before this machine sleeps, and tells the service when it has woken.
# Called by psiphon-sleep.service alone. "begin", "end".
set -u
export LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "psiphon-sleep: $1" >&2; }

# The service answers "begin" when the kernel holds no lease any more. Not longer: the sleep waits for this.
tell() { timeout -s KILL 2 /usr/bin/psiphon-vpn system-sleep "$1"; }

# Without the service: takes away what lets packets into the tunnel, all of it at once. Needs nothing but nft.
empty() { # sets
    why=$(printf 'flush set @BASE_TABLE@ %s\n' "$@" | timeout -s KILL 2 nft -f - 2>&1)
}

case "$1" in
    begin)
        ! tell begin || exit 0
        say "the service did not close the tunnel; closing it without the service"
        ! empty @LEASE_SET@ @LEASE_SET_IPV6@ || exit 0
        # One of them may be missing, which refused both: where there is no set, there is no lease.
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
        # Whoever was not told finds out by the clock.
        tell end || say "the service was not told that the machine has woken"
        ;;
    *)
        say "unknown word: $1"
        exit 1
        ;;
esac
