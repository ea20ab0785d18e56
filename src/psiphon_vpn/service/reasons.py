# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Why the service is in its state: a code for programs, a sentence and a next step for people."""

import enum
from dataclasses import dataclass

from psiphon_vpn.i18n import _
from psiphon_vpn.policy import names


class Reason(enum.StrEnum):
    """Every reason. The code is part of the status that programs read."""

    STARTING = "starting"
    STOPPED_BY_USER = "stopped_by_user"
    NO_UPLINK = "no_uplink"
    BOOT_LOCK = "boot_lock"
    UPLINK_CHANGED = "uplink_changed"
    UPLINK_ABSENT = "uplink_absent"
    ODD_UPLINK = "odd_uplink"
    UPLINK_OWNERLESS = "uplink_ownerless"
    UPLINK_TUNNELLED = "uplink_tunnelled"
    UPLINK_VRF = "uplink_vrf"
    UPLINK_PROGRAM = "uplink_program"
    UPLINK_BARREN = "uplink_barren"
    CONNECTING = "connecting"
    TUNNEL_UP = "tunnel_up"
    VERIFIED = "verified"
    TUNNEL_LOST = "tunnel_lost"
    TUNNEL_SILENT = "tunnel_silent"
    CORE_EXITED = "core_exited"
    CORE_MISSING = "core_missing"
    CORE_NOT_INSTALLED = "core_not_installed"
    CORE_MISMATCH = "core_mismatch"
    CORE_RECORD = "core_record"
    CORE_SEALING = "core_sealing"
    PORT_IN_USE = "port_in_use"
    UPSTREAM_PROXY = "upstream_proxy"
    DATASTORE = "datastore"
    DATASTORE_BROKEN = "datastore_broken"
    DISK = "disk"
    NO_SERVER = "no_server"
    SLOW = "slow"
    NO_IPV4 = "no_ipv4"
    SUBNET_TAKEN = "subnet_taken"
    NO_LIST = "no_list"
    NO_SERVER_LIST = "no_server_list"
    LIST_LOOKUP_OFF = "list_lookup_off"
    LIST_HOST_NOT_FOUND = "list_host_not_found"
    LIST_NOT_REACHED = "list_not_reached"
    LIST_NOT_VERIFIED = "list_not_verified"
    LIST_NOT_USED = "list_not_used"
    REGION = "region"
    PROTOCOLS = "protocols"
    TARGET_AND_PROXY = "target_and_proxy"
    CLOCK = "clock"
    CAPTIVE_PORTAL = "captive_portal"
    CORE_HANGS = "core_hangs"
    UNSTABLE = "unstable"
    SLEEPING = "sleeping"
    WOKE = "woke"
    RULES_CHANGED = "rules_changed"
    FIGHT = "fight"
    LOCK_FAILED = "lock_failed"
    LED_AROUND = "led_around"
    TUN_FAILED = "tun_failed"
    TUN_TAKEN = "tun_taken"
    PART_FAILED = "part_failed"
    LEASE_LOST = "lease_lost"
    LEASE_EXPIRED = "lease_expired"
    BAD_CONFIG = "bad_config"
    RESTARTING = "restarting"
    NEW_LIST = "new_list"


LASTING = frozenset(
    {
        Reason.STOPPED_BY_USER,
        Reason.BOOT_LOCK,
        Reason.UPLINK_ABSENT,
        Reason.ODD_UPLINK,
        Reason.UPLINK_OWNERLESS,
        Reason.UPLINK_TUNNELLED,
        Reason.UPLINK_VRF,
        Reason.UPLINK_PROGRAM,
        Reason.CORE_MISSING,
        Reason.CORE_NOT_INSTALLED,
        Reason.CORE_MISMATCH,
        Reason.CORE_RECORD,
        Reason.CORE_SEALING,
        Reason.SUBNET_TAKEN,
        Reason.NO_LIST,
        Reason.LIST_LOOKUP_OFF,
        Reason.LIST_NOT_USED,
        Reason.REGION,
        Reason.PROTOCOLS,
        Reason.TARGET_AND_PROXY,
        Reason.CAPTIVE_PORTAL,
        Reason.LED_AROUND,
        Reason.TUN_FAILED,
        Reason.BAD_CONFIG,
    }
)
"""Reasons that do not go away by themselves: a person has to do something."""

