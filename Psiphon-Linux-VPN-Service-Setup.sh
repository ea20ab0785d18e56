#!/bin/bash -p
# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
# Prepares the machine for psiphon-vpn and passes the arguments on: demo, test, status, help and so on.
# It installs missing OS packages, finds Python 3.11 or later or downloads one, and makes a virtual environment from
# hash-locked requirements. It does this once; later runs only check a stamp.
# PSIPHON_VPN_VENV names another place for the virtual environment. All messages go to standard error.
set -euo pipefail
umask 022 # the service's own user has to read what root makes here

say() { printf 'Psiphon-Linux-VPN-Service-Setup.sh: %s\n' "$*" | if [ -t 2 ]; then fold -s -w 80; else cat; fi >&2; } # words stay whole
fail() { say "$1"; exit "${2:-1}"; }
[ "$EUID" -eq 0 ] || fail "This needs root: run it again with sudo in front." 77
# No other directory, not even last: root runs these programs. -p above ignores functions in the environment.
PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"; export HOME=~root # pip and uv obey files in it
here="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
venv="${PSIPHON_VPN_VENV:-$here/.venv}"
. "$here/packaging/commands.sh"; forget_variables # which package brings a command; what root does not obey
needed=(nft ip setpriv nsenter openssl flock) lock="requirements.lock"
case " $* " in
    *" test "* | *" package "*) lock="requirements-dev.lock" ;; *" demo "* | *" leaktest "* | *" bench "*) lock="requirements-lab.lock" ;;&
    *" --server"*) needed+=(iptables ip6tables) ;;
esac
# A line that changes with the lock file, the Python or the checkout.
stamp_for() { printf '%s %s %s\n' "$(sha256sum <"$here/$1")" "$(readlink -f "$venv/bin/python")" "$here"; }
is_ready() {
    [ -x "$venv/bin/python" ] && [ -r "$venv/.stamp-$1" ] && [ "$(<"$venv/.stamp-$1")" = "$(stamp_for "$1")" ]
}

install_for() { # commands
    local manager word packages=""
    for manager in apt-get dnf pacman zypper none; do command -v "$manager" >/dev/null && break; done
    [ "$manager" != none ] || fail "These commands are missing: $*. Install them and run this again."
    for word in "$@"; do packages+=" $(package_for "$word" "$manager")"; done
    say "installing$packages with $manager"
    case "$manager" in
        apt-get) await_locks; [ -n "${updated:-}" ] || apt-get update -qq >&2 </dev/null || true # old lists may still do
            set -- env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y -o DPkg::Lock::Timeout=600 --no-install-recommends ;;
        dnf) set -- dnf install -q -y ;; pacman) set -- pacman -S --noconfirm --needed ;;
        zypper) set -- zypper --non-interactive --quiet install ;;
    esac
    # shellcheck disable=SC2086  # a list of words
    "$@" $packages >&2 </dev/null || fail "$manager could not install$packages. Install them and run this again."
}

find_python() { # prints the first Python that is new enough, can make virtual environments, and others may run
    local path
    for path in $(type -ap python3.13 python3.12 python3.11 python3); do
        if is_roots "$path" && (cd / && setpriv --reuid=65534 --regid=65534 --clear-groups "$path" -I -c \
            'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))') 2>/dev/null; then echo "$path" && return; fi
    done
    # The system's Python may only lack a package; for one that is too old (0 here), no package helps.
    if python3 -I -c 'import sys; sys.exit(sys.version_info >= (3, 11))' 2>/dev/null; then return 1; fi
    [ "${1:-}" != again ] && install_for python && find_python again
}

bring_python() { # downloads one with uv, and prints its path
    export UV_PYTHON_INSTALL_DIR="$here/.python"
    PATH="$PATH:$here/.python/uv/bin"
    if ! command -v uv >/dev/null; then
        python3 -I -m pip --version >/dev/null 2>&1 || install_for python
        python3 -I -m pip install --quiet --no-input --require-hashes --no-deps \
            --target "$here/.python/uv" -r "$here/requirements-bootstrap.lock" >&2 || return
    fi
    uv python install --quiet 3.12 >&2 && uv python find --managed-python 3.12
}

make_venv() {
    [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || fail "$venv exists and is not a virtual environment. Move it away."
    local python; python="$(find_python || bring_python)" || fail "No Python 3.11 or later was found or downloaded. Install one."
    say "bringing the Python packages from $lock, once"; rm -rf -- "$venv"
    local bare=(); [ "$lock" != requirements.lock ] || bare=(--without-pip) # an installation needs pip only here
    { "$python" -I -m venv "${bare[@]}" "$venv" && "$venv/bin/python" -I "$here/packaging/run_pip.py" install --quiet \
        --no-compile --no-input --disable-pip-version-check --require-hashes --no-deps -r "$here/$lock"; } >&2 </dev/null ||
        fail "The Python packages could not be installed. Check the network and run this again."
    echo "$here/src" >"$(echo "$venv"/lib/python3.*/site-packages)/psiphon-vpn.pth"
    local word # last, so that an incomplete one is made again; each lock file includes the previous ones
    for word in requirements{,-lab,-dev}.lock; do
        stamp_for "$word" >"$venv/.stamp-$word"; [ "$word" != "$lock" ] || break
    done
}

missing=(); for word in "${needed[@]}"; do command -v "$word" >/dev/null || missing+=("$word"); done
[ "${#missing[@]}" -eq 0 ] || install_for "${missing[@]}"
wanted=() # for tests and the demonstration with a whole system: without these they skip something, and say so
attackers=(arping dbus-daemon dbus-send dhclient dnsmasq dockerd firewall-cmd firewalld ip6tables-nft iptables-nft
    nsenter radvd tc timeout udhcpc ufw unshare /lib/systemd/systemd-networkd) # a test compares them with the attacks
case " $* " in
    *" test "*) wanted=(rpm lintian shellcheck dbus-daemon dnsmasq dhclient dhcpd radvd hostapd iptables wpa_supplicant) ;;
    *" --system "*) wanted=(dnsmasq) ;; *" --chaos "*) ;; *" leaktest "*) wanted=("${attackers[@]}") ;;
esac
case " $* " in " test --fast "*) ;; " test "*) wanted+=(debootstrap systemd-nspawn qemu-system-x86_64 qemu-img pppoe-server iw wg) ;; *" --system "*) wanted+=(debootstrap systemd-nspawn) ;; *" --machine "* | *" --kernel "*) wanted+=(qemu-system-x86_64) ;; esac
[[ " $* " != *" --kernels "* ]] || wanted+=("${attackers[@]}") # the leak test on each kernel
missing=(); for word in "${wanted[@]}"; do command -v "$word" >/dev/null || ! may_come "$word" || missing+=("$word"); done
# A program without a package must not prevent the installation of the others.
[ "${#missing[@]}" -eq 0 ] || (install_for "${missing[@]}") || for word in "${missing[@]}"; do
    (updated=yes install_for "$word") || true
done
# Two runs must not make it at the same time.
is_ready "$lock" || { flock 9; is_ready "$lock" || make_venv; } 9<"$here"
exec "$venv/bin/python" -I -m psiphon_vpn "$@" # isolated: ignores the current directory and PYTHON*
