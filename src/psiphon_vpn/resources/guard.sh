#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Holds the Psiphon wire guard: an nft owns its table, and the kernel removes the table when that process ends.
# psiphon-guard.service calls this: "probe", "hold FILE", "ready", "reload FILE"; and the generator: "early FILE".
set -eu
export LC_ALL=C # or [a-z] might be more than these letters
PATH=/usr/sbin:/usr/bin:/sbin:/bin
pipe="${RUNTIME_DIRECTORY:-}/pipe"

fail() { echo "psiphon-guard: $1" >&2; exit 1; }

# The holder owns the table if nft refuses to delete it, and can list it. In this order: otherwise a table without an
# owner that vanishes in between would look like one with an owner.
is_held() { ! nft -c delete table @GUARD_TABLE@ 2>/dev/null && nft list table @GUARD_TABLE@ >/dev/null 2>&1; }

is_frames_held() { ! nft -c delete table @FRAMES_TABLE@ 2>/dev/null && nft list table @FRAMES_TABLE@ >/dev/null 2>&1; }

# Family and name of a table.
handle() { nft -a list table "$@" 2>/dev/null | sed -n '1s/.*# handle \([0-9]*\).*/\1/p'; }

# Half a minute: a unit that is not ready is ended and started again, and a booting machine is busy.
await() { # a command
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || return 1
        sleep 0.05
    done
}

# The present cards, each with the chain for its frames. A name with unusual characters cannot stand in a rule
# (psiphon_vpn/policy/values.py), so its card has no frame guard. Type 1: Ethernet (ARPHRD_ETHER).
list_cards() {
    for card in /sys/class/net/*; do
        name="${card##*/}"
        [ -e "$card/device" ] || continue
        case "$name" in [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) continue ;; esac
        type=1
        [ ! -r "$card/type" ] || read -r type <"$card/type" || true
        if [ "$type" = 1 ]; then echo "$name @FRAMES_CHAIN@"; else echo "$name @HEADERLESS_CHAIN@"; fi
    done
}

# A chain for each card, so that a refused one affects no other.
hook_card() { # card, chain for its frames
    cat <<EOF
table @FRAMES_TABLE@ {
    flags owner
    chain @DEVICE_CHAIN_PREFIX@$1 {
        type filter hook egress devices = { "$1" } priority 0; policy drop;
        goto $2
    }
}
EOF
}

# Whether the kernel accepts this card, checked with another table that is not loaded.
is_taken() {
    printf 'table @SCRATCH_TABLE@ {\nchain c {\ntype filter hook egress device "%s" priority 0;\n}\n}\n' "$1" |
        nft -c -f - 2>/dev/null
}

# The frame guard's rules in another table, without an owner.
as_table() { sed -e "s/@FRAMES_TABLE@/$1/" -e '/flags owner/d'; } # family and name

# What nft says against the frame guard that was written; nothing if it takes it. Checked with another table, since nft
# may not touch one with an owner.
why_refused() {
    as_table "@SCRATCH_TABLE@" <"$RUNTIME_DIRECTORY/cards.nft" | {
        said=$(nft -c -f - 2>&1) || printf '%s\n' "${said:-nft does not say why}" | head -n 1
    }
}

# The frame guard's rules, and a chain for each card of which the command says yes.
print_frames() { # the frame guard's file, a command that is given a card
    cat "$1"
    list_cards | while read -r card chain; do ! "$2" "$card" || hook_card "$card" "$chain"; done
}

# Separate from the wire guard: a kernel without the hook (before 5.16) refuses only this one.
write_frames() { # the wire guard's file; the frame guard's is in the same directory
    rules="${1%/*}/frames.nft" cards="$RUNTIME_DIRECTORY/cards.nft"
    [ -r "$rules" ] && [ -n "$(list_cards)" ] || return 1
    print_frames "$rules" true >"$cards"
    # All at once, which is quick, or only the accepted ones.
    [ -n "$(why_refused)" ] || return 0
    print_frames "$rules" is_taken >"$cards"
}

# The rules with allowed bridges come last, in one transaction: if the kernel does not accept them, the wire guard
# without bridges stays.
has_bridges() { grep -q '^table @BRIDGES_TABLE@ ' "${1%/*}/bridges.nft" 2>/dev/null; }

is_bridge_held() { ! nft -c delete table @BRIDGES_TABLE@ 2>/dev/null && nft list table @BRIDGES_TABLE@ >/dev/null 2>&1; }

