"""The systemd units, as text. Nothing here touches the system.

They load with systemd 245; what an older one does not know it warns about and leaves out (R22). Three rules hold for
all of them: nothing that stops a unit runs a command (so stopping opens nothing), nothing but nft is needed for the
lock, and there is nothing to enable or to disable: targets want the units by drop-ins of ours, so no
`systemctl disable` leaves the next boot open.

The kill switch refuses `systemctl stop`: nothing would open, but systemd would stop the network managers with it, since
they require it. The guard refuses it because a layer would be gone until the next boot. Both can be reloaded, without a
moment in which their rules are not there. Both can be stopped once their files are gone and systemd was told
(daemon-reload), which is how an uninstallation does it.
"""

from __future__ import annotations

from typing import Final

from psiphon_vpn.policy import names
from psiphon_vpn.policy.own_tables import BRIDGES, FRAMES, GUARD
from psiphon_vpn.system.layout import (
    GROUP,
    GUARD_UNIT,
    KILLSWITCH_FAILED_UNIT,
    KILLSWITCH_UNIT,
    NETWORK_MANAGER_UNITS,
    SERVICE_UNIT,
    USER,
    Layout,
)

NFT: Final = "/usr/sbin/nft"
"""The same path on Debian, Fedora, Arch and openSUSE."""
CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE")
"""What the daemon may have (R8): no more, in no set."""
WATCHDOG_SECONDS: Final = 20
RUNTIME_DIRECTORY: Final = "psiphon-vpn"
STATE_DIRECTORY: Final = "psiphon-vpn/state"
GUARD_RUNTIME_DIRECTORY: Final = "psiphon-guard"

# What no part of this service needs, and no directive of which can make a unit fail where it is not known. Kept apart
# from directives that need a mount namespace: at boot, fewer things can go wrong without one.
_NO_NAMESPACE: Final = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
SystemCallArchitectures=native
KeyringMode=private
LimitCORE=0
"""
_MOUNTS: Final = """\
PrivateMounts=yes
ProtectSystem=strict
ProtectHome=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
"""
# nft looks up each user's number as a name. Without this file the C library looks in files alone; with it, it may ask a
# directory in the network, which is locked, and wait for minutes. nscd would ask in our place.
_NO_NAME_SERVICE: Final = (
    "InaccessiblePaths=-/etc/nsswitch.conf -/usr/etc/nsswitch.conf -/run/nscd -/run/.nscd_socket\n"
)
# What is root must be: it cannot be confined by its uid, so it sees next to nothing. No PrivateTmp: it would wait for
# /tmp and /var/tmp, which may need the network that waits for the lock.
_ROOT_NFT: Final = f"""\
CapabilityBoundingSet=CAP_NET_ADMIN
{_NO_NAMESPACE}{_MOUNTS}PrivateDevices=yes
ProtectKernelTunables=yes
InaccessiblePaths=-/tmp -/var/tmp -/etc/shadow
{_NO_NAME_SERVICE}ProcSubset=pid
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_NETLINK
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
IPAddressDeny=any
UMask=0077
"""


def _configured(layout: Layout) -> str:
    """Conditions that hold as soon as the machine was configured once, and until it is deconfigured.

    Between unpacking a package and configuring it there are no rules yet, and nobody has agreed to be locked: the units
    must do nothing then. Afterwards the loss of any file must not read as "not configured": hence several traces, of
    which one is enough (the | of systemd.unit(5)).
    """
    return f"ConditionPathExists=|{layout.rules_dir}\nConditionPathExists=|{layout.install_journal}\n"


def render_killswitch(layout: Layout) -> str:
    """The boot lock: plain nft, before any interface is up."""
    managers = " ".join(NETWORK_MANAGER_UNITS)
    return f"""\