TRIES_DO_NOT_HELP = frozenset(
    {Reason.CORE_NOT_INSTALLED, Reason.CORE_MISMATCH, Reason.CORE_RECORD, Reason.CORE_SEALING}
)
"""Lasting reasons that are the same at the next try: it is made, but nobody should wait for it."""


@dataclass(frozen=True)
class Explanation:
    """The text for the user."""

    sentence: str
    next_step: str | None = None


def _bring_list() -> str:
    return _("Bring a list from another computer: sudo psiphon-vpn servers import FILE")


def explain(reason: Reason, detail: str = "") -> Explanation:
    """The sentence for a reason, in the user's language.

    Args:
        reason: the reason.
        detail: a program's or the kernel's own words; never an address or a name of the user.
    """
    text, step = {
        Reason.STARTING: (_("the service is starting"), None),
        Reason.NEW_LIST: (_("a newer list of servers was fetched; trying its servers"), None),
        Reason.STOPPED_BY_USER: (
            _("you stopped the connection; nothing leaves this machine"),
            _("To connect again: sudo psiphon-vpn start"),
        ),
        Reason.NO_UPLINK: (
            _("this machine has no network connection; the service waits for one"),
            _("Check the cable or the Wi-Fi connection; the service goes on by itself."),
        ),
        Reason.BOOT_LOCK: (
            _(
                "the boot lock could not be loaded when this machine started, so nothing brings its network interfaces "
                "up; the service itself has locked it since"
            ),
            _("Find out why: sudo journalctl -b -u psiphon-killswitch; what to do: psiphon-vpn help stranded"),
        ),
        Reason.UPLINK_CHANGED: (_("the network changed; connecting over the new one"), None),
        Reason.UPLINK_ABSENT: (
            _(
                "the interface that the configuration names as uplink is down, has no default route, or is a tunnel of "
                "the kernel's or MACsec, by which the lock can let nothing out"
            ),
            _("Bring it up, or let the service choose: sudo psiphon-vpn config unset uplink"),
        ),
        Reason.ODD_UPLINK: (
            _(
                "the only network interface with a way out, or one below it, has a name with other characters than "
                "letters, digits, '.', '_' and '-', so no rule can name it"
            ),
            _("Give it a plain name such as eth0: sudo ip link set dev NAME down, then: name eth0, then: up"),
        ),
        Reason.UPLINK_OWNERLESS: (
            _(
                "the only network interface with a way out uses MACsec: the kernel no longer says which user a packet "
                "belongs to, so the lock cannot let anything pass and stays closed"
            ),
            _("Use another network, or a port of the switch without MACsec; the service goes on by itself."),
        ),
        Reason.UPLINK_TUNNELLED: (
            _(
                "the only network interface with a way out is a tunnel that the kernel itself makes: its packets are "
                "not those of the tunnel program, so the lock cannot let them out and stays closed"
            ),
            _(
                "End that tunnel, and let this computer's card have the default route again (ip route; ip -6 route); "
                "the service goes on by itself."
            ),
        ),
        Reason.UPLINK_VRF: (
            _(
                "no network interface has a way out in the main routing table, and one is in a VRF, whose routing "
                "table the service does not use"
            ),
            _(
                "Take it out, with: sudo ip link set dev NAME nomaster, and have your network manager set it up again; "
                "the service goes on by itself."
            ),
        ),
        Reason.UPLINK_PROGRAM: (
            _(
                "this machine's way out is an interface that a program makes, another VPN for example; the lock stops "
                "what that program sends, so no server answers"
            ),
            _(
                "End that program, and let this computer's card have the default route again (ip route; ip -6 route); "
                "the service goes on by itself."
            ),
        ),
        Reason.UPLINK_BARREN: (
            _("no tunnel came over the last network; trying another one"),
            _("To use one and no other: sudo psiphon-vpn config set uplink NAME"),
        ),
        Reason.CONNECTING: (_("looking for a Psiphon server"), None),
        Reason.TUNNEL_UP: (
            _("a server answered; checking the lock and the tunnel before anything may pass"),
            None,
        ),
        Reason.VERIFIED: (_("everything goes through the tunnel; lock, routes and tunnel are checked"), None),
        Reason.TUNNEL_LOST: (_("the server was lost; connecting again"), None),
        Reason.TUNNEL_SILENT: (_("the tunnel carried nothing; trying again"), None),
        Reason.CORE_EXITED: (
            _("the tunnel program ended; starting it again"),
            _("If it keeps ending: sudo psiphon-vpn update, or read the log: journalctl -u psiphon-vpn"),
        ),
        Reason.CORE_MISSING: (
            _("the tunnel program cannot be started"),
            _("Check that its file exists and is executable, then: sudo psiphon-vpn restart"),
        ),
        Reason.CORE_NOT_INSTALLED: (
            _("no tunnel program is installed"),
            _("Bring a file that has it: sudo psiphon-vpn setup --bundle FILE"),
        ),
        Reason.CORE_MISMATCH: (
            _("the tunnel program is not the one that was installed, so it is not started"),
            _("A broken disk or an attacker changed it. Bring another: sudo psiphon-vpn setup --bundle FILE"),
        ),
        Reason.CORE_RECORD: (
            _("the record of the tunnel program cannot be trusted, so the program is not started"),
            _("Bring another: sudo psiphon-vpn setup --bundle FILE"),
        ),
        Reason.CORE_SEALING: (
            _("this kernel forbids starting the checked copy of the tunnel program"),
            _("Set vm.memfd_noexec to 0 or 1 (sysctl), then: sudo psiphon-vpn restart"),
        ),
        Reason.PORT_IN_USE: (
            _("another program uses the port of the SOCKS proxy; connecting without the proxy"),
            _("To have the proxy: end that program, or set another 'socks_port' in the configuration."),
        ),
        Reason.UPSTREAM_PROXY: (
            _("the upstream proxy gives no connection"),
            _(
                "See that it runs and that this network reaches it, and check 'upstream_proxy' in the configuration:"
                " sudo psiphon-vpn config edit"
            ),
        ),
        Reason.DATASTORE: (
            _("another program uses the stored data of the tunnel program"),
            _("End any other copy of the tunnel program; the service goes on by itself."),
        ),
        Reason.DATASTORE_BROKEN: (
            _("the tunnel program cannot use its stored data; beginning without it"),
            _(
                "If it happens again: sudo rm -r /var/lib/psiphon-vpn/state/core, then: sudo psiphon-vpn restart. The "
                "tunnel program fetches all of that data again."
            ),
        ),
        Reason.NO_SERVER: (
            _("no Psiphon server could be reached; a fresh attempt follows"),
            _("If it stays so: try another network or another country; the service keeps trying."),
        ),
        Reason.SLOW: (
            _("no Psiphon server has answered yet; the service keeps trying"),
            _(
                "If it stays so: try another network, or bring a newer list of servers from another computer: sudo "
                "psiphon-vpn servers import FILE. A network that wants you to sign in on a web page (hotel, train, "
                "café) lets nothing through before that, and nothing is opened here for it."
            ),
        ),
        Reason.SUBNET_TAKEN: (
            _("this network uses addresses that the tunnel needs ({networks})").format(
                networks=f"{names.TUN_IPV4_SUBNET}, {names.TUN_IPV6_SUBNET}"
            ),
            _(
                "Set the router of this network to other addresses, or use another network, for example a phone's; "
                "the service goes on by itself."
            ),
        ),
        Reason.NO_IPV4: (
            _("this network has only IPv6, and no Psiphon server with a known IPv6 address has answered yet"),
            _(
                "Use a network that has IPv4 too, or one with a router that carries IPv4 over IPv6 (464XLAT, DS-Lite); "
                "the service keeps trying."
            ),
        ),
        Reason.NO_LIST: (
            _("no Psiphon server is known, and the configuration names no place to get a list of servers from"),
            _bring_list(),
        ),
        Reason.NO_SERVER_LIST: (
            _("no Psiphon server is known yet; the tunnel program is asking for a list of servers"),
            _bring_list(),
        ),
        Reason.LIST_LOOKUP_OFF: (
            _(
                "no Psiphon server is known, and the host with the list of servers cannot be looked up: nothing may be "
                "looked up outside the tunnel"
            ),
            _(
                "Bring a list from another computer: sudo psiphon-vpn servers import FILE. Or allow a resolver outside "
                "the tunnel (bootstrap_dns), which shows this network that you look for Psiphon."
            ),
        ),
        Reason.LIST_HOST_NOT_FOUND: (
            _("no Psiphon server is known, and no resolver on this network finds the host with the list of servers"),
            _bring_list(),
        ),
        Reason.LIST_NOT_REACHED: (
            _("no Psiphon server is known, and the host with the list of servers is not reached"),
            _("Try another network, or bring a list from another computer: sudo psiphon-vpn servers import FILE"),
        ),
        Reason.LIST_NOT_VERIFIED: (
            _("no Psiphon server is known, and the list of servers that came did not pass its check"),
            _bring_list(),
        ),
        Reason.LIST_NOT_USED: (
            _("no Psiphon server is known, and the stored list of servers is not used"),
            _bring_list(),
        ),
        Reason.REGION: (
            _("no known Psiphon server is in the country that you chose"),
            _("Choose another: sudo psiphon-vpn region, or let the service choose: sudo psiphon-vpn region best"),
        ),
        Reason.PROTOCOLS: (
            _("no known Psiphon server can be used with the options in the configuration"),
            _("Allow all again: sudo psiphon-vpn config unset LimitTunnelProtocols"),
        ),
        Reason.TARGET_AND_PROXY: (
            _("the tunnel program cannot reach a server that the configuration names through an upstream proxy"),
            _("Take one of them out: sudo psiphon-vpn config unset upstream_proxy, or: config unset TargetServerEntry"),
        ),
        Reason.CLOCK: (
            _("this machine's clock is wrong, and servers may refuse it for this reason"),
            _("Set it, with: sudo timedatectl set-time 'YYYY-MM-DD HH:MM:SS'"),
        ),
        Reason.CAPTIVE_PORTAL: (
            _("this network wants you to sign in on a web page before it lets anything through"),
            _(
                "Nothing is opened for that. Use another network, or sign in with another device that shares its "
                "connection with this one."
            ),
        ),
        Reason.CORE_HANGS: (_("the tunnel program has stopped working; starting it again"), None),
        Reason.DISK: (
            _("the service cannot write to its directory: the disk is full or read-only"),
            _("Make room below /var/lib/psiphon-vpn; the service goes on by itself."),
        ),
        Reason.UNSTABLE: (_("the network keeps coming and going; waiting for it to settle"), None),
        Reason.SLEEPING: (
            _("this machine is going to sleep; nothing passes until it has woken up and everything is checked"),
            None,
        ),
        Reason.WOKE: (_("this machine has slept; connecting again"), None),
        Reason.RULES_CHANGED: (
            _("something on this machine changed the lock, the routes or the tunnel; they were put back"),
            None,
        ),
        Reason.FIGHT: (
            _("another program keeps changing the lock; nothing may pass until it stops"),
            _(
                "Find that program and stop it, or have it leave Psiphon's rules alone ({culprit}); the service goes "
                "on by itself."
            ).format(culprit=detail or _("the log of psiphon-vpn names it")),
        ),
        Reason.LOCK_FAILED: (
            _("the rules of the lock could not be loaded; everything is dropped"),
            _("Read the log: journalctl -u psiphon-vpn; then: sudo psiphon-vpn restart"),
        ),
        Reason.LED_AROUND: (
            _("another program's routing rule leads around the tunnel, where nothing may pass"),
            _(
                "It may be another VPN. Find out which program made the rule (ip rule; ip -6 rule), and end it or "
                "remove the rule; the service goes on by itself."
            ),
        ),
        Reason.TUN_FAILED: (
            _("the tunnel's network device cannot be made"),
            _("Load the kernel module 'tun' and check that everybody may open /dev/net/tun (mode 0666)."),
        ),
        Reason.TUN_TAKEN: (
            _("something on this machine removed the tunnel's network device, or set it down; it is made again"),
            None,
        ),
        Reason.PART_FAILED: (
            _("a part of the service failed; it is started again"),
            _(
                "The service goes on by itself. If it happens again and again: the machine may be short of memory or "
                "open files; the log of psiphon-vpn says more. Then: sudo psiphon-vpn restart"
            ),
        ),
        Reason.LEASE_LOST: (
            _("the kernel no longer holds the permission to pass; checking everything again"),
            _("The service goes on by itself. The log of psiphon-vpn says what it found."),
        ),
        Reason.LEASE_EXPIRED: (
            _(
                "the permission to pass ran out after {seconds} s, before the service renewed it: this machine was too "
                "busy, or something held the service up; checking everything again"
            ).format(seconds=names.LEASE_SECONDS),
            _(
                "The service goes on by itself. If it happens again and again: find out which programs keep the "
                "processor or the disk busy (top), and end or limit them."
            ),
        ),
        Reason.BAD_CONFIG: (
            _("the configuration is not usable"),
            _("Correct it, with: sudo psiphon-vpn config edit"),
        ),
        Reason.RESTARTING: (_("starting again, as you asked"), None),
    }[reason]
    return Explanation(f"{text} ({detail})" if detail else text, step)