is_bridge_gone() { ! nft list table @BRIDGES_TABLE@ >/dev/null 2>&1; }

# The handle before, family and name of a table.
is_replaced() {
    old="$1" && shift
    now=$(handle "$@")
    [ -n "$now" ] && [ "$now" != "$old" ]
}

case "$1" in
    probe)
        # Three times: a single failure for another reason must not switch the guard off.
        for _ in 1 2 3; do
            echo 'add table inet psiphon_owner_probe { flags owner; }' | nft -c -f - 2>/dev/null && exit 0
            sleep 0.1
        done
        fail "this kernel or its nft cannot own a table (Linux 5.12, nft 1.0): no wire guard, the other layers hold"
        ;;
    hold)
        # Remove tables of these names without an owner. One with an owner stays, and the load fails.
        nft delete table @GUARD_TABLE@ 2>/dev/null || true
        nft delete table @FRAMES_TABLE@ 2>/dev/null || true
        nft delete table @BRIDGES_TABLE@ 2>/dev/null || true
        rm -f -- "$pipe"
        mkfifo -m 600 -- "$pipe"
        exec 0<>"$pipe" # opened for reading and writing, so it never reports an end of file
        printf 'include "%s"\n' "$2" >&0
        ! write_frames "$2" || printf 'include "%s"\n' "$RUNTIME_DIRECTORY/cards.nft" >&0
        ! has_bridges "$2" || printf 'include "%s"\n' "${2%/*}/bridges.nft" >&0
        exec nft -i >/dev/null
        ;;
    ready)
        await is_held || fail "the wire guard was not loaded"
        # The holder reads it next, and network managers wait for this. Without it the wire guard must stay. What nft
        # refuses is not waited for: Linux 5.12 to 5.15 can own a table, but may not take this one.
        if [ -s "$RUNTIME_DIRECTORY/cards.nft" ]; then
            refused=$(why_refused)
            { [ -z "$refused" ] && await is_frames_held; } ||
                echo "psiphon-guard: the frame guard was not loaded${refused:+ ($refused)}; the wire guard stands" >&2
        fi
        ;;
    reload)
        before=$(handle @GUARD_TABLE@) frames=$(handle @FRAMES_TABLE@) refused="" written=""
        printf 'include "%s"\n' "$2" >"$pipe"
        if write_frames "$2"; then
            refused=$(why_refused)
            [ -n "$refused" ] || { written=yes && printf 'include "%s"\n' "$RUNTIME_DIRECTORY/cards.nft" >"$pipe"; }
        fi
        await is_replaced "$before" @GUARD_TABLE@ || fail "the wire guard was not loaded again; the previous one stands"
        # Only now: while the wire guard allowed bridges, their guard had to stand.
        if has_bridges "$2"; then
            before=$(handle @GUARD_TABLE@)
            printf 'include "%s"\n' "${2%/*}/bridges.nft" >"$pipe"
            await is_replaced "$before" @GUARD_TABLE@ || fail "allowed bridges were not loaded; the wire guard stands without bridges"
            is_bridge_held || fail "the bridge guard does not stand"
        elif ! is_bridge_gone; then
            printf 'delete table @BRIDGES_TABLE@\n' >"$pipe"
            await is_bridge_gone || fail "the bridge guard could not be removed; it stands"
        fi
        # Last: what it costs is only what it guards.
        [ -z "$refused" ] || fail "the wire guard was loaded again, the frame guard was not: $refused"
        [ -z "$written" ] || await is_replaced "$frames" @FRAMES_TABLE@ ||
            fail "the wire guard was loaded again, the frame guard was not; read the log of this unit"
        ;;
    early)
        # Before any unit, where an initrd has left a card up: raw frames must not leave until the holder guards them. In
        # the place of the daemon's egress guard, which the daemon replaces in one transaction, so nothing has to remove it.
        [ -n "$(list_cards)" ] || exit 0
        for takes in true is_taken; do
            print_frames "${2%/*}/frames.nft" "$takes" | as_table "@EGRESS_TABLE@" | nft -f - 2>/dev/null || continue
            ! nft list table @EGRESS_TABLE@ | grep -q "hook egress" || exit 0
        done
        nft delete table @EGRESS_TABLE@ 2>/dev/null || true
        fail "raw frames of root are not stopped until the guard stands: this kernel, or its nft, does not take its rules"
        ;;
    *) fail "unknown word: $1" ;;
esac