[Unit]
Description=Psiphon kill switch: nothing leaves this machine but through the tunnel
Documentation=man:psiphon-vpn(8)
{_configured(layout)}DefaultDependencies=no
# Needs nothing, so it waits for nothing; everything that has to do with a network waits for it.
Wants=network-pre.target
Before=network-pre.target sysinit.target {managers}
OnFailure={KILLSWITCH_FAILED_UNIT}
# Stopping it would open nothing, but take down the network managers, which require it. To load the rules again: reload.
RefuseManualStop=yes
IgnoreOnIsolate=yes

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={NFT} -f {layout.boot_rules}
ExecReload={NFT} -f {layout.boot_rules}
# No ExecStop, no Conflicts=shutdown.target: the rules stay until the kernel ends.
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=30
{_ROOT_NFT}"""


def render_killswitch_failed(layout: Layout) -> str:
    """What happens when the boot lock does not load: nothing but loopback, and a sentence where a person sees it.

    Hardly confined, on purpose: what may have failed before is the confinement.
    """
    script = (
        f"if {NFT} -f {layout.drop_rules}; then now='All traffic is dropped instead.'; else "
        # Not even that: without rules no interface may be up, whoever brought it up (an initrd, for instance).
        "now='All network interfaces were taken down instead.'; "
        "for link in /sys/class/net/*; do link=$${link##*/}; "
        # Loopback by its number: names can be changed.
        'read -r number <"/sys/class/net/$$link/ifindex"; [ "$$number" = 1 ] || ip link set dev "$$link" down || '
        "now='Network interfaces may be up: PULL THE CABLE.'; done; fi; "
        'echo "psiphon-vpn: the kill switch could not be loaded, so this machine stays offline. $$now"; '
        f'echo "psiphon-vpn: the reason: journalctl -b -u {KILLSWITCH_UNIT}"; '
        'echo "psiphon-vpn: what to do: psiphon-vpn help stranded"'
    )
    return f"""\
[Unit]
Description=Psiphon kill switch could not be loaded: this machine stays offline
Documentation=man:psiphon-vpn(8)
DefaultDependencies=no
Before=network-pre.target {SERVICE_UNIT}
IgnoreOnIsolate=yes

[Service]
Type=oneshot
ExecStart=/bin/sh -c '{_escape_quotes(script)}'
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=30
CapabilityBoundingSet=CAP_NET_ADMIN
{_NO_NAMESPACE}"""


def _escape_quotes(script: str) -> str:
    """Inside the single quotes of a unit's command line (systemd.service(5), "Command lines")."""
    return script.replace("\\", "\\\\").replace("'", "\\'").replace("%", "%%")


def render_guard(layout: Layout) -> str:
    """The holder of the wire guard: an nft that owns its table for as long as it runs."""
    return f"""\
[Unit]
Description=Psiphon wire guard: a second lock that no other program can remove
Documentation=man:psiphon-vpn(8)
{_configured(layout)}DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target sysinit.target
After={KILLSWITCH_UNIT}
StartLimitIntervalSec=0
# An upgrade reloads: the holder itself replaces its table, in one transaction. Nothing needs to stop it.
RefuseManualStop=yes
IgnoreOnIsolate=yes

[Service]
Type=simple
RuntimeDirectory={GUARD_RUNTIME_DIRECTORY}
RuntimeDirectoryMode=0700
# Kernels before 5.12 and nft before 1.0 know no owner: then this unit is skipped, and the other layers hold.
ExecCondition={layout.guard_script} probe
ExecStart={layout.guard_script} hold {layout.guard_rules}
ExecStartPost={layout.guard_script} ready
ExecReload={layout.guard_script} reload {layout.guard_rules}
# However it ends. Not "always", which systemd 247 takes for a reason to try a skipped unit again, for ever.
Restart=on-failure
RestartForceExitStatus=0 SIGHUP SIGINT SIGTERM SIGPIPE
RestartSec=200ms
TimeoutStartSec=20
OOMScoreAdjust=-900
{_ROOT_NFT}"""


