#!/bin/sh
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Loads the boot lock, and a guard against raw frames, before systemd starts any unit, if an interface is up already: an
# initrd with a network (`ip=` on the kernel's command line) leaves it up, and other units would not wait for
# psiphon-killswitch.service. systemd runs this before everything else (systemd.generator(7)). It makes no unit.
set -u
export LC_ALL=C
PATH=/usr/sbin:/usr/bin:/sbin:/bin
rules=/usr/lib/psiphon-vpn/rules
guard=/usr/lib/psiphon-vpn/guard

# Only at boot: systemd also runs this whenever it reads its units again, and then the machine may be released, or be in the
# middle of its installation. The boot lock's unit and the installation make this directory; this script may write nothing.
[ ! -e /run/psiphon-killswitch ] || exit 0
[ -d "$rules" ] || exit 0
[ ! -e /run/psiphon-vpn-released.json ] || exit 0

# Every interface that is up (IFF_UP is bit 0), except loopback, whose index is 1.
list_up() {
    for link in /sys/class/net/*; do
        read -r index <"$link/ifindex" || continue
        read -r flags <"$link/flags" || continue
        [ "$index" = 1 ] || [ $((flags & 1)) = 0 ] || echo "${link##*/}"
    done
}

stands() { nft -c add rule @BASE_TABLE@ output drop 2>/dev/null; }

[ -n "$(list_up)" ] || exit 0
! stands || exit 0
for file in boot.nft drop.nft; do
    nft -f "$rules/$file" 2>/dev/null
    stands || continue
    "$guard" early "$rules/guard.nft"
    exit 0
done
# No rule can be loaded: no interface stays up.
list_up | while read -r link; do ip link set dev "$link" down; done
