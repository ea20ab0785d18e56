# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Renders the tunnel core's JSON configuration: what the user may choose, and the fixed settings that keep it safe.

The core ignores unknown keys, so a misspelt name would go unnoticed; tests check the names.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from psiphon_vpn.config import Settings
from psiphon_vpn.core import options

GENERIC_ID: Final = "FFFFFFFFFFFFFFFF"
TRANSPARENT_DNS: Final = "10.200.3.2"

# Defaults that [core.advanced] may replace.
_DEFAULTS: Final[Mapping[str, object]] = {
    "PropagationChannelId": GENERIC_ID,
    "SponsorId": GENERIC_ID,
    "ClientVersion": "0",
}


def render_core_config(
    settings: Settings,
    *,
    data_dir: Path,
    network_id: str,
    proxy: bool = True,
    network: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Return the core's configuration, ready for json.dump.

    Args:
        settings: checked settings.
        data_dir: the core's data directory, an absolute path.
        proxy: whether to enable the SOCKS proxy. The core ends if its port is taken.
        network: the values of the profile (`servers/profile.py`), which say whose servers they are.
        network_id: id of the uplink in the core's form: WIFI-, WIRED-, MOBILE- or VPN- and an opaque hash.
    """
    config: dict[str, object] = {
        **_DEFAULTS,
        **network,
        **{name: _thaw(value) for name, value in settings.core_advanced.items()},
        # From here on nothing can be replaced. The addresses and keys of lists only root's profile may name.
        **{name: network[name] for name in options.PROFILE_KEYS if name in network},
        "ClientPlatform": "Linux",  # a space in it makes servers refuse the handshake
        "DataRootDirectory": str(data_dir),
        "NetworkID": network_id,
        "EgressRegion": settings.egress_region,
        "LocalSocksProxyPort": settings.socks_port,
        "DisableLocalSocksProxy": not proxy,
        "ListenInterface": "",  # 127.0.0.1
        # Its /direct/ path fetches outside the tunnel for any local process: a hole through the lock.
        "DisableLocalHTTPProxy": True,
        # A packet tunnel refuses any other size.
        "TunnelPoolSize": 1,
        # Never: the core would end with code 0. The service has its own timer.
        "EstablishTunnelTimeoutSeconds": 0,
        # Without diagnostic notices failures are silent; with network parameters they would contain addresses.
        "EmitDiagnosticNotices": True,
        "EmitDiagnosticNetworkParameters": False,
        "EmitBytesTransferred": True,
        "EmitServerAlerts": True,
        "EmitClientAddress": False,
        # IPv4 only: the IPv6 form drops silently on servers without an IPv6 resolver.
        "PacketTunnelTransparentDNSIPv4Address": TRANSPARENT_DNS,
        "SplitTunnelOwnRegion": False,
        "SplitTunnelRegions": [],
        "EnableUpgradeDownload": False,
        "EnableFeedbackUpload": False,
    }
    if settings.upstream_proxy is not None:
        config["UpstreamProxyURL"] = settings.upstream_proxy
    return config


def _thaw(value: object) -> object:
    """Turn the frozen values of Settings into what json can write."""
    if isinstance(value, Mapping):
        return {name: _thaw(field) for name, field in value.items()}
    if isinstance(value, tuple):
        return [_thaw(entry) for entry in value]
    return value