def render_guard_script() -> str:
    """What psiphon-guard.service runs. In a file of its own so that a person can read it and a test can run it."""
    table, frames, bridges = str(GUARD), str(FRAMES), str(BRIDGES)
    scratch = f"netdev {names.SCRATCH_TABLES[0]}"
    return f"""\
#!/bin/sh
# Holds the Psiphon wire guard: an nft owns its table, and the kernel removes the table when that process ends.
# Called by psiphon-guard.service alone. "probe", "hold FILE", "ready", "reload FILE".
set -eu
export LC_ALL=C # or [a-z] might be more than these letters
PATH=/usr/sbin:/usr/bin:/sbin:/bin
pipe="$RUNTIME_DIRECTORY/pipe"

fail() {{ echo "psiphon-guard: $1" >&2; exit 1; }}

# Owned by somebody else than ourselves, which is the holder: a deletion is refused, and it can be listed. In this
# order: a table without an owner that goes away in between would else be taken for one that has an owner.
is_held() {{ ! nft -c delete table {table} 2>/dev/null && nft list table {table} >/dev/null 2>&1; }}

handle() {{ nft -a list table {table} 2>/dev/null | sed -n '1s/.*# handle \\([0-9]*\\).*/\\1/p'; }}

await() {{ # a command; five seconds
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || return 1
        sleep 0.05
    done
}}

# The cards that this machine has now, each with the chain for its frames. A name of another form than the usual one is
# no piece of a rule (psiphon_vpn/policy/values.py), and its card has no frame guard. Type 1: Ethernet (ARPHRD_ETHER).
list_cards() {{
    for card in /sys/class/net/*; do
        name="${{card##*/}}"
        [ -e "$card/device" ] || continue
        case "$name" in [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) continue ;; esac
        type=1
        [ ! -r "$card/type" ] || read -r type <"$card/type" || true
        if [ "$type" = 1 ]; then echo "$name {names.FRAMES_CHAIN}"; else echo "$name {names.HEADERLESS_CHAIN}"; fi
    done
}}

# A chain for each card, so that one that is refused costs no other.
hook_card() {{ # card, chain for its frames
    cat <<EOF
table {frames} {{
    flags owner
    chain {names.DEVICE_CHAIN_PREFIX}$1 {{
        type filter hook egress devices = {{ "$1" }} priority 0; policy drop;
        goto $2
    }}
}}
EOF
}}

# Would this card be taken? Asked with another table, which is not loaded.
is_taken() {{
    printf 'table {scratch} {{\\nchain c {{\\ntype filter hook egress device "%s" priority 0;\\n}}\\n}}\\n' "$1" |
        nft -c -f - 2>/dev/null
}}

# Kept apart from the wire guard: a kernel without the hook (before 5.16) refuses this one alone.
write_frames() {{ # the wire guard's file, beside which the other lies
    rules="${{1%/*}}/frames.nft" cards="$RUNTIME_DIRECTORY/cards.nft"
    [ -r "$rules" ] && [ -n "$(list_cards)" ] || return 1
    {{ cat "$rules"; list_cards | while read -r card chain; do hook_card "$card" "$chain"; done; }} >"$cards"
    # All at once, which is quick, or those that are taken.
    ! sed -e 's/{frames}/{scratch}/' -e '/flags owner/d' "$cards" | nft -c -f - 2>/dev/null || return 0
    {{
        cat "$rules"
        list_cards | while read -r card chain; do ! is_taken "$card" || hook_card "$card" "$chain"; done
    }} >"$cards"
}}

# What knows allowed bridges comes last, and all of it in one transaction: where the kernel does not take it, the wire
# guard that knows none stands.
has_bridges() {{ grep -q '^table {bridges} ' "${{1%/*}}/bridges.nft" 2>/dev/null; }}

is_bridge_held() {{ ! nft -c delete table {bridges} 2>/dev/null && nft list table {bridges} >/dev/null 2>&1; }}

is_bridge_gone() {{ ! nft list table {bridges} >/dev/null 2>&1; }}

is_replaced() {{ [ -n "$(handle)" ] && [ "$(handle)" != "$before" ]; }}

case "$1" in
    probe)
        # Three times: one answer "no" for another reason must not switch the guard off.
        for _ in 1 2 3; do
            echo 'add table inet psiphon_owner_probe {{ flags owner; }}' | nft -c -f - 2>/dev/null && exit 0
            sleep 0.1
        done
        fail "this kernel or its nft cannot own a table (Linux 5.12, nft 1.0): no wire guard, the other layers hold"
        ;;
    hold)
        # A table of this name that nobody owns is in the way. One that has an owner stays, and the load fails.
        nft delete table {table} 2>/dev/null || true
        nft delete table {frames} 2>/dev/null || true
        nft delete table {bridges} 2>/dev/null || true
        rm -f -- "$pipe"
        mkfifo -m 600 -- "$pipe"
        exec 0<>"$pipe" # opened for both reading and writing, it never ends
        printf 'include "%s"\\n' "$2" >&0
        ! write_frames "$2" || printf 'include "%s"\\n' "$RUNTIME_DIRECTORY/cards.nft" >&0
        ! has_bridges "$2" || printf 'include "%s"\\n' "${{2%/*}}/bridges.nft" >&0
        exec nft -i >/dev/null
        ;;
    ready)
        await is_held || fail "the wire guard was not loaded"
        ;;
    reload)
        before=$(handle)
        printf 'include "%s"\\n' "$2" >"$pipe"
        ! write_frames "$2" || printf 'include "%s"\\n' "$RUNTIME_DIRECTORY/cards.nft" >"$pipe"
        await is_replaced || fail "the wire guard was not loaded again; the one from before stands"
        # Only now: while the wire guard knew bridges, their guard had to stand.
        if has_bridges "$2"; then
            before=$(handle)
            printf 'include "%s"\\n' "${{2%/*}}/bridges.nft" >"$pipe"
            await is_replaced || fail "allowed bridges were not loaded; the wire guard stands, which knows none"
            is_bridge_held || fail "the bridge guard does not stand"
        elif ! is_bridge_gone; then
            printf 'delete table {bridges}\\n' >"$pipe"
            await is_bridge_gone || fail "the bridge guard could not be taken away; it stands"
        fi
        ;;
    *) fail "unknown word: $1" ;;
esac
"""


