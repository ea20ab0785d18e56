# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging in to a wireless network under the guards, with the programs that distributions ship and radios in software.

What is known of a card with a real radio and a driver of its own protocol stack is in docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from psiphon_lab.guest.guest import Guest
from psiphon_lab.guest.image import NFT_MODULES
from psiphon_lab.guest.kernels import Kernel
from psiphon_lab.guest.source import UNPACK, pack_source, python
from psiphon_lab.machine import LAB_UID
from psiphon_lab.namespace import open_host
from psiphon_vpn.policy.guards import build_egress_guard, build_frame_guard
from psiphon_vpn.policy.model import Identity
from psiphon_vpn.policy.values import InterfaceName

MISSING = [name for name in ("hostapd", "wpa_supplicant", "iw", "dbus-daemon") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
# The daemon itself is in no directory of programs: Debian's and Fedora's place, then Arch's and openSUSE's.
IWD = next((path for path in ("/usr/libexec/iwd", "/usr/lib/iwd/iwd") if Path(path).exists()), "iwd")
needs_iwd = pytest.mark.skipif(shutil.which("iwctl") is None or IWD == "iwd", reason="iwd is not installed")

IDENTITY = Identity(uid=LAB_UID, gid=LAB_UID)
DEVICE = InterfaceName("wlan0")
# Some are built into one kernel and modules of the other.
CRYPTO = ("ctr", "ccm", "cmac", "ecb", "md4", "des_generic", "algif_hash", "algif_skcipher", "pkcs8_key_parser")

POINT = """interface=wlan1
driver=nl80211
ctrl_interface=/run/hostapd
ssid=laboratory
hw_mode=g
channel=1
wpa=2
wpa_key_mgmt=WPA-PSK
rsn_pairwise=CCMP
wpa_passphrase=twelve letters
wpa_group_rekey=3
"""
NETWORK = 'network={\nssid="laboratory"\npsk="twelve letters"\nscan_freq=2412\n}\n'
BUS = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/>
</policy></busconfig>
"""
COUNTERS = """table netdev seen {
    chain egress {
        type filter hook egress device "wlan0" priority -100
        meta protocol 0x888e counter comment "all"
        meta protocol 0x888e meta skuid 0 counter comment "root"
    }
}
"""

LOGGED_IN, NEW_GROUP_KEY = "EAPOL-4WAY-HS-COMPLETED", "group key handshake completed"
NOT_HEARD = "4-Way Handshake failed"


@dataclass(frozen=True, kw_only=True)
class Client:
    """A program that logs in. start: shell command, with its process id in $!. by_socket: by a packet socket or not."""

    start: str
    by_socket: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """EAPOL frames at the egress hook: all, and those of root's sockets."""

    all: int
    root: int


def _wpa_supplicant(head: str) -> str:
    return f"""
        printf '%s' '{head}{NETWORK}' >/run/supplicant.conf
        wpa_supplicant -t -D nl80211 -i wlan0 -c /run/supplicant.conf >/exchange/client.log 2>&1 &
    """


def _iwd(control_port: str) -> str:
    return f"""
        printf '[General]\\nControlPortOverNL80211={control_port}\\nUseDefaultInterface=true\\n' >/etc/iwd/main.conf
        printf '[DriverQuirks]\\nDefaultInterface=*\\n' >>/etc/iwd/main.conf
        {IWD} -d >/exchange/client.log 2>&1 &
    """


CLIENTS = {
    "wpa_supplicant": Client(start=_wpa_supplicant(""), by_socket=False),
    "wpa_supplicant-by-socket": Client(start=_wpa_supplicant("driver_param=control_port=0\n"), by_socket=True),
    "iwd": Client(start=_iwd("true"), by_socket=False),
    "iwd-by-socket": Client(start=_iwd("false"), by_socket=True),
}


@pytest.fixture(scope="module")
def guest(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with two radios, one of them an access point's in a network namespace of its own."""
    directory = tmp_path_factory.mktemp("guest")
    crypto = (name for name in CRYPTO if name in kernel.modules)
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(open_host("outside", directory=directory / "outside"))
        modules = (*NFT_MODULES, *crypto, "mac80211_hwsim")
        guest = stack.enter_context(Guest(outside, kernel, cards=(), modules=modules, directory=directory))
        guard = build_egress_guard(IDENTITY, (DEVICE,))
        assert guard is not None
        # Without the owner flag: there is no holder here.
        frames = dataclasses.replace(build_frame_guard(IDENTITY, (DEVICE,)), flags="")
        (guest.exchange / "guards.nft").write_text(guard.render_replacement() + frames.render_replacement())
        rules = (line for line in guard.render_replacement().splitlines(keepends=True) if "0x888e" not in line)
        (guest.exchange / "without.nft").write_text("".join(rules))
        for name, text in {"point.conf": POINT, "bus.conf": BUS, "seen.nft": COUNTERS}.items():
            (guest.exchange / name).write_text(text)
        (guest.exchange / "source.tar").write_bytes(pack_source())
        guest.run(
            f"""
            set -e
            mkdir -p /run/netns /run/dbus /etc/iwd /var/lib/iwd
            printf '[Security]\\nPassphrase=twelve letters\\n' >/var/lib/iwd/laboratory.psk
            dbus-daemon --config-file=/exchange/bus.conf --fork
            {UNPACK}
            ip netns add point
            iw phy phy1 set netns name point
            ip netns exec point ip link set wlan1 up
            ip netns exec point hostapd -t /exchange/point.conf >/exchange/point.log 2>&1 &
            for turn in $(seq 100); do grep -q AP-ENABLED /exchange/point.log && exit 0; sleep 0.1; done
            cat /exchange/point.log; exit 1
            """
        )
        yield guest


@contextlib.contextmanager
def logged_in(guest: Guest, client: Client, rules: str) -> Iterator[None]:
    """Start a client under rules, in nft's words; end it at the end."""
    try:
        guest.run(
            f"""
            set -e
            wc -l </exchange/point.log >/exchange/begin
            nft -f /exchange/seen.nft
            {rules}
            {client.start}
            echo $! >/run/client.pid
            """
        )
        yield
    finally:
        guest.run(
            """
            client=$(cat /run/client.pid); kill $client
            # A process that has ended remains as a zombie, which has no executable.
            for turn in $(seq 100); do [ -e /proc/$client/exe ] || break; sleep 0.1; done
            nft flush ruleset
            ip link set wlan0 down || iw phy phy0 interface add wlan0 type managed
            """,
            check=False,
        )


def read_since(guest: Guest) -> str:
    """The access point's output since the client was started."""
    said = (guest.exchange / "point.log").read_text(errors="replace").splitlines()
    return "\n".join(said[int((guest.exchange / "begin").read_text()) :])


def wait_until(is_so: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    """Whether something has become so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_for(guest: Guest, words: str) -> bool:
    """Wait for a text in the access point's output since the client was started."""
    return wait_until(lambda: words in read_since(guest))


def count_seen(guest: Guest) -> Seen:
    """How many EAPOL frames met the egress hook since the client was started."""
    reported = guest.run("nft list table netdev seen").output
    counts = {name: int(number) for number, name in re.findall(r'packets (\d+) bytes \d+ comment "(\w+)"', reported)}
    return Seen(all=counts["all"], root=counts["root"])


def read_logs(guest: Guest) -> str:
    """The end of the output of both ends."""
    return "\n".join(
        (guest.exchange / f"{name}.log").read_text(errors="replace")[-1500:] for name in ("client", "point")
    )


@pytest.mark.requirement("R7", "B4")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_iwd if name.startswith("iwd") else ()) for name in CLIENTS]
)
def test_a_wireless_login_and_its_new_group_keys_pass_the_guards(guest: Guest, name: str) -> None:
    client = CLIENTS[name]
    for turn in ("first", "again"):
        with logged_in(guest, client, "nft -f /exchange/guards.nft"):
            assert wait_for(guest, LOGGED_IN), f"{turn}: {read_logs(guest)}"
            before = count_seen(guest)
            assert wait_for(guest, NEW_GROUP_KEY), f"{turn}: {read_logs(guest)}"
            seen = count_seen(guest)
            # Two of the four messages of a login are the client's, and one of the two of a new group key.
            if client.by_socket:
                assert before.all >= 2
                assert seen.all >= 3
                assert seen.all == seen.root, "what meets the hook is root's"
            else:
                assert seen == Seen(all=0, root=0), "mac80211 sends these below the hook"


