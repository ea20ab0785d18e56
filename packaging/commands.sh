# shellcheck shell=bash
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Which package brings a command, what has to be done before it comes, and whose it is. Read by the setup script.

package_for() { # command, package manager
    case "$1:$2" in
        nft:*) echo nftables ;; ip*tables*:*) echo iptables ;; rpm:pacman) echo rpm-tools ;;
        shellcheck:dnf | shellcheck:zypper) echo ShellCheck ;;
        ip:dnf) echo iproute ;; tc:dnf) echo iproute-tc ;; ip:* | tc:*) echo iproute2 ;;
        setpriv:* | nsenter:* | flock:* | unshare:*) echo util-linux ;; timeout:*) echo coreutils ;;
        dnsmasq:apt-get) echo dnsmasq-base ;; dhclient:apt-get) echo isc-dhcp-client ;; dhclient:*) echo dhcp-client ;;
        dhcpd:apt-get) echo isc-dhcp-server ;; dhcpd:pacman) echo dhcp ;; dhcpd:*) echo dhcp-server ;;
        dbus-daemon:apt-get | dbus-send:apt-get) echo dbus ;; dbus-send:dnf) echo dbus-tools ;;
        arping:apt-get) echo iputils-arping ;; arping:*) echo iputils ;; firewall-cmd:*) echo firewalld ;;
        wpa_supplicant:apt-get) echo wpasupplicant ;;
        dockerd:apt-get) echo docker.io ;; dockerd:dnf) echo moby-engine ;; dockerd:*) echo docker ;;
        */systemd-networkd:dnf) echo systemd-networkd ;; */systemd-networkd:*) echo systemd ;;
        # A guest's first program is a busybox without libraries; its kernels are Debian's, known by their keyring.
        qemu-system-x86_64:apt-get) echo qemu-system-x86 busybox-static debian-archive-keyring ;;
        qemu-img:apt-get) echo qemu-utils ;; qemu-system-x86_64:dnf) echo qemu-system-x86-core ;; qemu-system-x86_64:*) echo qemu-x86 ;;
        pppoe-server:apt-get) echo ppp pppoe ;; pppoe-server:*) echo ppp rp-pppoe ;; wg:*) echo wireguard-tools ;;
        systemd-nspawn:pacman) ;; systemd-nspawn:*) echo systemd-container ;;
        python:apt-get) echo python3 python3-venv python3-pip ;; python:pacman) echo python python-pip ;;
        python:*) echo python3 python3-pip ;; *) echo "$1" ;;
    esac
}

may_come() { # command; fails if its package must not be installed here
    # The services in these would write rules of their own into this machine's firewall, announce routes or lend. Only the
    # laboratory wants the programs: masked, the services never run here. Without systemd there are no masks; then
    # Debian's policy-rc.d has to forbid their start (code 101), or the program does not come. ufw does nothing until a
    # user enables it, and must come back after a boot then: it stays as its package has it.
    case "$1" in
        # wpa_supplicant's waits for a network manager's word, and does nothing by itself.
        hostapd) [ -d /run/systemd/system ] || return 0; set -- hostapd.service ;;
        firewalld | firewall-cmd) set -- firewalld.service ;; radvd) set -- radvd.service ;;
        dhcpd) # without a configuration it lends nothing, and its service only fails
            [ -d /run/systemd/system ] || return 0
            set -- isc-dhcp-server.service isc-dhcp-server6.service dhcpd.service dhcpd4.service dhcpd6.service ;;
        dockerd) # a containerd that is there already may be in use without Docker
            set -- docker.service docker.socket
            command -v containerd >/dev/null || set -- "$@" containerd.service ;;
        *) return 0 ;;
    esac
    if [ ! -d /run/systemd/system ]; then
        /usr/sbin/policy-rc.d "${1%.*}" start >/dev/null 2>&1
        [ $? -eq 101 ] || return 1
    fi
    systemctl --root=/ --quiet mask "$@" >&2 || return 1
    say "masked, so that it never runs here: $*. To have it: systemctl unmask $*"
}

has_open() { # process, file
    local descriptor
    for descriptor in "/proc/$1/fd"/*; do [ ! "$descriptor" -ef "$2" ] || return 0; done
    return 1
}

find_locker() { # files; prints who holds a lock on one of them (fcntl(2), proc_locks(5)); fails if nobody does
    local file inode kind pid where
    for file in "$@"; do
        inode="$(stat -c %i -- "$file" 2>/dev/null)" || continue
        while read -r _ kind _ _ pid where _; do
            # "->": it only waits for it. The number alone may be that of a file on another disk.
            if [ "$kind" = "->" ] || [ "${where##*:}" != "$inode" ] || ! has_open "$pid" "$file"; then continue; fi
            printf '%s' "process $pid"; { read -r kind <"/proc/$pid/comm" && printf ' (%s)' "$kind"; } 2>/dev/null || true
            return 0
        done </proc/locks
    done
    return 1
}

await_locks() { # files, otherwise apt's; ten minutes at most, then apt says itself what is wrong
    local locker said="" tries=0
    [ "$#" -gt 0 ] || set -- /var/lib/dpkg/lock{-frontend,} /var/lib/apt/lists/lock /var/cache/apt/archives/lock
    while [ "$tries" -lt 600 ] && locker="$(find_locker "$@")"; do
        [ "$said" = "$locker" ] || say "waiting for $locker, which is installing packages; Ctrl-C ends this"
        said="$locker" tries=$((tries + 1)); sleep 1
    done
}

forget_variables() { # all but known ones: pip, uv, apt, OpenSSL and bash run what theirs name (PIP_PYTHON, BASH_ENV)
    local word
    for word in $(compgen -e); do
        case "$word" in
            PATH | HOME | TERM | COLUMNS | LINES | NO_COLOR | LANG | LANGUAGE | LC_* | TZ | USER | LOGNAME) ;;
            SUDO_* | PKEXEC_UID | PSIPHON_VPN_* | *_proxy | *_PROXY) ;;
            SSL_CERT_* | PIP_CERT | PIP_INDEX_URL | PIP_EXTRA_INDEX_URL | PIP_FIND_LINKS | PIP_DEFAULT_TIMEOUT) ;;
            *) unset -v "$word" 2>/dev/null || true ;; # some are read-only
        esac
    done
}

is_roots() { # path; whether it and all directories above belong to root, and nobody else may write there
    local path; path="$(readlink -e -- "$1")" || return
    while [ "$(find "${path:-/}" -maxdepth 0 -user 0 ! -perm /022)" ]; do [ "$path" ] || return 0; path="${path%/*}"; done
    return 1
}