def render_service(layout: Layout) -> str:
    """The daemon. What is left open, and why, is in SECURITY.md."""
    capabilities = " ".join(CAPABILITIES)
    return f"""\
[Unit]
Description=Psiphon VPN: holds the lock and the tunnel
Documentation=man:psiphon-vpn(8)
{_configured(layout)}# Wanted, not required: the daemon loads the lock itself, whatever became of these.
Wants={KILLSWITCH_UNIT} {GUARD_UNIT} network-pre.target
After={KILLSWITCH_UNIT} {GUARD_UNIT} systemd-modules-load.service systemd-sysctl.service dbus.socket
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={layout.daemon}
# kill is a word of the shell: the program of that name is in no package that every system has.
ExecReload=/bin/sh -c 'kill -HUP "$$MAINPID"'
User={USER}
Group={GROUP}
StateDirectory={STATE_DIRECTORY}
StateDirectoryMode=0700
RuntimeDirectory={RUNTIME_DIRECTORY}
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=restart
WatchdogSec={WATCHDOG_SECONDS}
# No core dump of a process that knows secrets, and no time lost.
WatchdogSignal=SIGKILL
Restart=always
RestartSec=500ms
# systemd itself asks every name service for the groups of psiphon-user, also one that cannot be reached.
TimeoutStartSec=300
TimeoutStopSec=15
# The daemon ends the core in order; what is left of the group goes with SIGKILL.
KillMode=mixed
# The end of the core is the daemon's to notice, not a reason to stop the daemon.
OOMPolicy=continue
OOMScoreAdjust=-500
LimitNOFILE=65536
UMask=0077

# Exactly these (R8). NET_ADMIN: rules, routes, the TUN, settings below /proc/sys/net.
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
{_NO_NAMESPACE}{_MOUNTS}{_NO_NAME_SERVICE}PrivateTmp=yes
# /dev is private and holds the TUN's control device beside the harmless ones. With "-": without it the daemon still
# locks, and says what is missing.
PrivateDevices=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
BindPaths=-/dev/net/tun
# Kernel settings of the network, and no others.
ProtectKernelTunables=yes
ReadWritePaths=/proc/sys/net
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
# Without MemoryDenyWriteExecute: the published tunnel core unpacks itself in memory.
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# setpriv(1) takes the core's capabilities away; the control socket goes to the group.
SystemCallFilter=capset @chown
# A refused call fails and does not kill: the core's runtime asks for more descriptors at start and lives without.
SystemCallErrorNumber=EPERM
"""


def render_manager_dropin() -> str:
    """For each unit that brings interfaces up: not without the boot lock."""
    return f"""\
# From psiphon-vpn. If the kill switch cannot be loaded, interfaces stay down.
[Unit]
Requires={KILLSWITCH_UNIT}
After={KILLSWITCH_UNIT}
"""


def render_target_dropin(*units: str) -> str:
    """A target wants our units, by no symbolic link that `systemctl disable` could remove."""
    return f"# From psiphon-vpn.\n[Unit]\nWants={' '.join(units)}\n"


def render_units(layout: Layout) -> dict[str, str]:
    """Every unit of ours, by name."""
    return {
        KILLSWITCH_UNIT: render_killswitch(layout),
        KILLSWITCH_FAILED_UNIT: render_killswitch_failed(layout),
        GUARD_UNIT: render_guard(layout),
        SERVICE_UNIT: render_service(layout),
    }


def render_dropins() -> dict[str, str]:
    """Our drop-ins for units of others, by the unit's name."""
    return {
        "sysinit.target": render_target_dropin(KILLSWITCH_UNIT, GUARD_UNIT),
        "multi-user.target": render_target_dropin(SERVICE_UNIT),
        **{unit: render_manager_dropin() for unit in NETWORK_MANAGER_UNITS},
    }