@pytest.mark.requirement("B4")
@pytest.mark.parametrize("name", ["wpa_supplicant", "wpa_supplicant-by-socket"])
def test_without_the_rule_for_eapol_no_login_passes_that_meets_the_hook(guest: Guest, name: str) -> None:
    client = CLIENTS[name]
    with logged_in(guest, client, "nft -f /exchange/without.nft"):
        if client.by_socket:
            # Sending a dropped packet fails with ENOBUFS, and wpa_supplicant gives up at once.
            assert wait_until(lambda: NOT_HEARD in (guest.exchange / "client.log").read_text()), read_logs(guest)
            assert count_seen(guest).root == 1
            assert LOGGED_IN not in read_since(guest)
        else:
            assert wait_for(guest, LOGGED_IN), read_logs(guest)


def test_the_kernel_names_a_radio_to_the_core_and_neither_a_cable_nor_loopback(guest: Guest) -> None:
    """What carries the uplink is in the core's NetworkID, by the device type that the kernel gives a card."""
    names = "wlan0", "cable0", "lo"
    read = "import sys; from psiphon_vpn.linux.device_types import read_device_types as read"
    shown = guest.run(
        f"""
        set -e
        ip link add cable0 type veth peer name cable1
        {python("-c", f"{read}; print([sorted(read([name])) for name in sys.argv[1:]])", *names)}
        ip link del cable0
        """
    ).output
    assert shown.strip() == "[['wlan'], [], []]"
