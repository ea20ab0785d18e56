"""What other programs of the system read, as text: users, directories, kernel settings, drop-ins. Pure."""

from __future__ import annotations

from typing import Final

from psiphon_vpn.core import naming
from psiphon_vpn.policy import names
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS
from psiphon_vpn.system.layout import GROUP, USER, Layout

_HEADING = "# From psiphon-vpn; reinstalled with it, so changes here are lost.\n"


def render_sysusers(layout: Layout) -> str:
    """The service's user, which nobody can log in as. Where the number is taken, another free one is given."""
    return f"""\
{_HEADING}g {GROUP} {names.ACCOUNT_NUMBER} -
u {USER} {names.ACCOUNT_NUMBER}:{GROUP} "Psiphon VPN service" {layout.state_dir} /usr/sbin/nologin
"""


def render_tmpfiles(layout: Layout) -> str:
    """Directories and the configuration, with owners and modes as R12 has them. Runs at every boot, and mends."""
    owner = f"{USER} {GROUP}"
    return f"""\
{_HEADING}d {layout.config_dir} 0755 root root -
C {layout.config} 0600 {owner} - {layout.config_template}
z {layout.config} 0600 {owner} -
d {layout.data_dir} 0755 root root -
d {layout.core_dir} 0755 root root -
L+ {layout.core_name} - - - - {naming.TARGET}
d {layout.state_dir} 0700 {owner} -
d {layout.runtime_dir} 0755 {owner} -
"""


def render_config_template() -> str:
    """What config.toml begins as: every line a comment, so that the defaults hold."""
    return """\
# Psiphon VPN. Every setting: man psiphon-vpn.toml
# After a change: sudo psiphon-vpn reload
#
# egress_region = "CA"        # country where you come out, two capital letters; without it the best
# socks_port = 1081           # of the SOCKS5 proxy on 127.0.0.1, open only while the tunnel is
#
# [core.advanced]             # psiphon-tunnel-core's own options, by their own names
"""


def render_sysctls() -> str:
    """The kernel settings of policy/sysctls.py from boot on; "-" leaves out what this kernel does not have."""
    lines = [f"-{name.replace('/', '.')} = {value}" for name, value in GLOBAL_SYSCTLS.items()]
    return _HEADING + "\n".join(lines) + "\n"


def render_modules() -> str:
    """What the daemon is not allowed to load itself; nf_tables brings its parts along when rules name them."""
    return f"{_HEADING}nf_tables\ntun\n"


def render_resolved_dropin() -> str:
    """systemd-resolved binds its questions to links, where they are refused: so it gets a server of no link."""
    return f"""\
{_HEADING}[Resolve]
# An empty value forgets what earlier files listed.
DNS=
DNS={names.RESOLVER_IPV4}
# For every name, whatever a network offers for its own links.
Domains=
Domains=~.
# Nobody else, not even when this one is silent.
FallbackDNS=
# These ask the local network, which is refused.
LLMNR=no
MulticastDNS=no
# The way to the resolver is the tunnel, encrypted and authenticated already; it speaks plain DNS only.
DNSOverTLS=no
# The Psiphon server's resolver is one that we do not choose. Where it validates, it does so itself; where it cannot
# pass signatures on, "allow-downgrade" and "yes" would leave names unresolved and tell apart nothing that matters:
# a server that lies about names can as well change the traffic that it carries.
DNSSEC=no
"""


def render_networkd_dropin() -> str:
    """systemd-networkd removes rules and routes that it did not make, unless told so (systemd 246 and 249)."""
    return f"""\
{_HEADING}[Network]
ManageForeignRoutingPolicyRules=no
ManageForeignRoutes=no
"""


def render_networkd_tun() -> str:
    """A .network of the user's that matches every name must not configure the TUN: no address, no query, no route."""
    return f"{_HEADING}[Match]\nName={names.TUN_NAME}\n\n[Link]\nUnmanaged=yes\n"


_NETWORKMANAGER_TUN: Final = f"""\
# NetworkManager leaves the TUN alone. Not "unmanaged-devices", which would replace the user's own list.
[device-psiphon-vpn]
match-device=interface-name:{names.TUN_NAME}
managed=0
"""
_NETWORKMANAGER_QUESTION: Final = """\
# Not "enabled", with which it would forget for good what a user has chosen in the desktop's settings.
[connectivity]
uri=
interval=0
"""


def render_networkmanager_conf() -> str:
    """What NetworkManager is told (NetworkManager.conf(5))."""
    return f"""\
{_HEADING}{_NETWORKMANAGER_TUN}
# Its question whether the internet is there would be one in clear, and is refused: it would call this machine offline.
{_NETWORKMANAGER_QUESTION}
# The resolver in the tunnel for every name. Else it tells dnsmasq (dns=dnsmasq) to ask by the card, bound to it, which
# is refused; and a network with IPv6 resolvers alone would leave names unresolved.
[global-dns]

[global-dns-domain-*]
servers={names.RESOLVER_IPV4}
"""


def render_networkmanager_released() -> str:
    """The same for a machine that was released: the network's own resolvers, and still no question in between."""
    return (
        f"# Released: of psiphon-vpn's own settings only this counts until the next start.\n{_NETWORKMANAGER_TUN}"
        f"{_NETWORKMANAGER_QUESTION}"
    )
